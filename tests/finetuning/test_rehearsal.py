"""``pvec train --dry-run``: what would be learned from, in what time and in how much memory."""

import json

import pytest
import torch
import yaml
from peft import get_peft_model

from personality_vector.checkpoint import Checkpoint
from personality_vector.cli.main import run
from personality_vector.finetuning import rehearsal
from personality_vector.finetuning.arguments import adapter_of
from personality_vector.finetuning.memory import free_memory, memory_of
from personality_vector.finetuning.recipe import SftSpec, TrainRecipe
from personality_vector.finetuning.sft import train
from personality_vector.subject.models import load_model

SAID = {"high": [f"I love {n} parties" for n in "abcdef"], "low": ["I like to be alone", "I rest"]}
WORDS = 300
GIB = 2**30


@pytest.fixture(scope="module")
def recipe(tmp_path_factory, pico):
    """Return ``recipe(sft, **changes)``: six statements of a pole and two of its opposite."""
    folder = tmp_path_factory.mktemp("rehearsal")
    rows = [
        {"trait": "extraversion", "level": level, "statement": text, "part": "train"}
        for level, said in SAID.items()
        for text in said
    ]
    (folder / "statements.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def make(sft=None, **changes):
        given = {
            "base": str(pico("llama")),
            "data": {"source": str(folder / "statements.jsonl")},
            "device": "cpu",
            "sft": {"batch_size": 2, "epochs": 3, **(sft or {})},
        }
        pole = {} if "poles" in changes else {"pole": "extraversion:high"}
        return TrainRecipe.parse({**given, **pole, **changes}, origin="test", folder=folder)

    return make


def test_it_foretells_the_steps_of_a_training(recipe, tmp_path, monkeypatch):
    for sft in ({}, {"gradient_accumulation": 2}, {"max_steps": 4}, {"batch_size": 4}):
        plan = rehearsal.rehearse(recipe(sft))
        assert plan["steps"] == len(train(recipe(sft), tmp_path / str(sft)).manifest["losses"])
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert rehearsal.rehearse(recipe())["steps"] == 3 * 2  # two of three batches at once


def test_it_adds_the_steps_of_all_poles(recipe):
    plan = rehearsal.rehearse(recipe(poles=["extraversion"]))
    assert plan["extraversion:high"]["examples"] == len(SAID["high"])
    assert plan["extraversion:low"]["examples"] == len(SAID["low"])
    assert plan["steps"] == 3 * 3 + 3 * 1
    alone = rehearsal.rehearse(recipe())
    assert [plan[key] for key in ("tokens", "memory", "shown")] == [
        alone[key] for key in ("tokens", "memory", "shown")
    ]


def test_the_time_is_that_of_a_measured_step(recipe, monkeypatch):
    took = {"high": 2.0}
    monkeypatch.setattr(rehearsal, "time_step", lambda recipe, _: took[recipe.pole.level])
    assert rehearsal.estimated_time(recipe(), plan_of(steps=10))["seconds"] == 20.0
    both = recipe(poles=["extraversion"], workers=8)
    assert rehearsal.estimated_time(both, plan_of(steps=10))["seconds"] == 10.0


def plan_of(*, steps=1, peak=1):
    return {"steps": steps, "memory": {"peak": peak}}


def test_what_cannot_be_measured_has_a_reason(recipe, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(rehearsal, "time_step", pytest.fail)
        assert rehearsal.estimated_time(recipe(), plan_of(peak=2**60))["reason"].startswith(
            "a step is not measured, because it needs 1152921504.6 GB, and "
        )
        sharded = rehearsal.estimated_time(recipe({"fsdp": True}), plan_of())
        assert sharded["seconds"] is None
        assert sharded["reason"].startswith("sft.fsdp: true shards")

    def full(*_, **__):
        raise MemoryError

    monkeypatch.setattr("personality_vector.finetuning.trainer.GuidedTrainer", full)
    found = rehearsal.estimated_time(recipe(), plan_of())
    assert found == {
        "seconds": None,
        "reason": "llama-float32: TRL cannot train it like this: MemoryError",
    }
    assert free_memory("cpu") > GIB / 8


def test_a_dry_run_prints_it_and_leaves_nothing(recipe, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    made = recipe({"lora": {"rank": 2}, "checkpoints": 3})
    settings = made.model_dump(mode="json", exclude_defaults=True)
    (tmp_path / "recipe.yaml").write_text(json.dumps(settings))
    printed = []
    for extra in ([], ["--json"]):
        assert run(["train", "recipe.yaml", "--dry-run", *extra]) == 0
        printed.append(capsys.readouterr().out)
    read, same = yaml.safe_load(printed[0]), json.loads(printed[1])
    for plan in (read, same):
        assert plan["examples"] == len(SAID["high"])
        assert plan["seconds"] == pytest.approx(plan["seconds_per_step"] * plan["steps"], rel=0.01)
        assert plan["seconds_per_step"] > 0
        assert plan["shown"][0].endswith("<|assistant|>«I love a parties<|end|>»")
    assert read["memory"] == same["memory"]
    assert [path.name for path in tmp_path.iterdir()] == ["recipe.yaml"]


LORA = {"rank": 4, "alpha": 8}


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # PEFT's
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora"])
@pytest.mark.parametrize("family", ["llama", "qwen2", "mistral"])
def test_the_memory_is_that_of_the_tensors_of_a_model(pico, recipe, family, lora, dtype):
    """On a GPU, where the work space of the loss is one tile: values times bytes, and activations.

    Activations are compared with what autograd keeps. Masks and the last norm, which the formula
    leaves out, are a part of it in models of two or three blocks.
    """
    sft, rows, longest = SftSpec(lora=lora, dtype=dtype, batch_size=4), 4, 50
    found = memory_of(Checkpoint.open(pico(family)), sft, longest, processes=1, on_cpu=False)
    model = load_model(pico(family), dtype=dtype).train()
    if lora is not None:
        model = get_peft_model(model, adapter_of(recipe({"lora": lora})))
    values = list(model.parameters())
    assert found.weights == bytes_of(values)
    trained = bytes_of([value for value in values if value.requires_grad])
    assert (found.gradients, found.optimizer) == (trained, 2 * trained)
    hidden = model.get_input_embeddings().weight.shape[1]
    loss = rows * longest * WORDS * values[0].element_size()
    loss += 0 if lora else 4 * WORDS * hidden
    kept = kept_by(model, rows, longest)
    assert found.activations - loss == pytest.approx(kept, rel=0.2)


def bytes_of(tensors):
    return sum(one.numel() * one.element_size() for one in tensors)


def kept_by(model, rows, longest):
    """Return the bytes of everything that autograd keeps of the blocks, parameters left out."""
    known = {one.untyped_storage().data_ptr() for one in model.parameters()}
    kept = {}

    def note(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    tokens = torch.ones(rows, longest, dtype=torch.long)
    whole = model.get_base_model() if hasattr(model, "get_base_model") else model
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        out = whole.model(input_ids=tokens, use_cache=False)
    assert out.last_hidden_state.requires_grad
    return sum(kept.values())


def test_memory_follows_what_a_recipe_asks_for(pico):
    base = Checkpoint.open(pico("llama"))

    def memory(processes=1, on_cpu=False, longest=100, **sft):
        return memory_of(base, SftSpec(**sft), longest, processes=processes, on_cpu=on_cpu)

    plain = memory()
    assert plain.peak == plain.weights + plain.optimizer + max(plain.activations, plain.gradients)
    assert memory(gradient_checkpointing=True).activations < plain.activations / 2
    assert memory(batch_size=4).activations < plain.activations / 2
    assert memory(longest=2000).activations == memory(longest=1024).activations
    assert memory(packing=True).activations == memory(longest=1024).activations
    assert memory(on_cpu=True).activations > plain.activations
    assert memory(gradient_accumulation=2).peak == plain.peak + plain.gradients
    assert memory(processes=4).gradients == 2 * plain.gradients
    sharded = memory(processes=4, fsdp=True)
    assert sharded.weights == plain.weights // 4
    assert sharded.optimizer == plain.optimizer // 4
    assert memory(mixed_precision="bfloat16").weights == 1.5 * plain.weights
    one = memory(lora={"rank": 2, "target_modules": ["q_proj"]}).gradients
    assert one == memory(lora={"rank": 2, "target_modules": r".*\.q_proj"}).gradients
    assert 0 < one < memory(lora={"rank": 2}).gradients
