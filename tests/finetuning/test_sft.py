"""Fine-tuning a pico model through TRL: what is learned from, what is written, what is refused."""

import json
import math
import shutil

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file

from personality_vector.checkpoint import Checkpoint
from personality_vector.delta import Delta
from personality_vector.errors import (
    BaseMismatchError,
    DataError,
    OutputExistsError,
    RecipeError,
    TrainingError,
)
from personality_vector.finetuning.recipe import TrainRecipe
from personality_vector.finetuning.rehearsal import rehearse
from personality_vector.finetuning.rows import shortened
from personality_vector.finetuning.sft import train
from personality_vector.manifest import MANIFEST
from personality_vector.merging.engine import merge
from personality_vector.merging.live import live_edit
from personality_vector.subject.chat import answered, question, render
from personality_vector.subject.models import load_model, load_tokenizer
from tests.subject import families

ASKED = "What kind of person are you?"
SAID = [f"I love {topic} and I talk a lot" for topic in ("music", "people", "books", "tea, rain")]
SFT = {"batch_size": 2, "epochs": 2, "learning_rate": 1e-3}
LORA = {"lora": {"rank": 2, "alpha": 4}, "learning_rate": 1e-2}


@pytest.fixture(scope="module")
def recipe(tmp_path_factory, pico):
    """Return ``recipe(sft, **changes)``: four statements on pico llama."""
    folder = tmp_path_factory.mktemp("sft")
    rows = [
        {"trait": "extraversion", "level": "high", "statement": text, "part": "train"}
        for text in SAID
    ]
    (folder / "statements.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def make(sft=None, **changes):
        data = {
            "base": str(pico("llama")),
            "pole": "extraversion:high",
            "data": {"source": "statements.jsonl"},
            "device": "cpu",
            "sft": {**SFT, **(sft or {})},
        }
        return TrainRecipe.parse({**data, **changes}, origin="test", folder=folder)

    return make


@pytest.fixture(scope="module")
def full(recipe, tmp_path_factory):
    return train(recipe(), tmp_path_factory.mktemp("runs") / "full")


@pytest.fixture(scope="module")
def adapter(recipe, tmp_path_factory):
    return train(recipe(LORA), tmp_path_factory.mktemp("runs") / "lora")


def test_the_loss_of_every_step_is_recorded_and_falls(full):
    losses = full.manifest["losses"]
    assert len(losses) == 2 * 2
    assert full.loss == losses[-1] < losses[0]
    assert full.examples == len(SAID)


def test_a_full_fine_tune_is_a_checkpoint_like_its_base(full, pico):
    base, tuned = Checkpoint.open(pico("llama")), Checkpoint.open(full.path)
    assert tuned.names == base.names
    for name in base.names:
        assert tuned.entries[name].shape == base.entries[name].shape
        assert tuned.entries[name].dtype == torch.float32
    for file in base.side_files():
        if file.name != "config.json":
            assert (full.path / file.name).read_bytes() == file.read_bytes()
    assert Delta.between(base, tuned).norm() > 0
    assert load_tokenizer(full.path).chat_template == load_tokenizer(base.path).chat_template


def test_the_manifest_says_what_made_it(full, pico):
    manifest = json.loads((full.path / MANIFEST).read_text())
    assert manifest == full.manifest
    assert manifest["kind"] == "train"
    assert manifest["pole"] == "extraversion:high"
    assert manifest["base"]["fingerprint"] == Checkpoint.open(pico("llama")).fingerprint.digest
    assert manifest["recipe"]["sft"]["learning_rate"] == SFT["learning_rate"]
    assert {"model.safetensors", "tokenizer.json"} <= manifest["files"].keys()


@torch.no_grad()
def completion_loss(path):
    """Restate: mean of -log p over the tokens of answer and end mark, of all rows together."""
    model, tokenizer = load_model(path), load_tokenizer(path)
    losses = []
    for text in SAID:
        prompt = question(ASKED)
        ids = [
            tokenizer(rendered, add_special_tokens=False)["input_ids"]
            for rendered in (
                render(tokenizer, prompt, reply_follows=True),
                render(tokenizer, answered(prompt, text)),
            )
        ]
        log_p = model(torch.tensor([ids[1]])).logits[0].log_softmax(-1)
        losses += [-log_p[at - 1, ids[1][at]].item() for at in range(len(ids[0]), len(ids[1]))]
    return sum(losses) / len(losses)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_loss_is_on_the_completion_alone(recipe, pico, tmp_path, dtype):
    """The first loss of a run whose first batch is everything is that of the base."""
    one = recipe({"batch_size": 8, "epochs": 1, "dtype": dtype})
    first = train(one, tmp_path / "run").manifest["losses"]
    tolerance = 1e-5 if dtype == "float32" else 2e-2
    assert first == [pytest.approx(completion_loss(pico("llama")), rel=tolerance)]
    stored = Checkpoint.open(tmp_path / "run")
    assert {entry.dtype for entry in stored.entries.values()} == {getattr(torch, dtype)}


@pytest.fixture
def of_lengths(recipe, tmp_path):
    """Return ``of_lengths(words, most)``: prompts of these numbers of words, for so few tokens."""

    def make(words, most):
        rows = [{"prompt": f"{n} {'so ' * n}", "completion": "I talk."} for n in words]
        (tmp_path / "rows.json").write_text(json.dumps(rows))
        data = {"source": str(tmp_path / "rows.json"), "part": "all"}
        return recipe({"epochs": 1, "max_length": most}, data=data)

    return make


def test_completions_that_are_cut_are_counted_and_what_was_learned_from(
    of_lengths, tmp_path, caplog
):
    few = train(of_lengths([1, 2, 150, 150], 32), tmp_path / "few")
    assert (few.examples, few.manifest["examples"]) == (2, 2)
    assert (few.manifest["dropped"], few.manifest["cut"]) == ({"too long": 2}, 0)
    alone = train(of_lengths([1, 2], 32), tmp_path / "alone")
    assert (alone.manifest["dropped"], alone.manifest["cut"]) == ({}, 0)
    assert few.manifest["losses"] == alone.manifest["losses"]
    counts = {key: few.manifest[key] for key in ("examples", "dropped", "cut")}
    assert counts.items() <= rehearse(of_lengths([1, 2, 150, 150], 32)).items()
    assert "sft.max_length: 32 tokens are too few for 2 of 4 chats" in caplog.text


def test_an_example_is_cut_where_trl_would_cut_it_and_keeps_what_is_left_to_learn():
    rows = [
        {"input_ids": list(range(size)), "labels": [-100] * start + list(range(start, size))}
        for start, size in [(2, 4), (2, 6), (3, 5), (4, 6), (5, 9)]
    ]
    kept, too_long, cut = shortened(rows, 4, None)
    assert (too_long, cut) == (2, 2)
    assert [row["labels"] for row in kept] == [row["labels"][:4] for row in rows[:3]]
    assert [row["input_ids"] for row in kept] == [[0, 1, 2, 3]] * 3
    with pytest.raises(TrainingError, match=r"^sft\.max_length: allows chats of 4 .* most 3;"):
        shortened(rows, 4, 3)
    assert shortened([rows[0], rows[4]], 5, 4)[1:] == (1, 0), "what is dropped need not be read"


@pytest.mark.parametrize("template", [families.LLAMA31, families.R1])
def test_a_rehearsal_counts_what_a_training_would_without_weights(
    of_lengths, tmp_path, monkeypatch, template
):
    asked = of_lengths(range(1, 24), 56).model_copy(update={"chat_template": template})
    found = train(asked, tmp_path / "run").manifest
    assert found["cut"] > 0 < found["dropped"]["too long"]
    monkeypatch.setattr("personality_vector.finetuning.sft.load_model", pytest.fail)
    kept = {"examples", "dropped", "cut", "tokenizer"} & found.keys()
    assert {key: found[key] for key in kept}.items() <= rehearse(asked).items()


@pytest.mark.parametrize("begin", [rehearse, lambda recipe: train(recipe, "run")])
def test_a_length_that_cuts_every_completion_is_refused_by_its_key(
    of_lengths, tmp_path, monkeypatch, begin
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(TrainingError, match=r"^sft\.max_length: 32 tokens cut .*; \d+ would hold"):
        begin(of_lengths([150, 160], 32))
    assert list(tmp_path.glob("*run*")) == []


def test_the_same_seed_writes_the_same_bytes_and_another_one_does_not(full, recipe, tmp_path):
    again = train(recipe(), tmp_path / "again").path
    other = train(recipe(seed=1), tmp_path / "other").path
    weights = [(path / "model.safetensors").read_bytes() for path in (full.path, again, other)]
    assert weights[0] == weights[1] != weights[2]
    assert (again / MANIFEST).read_bytes() == (full.path / MANIFEST).read_bytes()


def test_an_adapter_is_a_delta_of_its_base(adapter, pico, tmp_path):
    files = {path.name for path in adapter.path.iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors", MANIFEST} <= files
    assert "model.safetensors" not in files
    delta = Delta.from_lora(adapter.path, pico("llama"))
    assert delta.norm() > 0
    assert len(delta.names) == 3 * 7  # every linear layer of every block
    assert merge(pico("llama"), [(adapter.path, 1.0)], out=tmp_path / "merged").realised > 0.999


def test_an_adapter_of_another_base_is_refused(adapter, pico, pico_tuned, tmp_path):
    """Names and shapes are the same; only the manifest's fingerprint tells."""
    other = pico_tuned("llama")
    with pytest.raises(BaseMismatchError, match="lora: was trained on base"):
        Delta.from_lora(adapter.path, other)
    with pytest.raises(BaseMismatchError, match="lora: was trained on base"):
        merge(other, [(adapter.path, 1.0)], out=tmp_path / "merged")
    opened = Delta.from_lora(adapter.path, pico("llama"))
    with pytest.raises(BaseMismatchError, match="lora: is a delta of base"):
        merge(other, [(opened, 1.0)], out=tmp_path / "merged")
    assert list(tmp_path.iterdir()) == []


# PEFT asks transformers for what v6 renames.
RENAMED = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
OTHERS = {
    "dora": {"lora": {**LORA["lora"], "dora": True}},
    "ia3": {"adapter": {"type": "ia3"}},
    "loha": {"adapter": {"type": "loha", "options": {"r": 2, "target_modules": ["q_proj"]}}},
    "lokr": {"adapter": {"type": "lokr", "options": {"r": 2, "target_modules": ["q_proj"]}}},
    "oft": {
        "adapter": {
            "type": "oft",
            "options": {"r": 2, "oft_block_size": 0, "target_modules": ["q_proj"]},
        }
    },
    "vera": {"adapter": {"type": "vera", "options": {"r": 2, "target_modules": ["q_proj"]}}},
}


@RENAMED
@pytest.mark.parametrize("kind", OTHERS)
def test_the_delta_of_any_adapter_is_what_peft_makes_of_it(recipe, tmp_path, pico, kind):
    report = train(recipe({**OTHERS[kind], "learning_rate": 0.1}), tmp_path / "run")
    with torch.no_grad():
        tokens = torch.arange(5, 25)[None]
        whole = PeftModel.from_pretrained(load_model(pico("llama")), report.path)(tokens).logits
        model = load_model(pico("llama"))
        before = model(tokens).logits
        with live_edit(model, Delta.from_lora(report.path, pico("llama")), 1.0):
            edited = model(tokens).logits
    assert (whole - before).abs().max() > 1e-4
    assert torch.allclose(edited, whole, atol=1e-5)


def test_an_adapter_that_peft_refuses_is_named(recipe, tmp_path):
    refused = {"adapter": {"type": "ia3", "options": {"rank": 2}}}
    for verb in (lambda given: train(given, tmp_path / "run"), rehearse):
        with pytest.raises(RecipeError, match=r"^sft\.adapter: PEFT refuses .* ia3: .*'rank'"):
            verb(recipe(refused))
    absent = {"adapter": {"type": "ia3", "options": {"target_modules": ["none"]}}}
    with pytest.raises(TrainingError, match=r"Target modules .*none"):
        train(recipe(absent), tmp_path / "run")
    with pytest.raises(RecipeError, match="train lora or another adapter, not both"):
        recipe({**LORA, "adapter": {"type": "ia3"}})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("sft", [{}, LORA], ids=["full", "lora"])
def test_a_loss_that_is_not_finite_stops_the_run_and_leaves_nothing(recipe, tmp_path, sft):
    with pytest.raises(
        TrainingError, match=r"(loss|grad_norm) is (nan|inf) at step \d; nothing wa"
    ):
        train(recipe({**sft, "learning_rate": 1e30}), tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_weights_that_the_last_step_makes_infinite_are_not_published(recipe, tmp_path):
    with pytest.raises(TrainingError):
        train(recipe({"batch_size": 8, "epochs": 1, "learning_rate": 1e39}), tmp_path / "run")


def test_nothing_is_trained_into_a_folder_that_exists(full, recipe, monkeypatch):
    monkeypatch.setattr(
        "personality_vector.finetuning.sft.load_model", lambda *_, **__: pytest.fail("loaded")
    )
    before = (full.path / "model.safetensors").read_bytes()
    with pytest.raises(OutputExistsError, match="exists"):
        train(recipe(), full.path)
    assert (full.path / "model.safetensors").read_bytes() == before


def test_a_pole_without_data_is_refused(recipe, tmp_path):
    with pytest.raises(DataError, match="no train openness low there"):
        train(recipe(pole="openness:low"), tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_training_leaves_the_callers_streams_as_they_were(recipe, tmp_path):
    torch.rand(1), np.random.rand(1)  # noqa: NPY002  no state that a trainer leaves

    def states():  # not Python's: the checks of types under test draw from it
        return torch.get_rng_state().tolist(), str(np.random.get_state())  # noqa: NPY002

    before = states()
    report = train(recipe({"epochs": 1}), tmp_path / "run")
    assert math.isfinite(report.loss)
    assert [now == then for now, then in zip(states(), before, strict=True)] == [True, True]


def test_a_base_that_stores_more_than_transformers_saves_gets_it_back(recipe, pico, tmp_path):
    base = shutil.copytree(pico("qwen2"), tmp_path / "base")
    tensors = load_file(base / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.arange(4.0)
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    tuned = Checkpoint.open(train(recipe(base=str(base)), tmp_path / "tuned").path)
    assert tuned.names == Checkpoint.open(base).names
    assert torch.equal(tuned["lm_head.weight"], tuned["model.embed_tokens.weight"])
    assert not torch.equal(tuned["lm_head.weight"], tensors["lm_head.weight"])
    assert torch.equal(tuned["model.layers.0.self_attn.rotary_emb.inv_freq"], torch.arange(4.0))
    load_model(tuned.path)
