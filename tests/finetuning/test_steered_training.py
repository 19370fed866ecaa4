"""Steering during training alone: what is learned then, what is evaluated, and what is left."""

import json
import pickle
import shutil
from contextlib import contextmanager
from dataclasses import dataclass
from types import MappingProxyType

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

from personality_vector.checkpoint import Checkpoint
from personality_vector.cli import weights
from personality_vector.errors import (
    BaseMismatchError,
    CheckpointError,
    DataError,
    ModelError,
    OutputExistsError,
    RecipeError,
    TensorMismatchError,
    TrainingError,
)
from personality_vector.finetuning.guidance import Guidance
from personality_vector.finetuning.poles import train_poles
from personality_vector.finetuning.recipe import TrainRecipe
from personality_vector.finetuning.rows import rows_of
from personality_vector.finetuning.sft import train
from personality_vector.manifest import MANIFEST
from personality_vector.steering import SteeringVector
from personality_vector.steering.fit import orthonormal
from personality_vector.steering.training import TrainingSteering
from personality_vector.subject.models import load_model, load_tokenizer

# PEFT reads what transformers deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")

SAID = ("music", "people", "books and a long walk", "tea, rain")
SFT = {"batch_size": 4, "epochs": 4, "learning_rate": 1e-3}
LORA = {"lora": {"rank": 2, "alpha": 4}, "learning_rate": 1e-2}
LAYER, WIDTH = 1, 48
KINDS = MappingProxyType(
    {
        "add": ({}, {"how": "add", "coefficient": 3.0}),
        "ablate": ({}, {"how": "ablate"}),
        "regularise": (LORA, {"how": "regularise", "coefficient": 50.0}),
    }
)
"""What ``sft`` and ``steer`` say of each kind of steering."""


def vector_of(model, seed=0, layers=(0, LAYER), width=WIDTH):
    drawn = torch.Generator().manual_seed(seed)
    directions = {layer: torch.randn(width, generator=drawn) for layer in layers}
    return SteeringVector(directions, model, None, f"v{seed}", "response_mean", (1, 1))


@pytest.fixture(scope="module")
def folder(tmp_path_factory, pico):
    """Return a folder with statements and two vectors, ``v`` and ``w``."""
    found = tmp_path_factory.mktemp("steered")
    rows = [
        {"trait": "extraversion", "level": level, "statement": text, "part": part}
        for level, verb in (("high", "love"), ("low", "fear"))
        for part, begin in (("train", f"I {verb}"), ("held_out", f"They say I {verb}"))
        for text in (f"{begin} {topic}" for topic in SAID)
    ]
    (found / "statements.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    model = Checkpoint.open(pico("llama")).fingerprint.digest
    for seed, name in enumerate("vw"):
        vector_of(model, seed).save(found / name)
    return found


@pytest.fixture(scope="module")
def recipe(folder, pico):
    """Return ``recipe(sft, steer, **changes)``: four statements on pico llama."""

    def make(sft=None, steer=None, **changes):
        data = {
            "base": str(pico("llama")),
            "pole": "extraversion:high",
            "data": {"source": "statements.jsonl"},
            "device": "cpu",
            "sft": {**SFT, **(sft or {})},
            **({"steer": {"vector": "v", "layers": [LAYER], **steer}} if steer else {}),
        }
        return TrainRecipe.parse({**data, **changes}, origin="test", folder=folder)

    return make


def vector_in(folder):
    return SteeringVector.load(folder / "v")


def trained(recipe, out, **given):
    return train(recipe, out, guidance=weights._guidance(recipe), **given)


def tensors_of(path):
    return load_file(next(path.glob("*model.safetensors")))


@pytest.fixture(scope="module")
def once(recipe, tmp_path_factory):
    """Return ``once(sft, steer)``: the report of a training, which several tests look at."""
    known = {}

    def make(sft, steer=None):
        key = json.dumps([sft, steer])
        if key not in known:
            known[key] = trained(recipe(sft, steer), tmp_path_factory.mktemp("once") / "run")
        return known[key]

    return make


@contextmanager
def hooked(model, change):
    """Restate: ``change(h)`` takes the place of the output of block ``LAYER``."""

    def hook(_block, _args, output):
        return (change(output[0]), *output[1:]) if isinstance(output, tuple) else change(output)

    handle = model.model.layers[LAYER].register_forward_hook(hook)
    yield
    handle.remove()


@torch.no_grad()
def loss_of(model, rows):
    """Restate: mean of -log p over the learned tokens of all rows."""
    losses = []
    for row in rows:
        log_p = model(torch.tensor([row["input_ids"]])).logits[0].log_softmax(-1)
        pairs = enumerate(row["labels"])
        losses += [-log_p[at - 1, label].item() for at, label in pairs if label >= 0]
    return sum(losses) / len(losses)


def batch_of(rows):
    """Return rows as one padded batch."""
    longest = max(len(row["input_ids"]) for row in rows)

    def padded(key, value):
        return torch.tensor([[*row[key], *[value] * (longest - len(row[key]))] for row in rows])

    labels, ids = padded("labels", -100), padded("input_ids", 0)
    lengths = torch.tensor([len(row["input_ids"]) for row in rows])
    mask = (torch.arange(longest) < lengths[:, None]).long()
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


@pytest.fixture(scope="module")
def rows(recipe, pico):
    return rows_of(recipe(), load_tokenizer(pico("llama"))).rows


@pytest.fixture
def unit(folder):
    direction = vector_in(folder)[LAYER]
    return direction / direction.norm()


@pytest.mark.parametrize("kind", KINDS)
def test_coefficient_0_is_plain_training_bit_for_bit(recipe, once, tmp_path, kind):
    sft, steer = KINDS[kind]
    run = trained(recipe(sft, {**steer, "coefficient": 0.0}), tmp_path / "run")
    plain, other = once(sft), once(sft, steer)
    files = [next(one.path.glob("*model.safetensors")) for one in (run, plain, other)]
    assert files[0].read_bytes() == files[1].read_bytes() != files[2].read_bytes()
    assert run.manifest["losses"] == plain.manifest["losses"]


def test_adding_trains_the_model_that_is_steered(once, folder, pico, rows):
    direction, model = vector_in(folder)[LAYER], load_model(pico("llama"))
    with hooked(model, lambda hidden: hidden + 3.0 * direction):
        wanted = loss_of(model, rows)
    found = once(*KINDS["add"]).manifest["losses"]
    assert found[0] == pytest.approx(wanted, rel=1e-5)
    assert abs(wanted - loss_of(model, rows)) > 1e-3


@pytest.mark.parametrize("names", [["v"], ["v", "w"]])
def test_ablating_removes_what_the_vectors_span(recipe, folder, pico, rows, tmp_path, names):
    found = [SteeringVector.load(folder / name)[LAYER].double() for name in names]
    basis = torch.linalg.qr(torch.stack(found, 1)).Q
    model = load_model(pico("llama"))
    with hooked(model, lambda hidden: (hidden - hidden.double() @ basis @ basis.T).float()):
        wanted = loss_of(model, rows)
    asked = recipe({}, {"how": "ablate", "vector": names})
    assert trained(asked, tmp_path / "run").manifest["losses"][0] == pytest.approx(wanted, rel=1e-5)


def test_a_vector_in_the_span_of_the_others_adds_no_direction():
    one, other = torch.randn(2, 8, generator=torch.Generator().manual_seed(0))
    basis = torch.stack(orthonormal([one, other, 2 * one - other, one]))
    assert torch.allclose(basis @ basis.T, torch.eye(2), atol=1e-6)
    assert torch.allclose(other @ basis.T @ basis, other, atol=1e-6)


def test_no_gradient_pushes_along_an_ablated_direction(recipe, pico, rows, unit):
    def pushed(guidance):
        model = load_model(pico("llama"))
        with guidance.applied(model):
            model(**batch_of(rows)).loss.backward()
        gradient = model.model.layers[LAYER].mlp.down_proj.weight.grad
        return ((unit @ gradient).norm() / gradient.norm()).item()

    assert pushed(weights._guidance(recipe({}, {"how": "ablate"}))) < 1e-6
    assert pushed(weights._guidance(recipe({}, {"how": "add"}))) > 1e-2


def test_products_in_half_precision_leave_an_ablation_exact(recipe, pico, rows, unit):
    model, seen = load_model(pico("llama")), []
    guidance = weights._guidance(recipe(*KINDS["ablate"]))
    rounded = torch.autocast("cpu", torch.bfloat16)
    seeing = hooked(model, lambda hidden: seen.append(hidden) or hidden)
    with guidance.applied(model), torch.no_grad(), rounded, seeing:
        model(**batch_of(rows))
    assert (seen[0] @ unit).abs().max() < 1e-5 * seen[0].norm(dim=-1).max()


def adapted(path):
    """Return pico below an adapter that does something, with the base beside it."""
    config = LoraConfig(r=2, lora_alpha=4, target_modules="all-linear", init_lora_weights=False)
    with torch.random.fork_rng():
        return get_peft_model(load_model(path), config).train(), load_model(path)


@torch.no_grad()
def restated(model, base, rows, vector, layers):
    """Restate the penalty: mean over layers and chats of the squared mean shift along ``v``."""
    squares = []
    for row in rows:
        ids, learned = torch.tensor([row["input_ids"]]), torch.tensor(row["labels"]) >= 0
        one, other = (m(ids, output_hidden_states=True).hidden_states for m in (model, base))
        for layer in layers:
            shift = (one[layer + 1][0, learned].double() - other[layer + 1][0, learned]).mean(0)
            direction = vector[layer].double()
            squares.append((shift @ direction / direction.norm()).item() ** 2)
    return sum(squares) / len(squares)


@pytest.mark.parametrize("layers", [[LAYER], [0, -2]])
def test_the_penalty_is_the_squared_shift_of_each_chat(recipe, folder, pico, rows, layers):
    model, base = adapted(pico("llama"))
    wanted = 0.5 * restated(model, base, rows, vector_in(folder), [at % 3 for at in layers])
    steer = {"how": "regularise", "coefficient": 0.5, "layers": layers}
    guidance, batch = weights._guidance(recipe(LORA, steer)), batch_of(rows)
    before = torch.get_rng_state()
    with guidance.applied(model) as penalty:
        model(**batch)
        found = penalty(batch)
    assert found.item() == pytest.approx(wanted, rel=1e-5)
    found.backward()
    assert all(p.grad is not None or not p.requires_grad for p in list(model.parameters())[:20])
    assert model.training
    assert torch.equal(before, torch.get_rng_state())


def test_packed_chats_are_told_apart(recipe, pico, rows):
    model, _ = adapted(pico("llama"))
    guidance = weights._guidance(recipe(LORA, KINDS["regularise"][1]))
    packed = {
        key: torch.tensor([[number for row in rows for number in row[key]]])
        for key in ("input_ids", "labels")
    }
    places = [place for row in rows for place in range(len(row["input_ids"]))]
    batches = [batch_of(rows), {**packed, "position_ids": torch.tensor([places])}]
    with guidance.applied(model) as penalty:
        found = []
        for batch in batches:
            model(**batch, use_cache=False)
            found.append(penalty(batch).item())
    assert found[1] == pytest.approx(found[0], rel=1e-5)


def shift_of(path, base, rows, vector):
    tuned = PeftModel.from_pretrained(load_model(base), path)
    return restated(tuned, load_model(base), rows, vector, [LAYER]) ** 0.5


def test_regularising_shrinks_the_shift(once, folder, pico, rows):
    vector, both = vector_in(folder), (once(*KINDS["regularise"]), once(LORA))
    found, free = (shift_of(one.path, pico("llama"), rows, vector) for one in both)
    assert found < 0.6 * free


def test_the_penalty_is_part_of_the_loss_that_is_recorded(recipe, folder, pico, rows, tmp_path):
    """An adapter begins at the base, where neither the penalty nor its gradient is there yet."""

    def after(steps, weight, name):
        sft = {**LORA, "scheduler": "constant", "max_steps": steps}
        return trained(recipe(sft, {"how": "regularise", "coefficient": weight}), tmp_path / name)

    one, other = (after(2, weight, f"{weight}").manifest["losses"] for weight in (0.0, 100.0))
    between = shift_of(after(1, 0.0, "one").path, pico("llama"), rows, vector_in(folder))
    assert other[0] == one[0]
    assert other[1] - one[1] == pytest.approx(100.0 * between**2, rel=1e-2)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "how",
    [
        {"gradient_checkpointing": True},
        {"batch_size": 2, "gradient_accumulation": 2},
        {"packing": True, "max_length": 64, "batch_size": 4},
    ],
    ids=["checkpointing", "accumulation", "packing"],
)
def test_the_same_steps_in_another_way_are_the_same_training(recipe, once, tmp_path, kind, how):
    sft, steer = KINDS[kind]
    one = once({**sft, "max_steps": 3}, steer)
    other = trained(recipe({**sft, "max_steps": 3, **how}, steer), tmp_path / "other")
    assert other.manifest["losses"] == pytest.approx(one.manifest["losses"], rel=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_mixed_precision_starts_where_the_base_is(recipe, tmp_path, kind):
    sft, steer = KINDS[kind]
    mixed = {"mixed_precision": "bfloat16", "max_steps": 1}
    found = trained(recipe({**sft, **mixed}, steer), tmp_path / "run").manifest["losses"]
    if kind == "regularise":
        alone = train(recipe({**sft, **mixed}), tmp_path / "plain").manifest["losses"]
        assert found == alone, "rounded like the pass it is compared with, the base is no shift"
    whole = trained(recipe({**sft, "max_steps": 1}, steer), tmp_path / "whole").manifest["losses"]
    assert found == pytest.approx(whole, rel=2e-2)


@pytest.mark.parametrize("kind", KINDS)
def test_held_out_losses_are_those_of_the_unsteered_model(recipe, once, pico, tmp_path, kind):
    sft, steer = KINDS[kind]
    asked = recipe({**sft, "evaluate_every": 2}, steer)
    run = trained(asked, tmp_path / "run")
    if sft:
        model = PeftModel.from_pretrained(load_model(pico("llama")), run.path)
    else:
        model = load_model(run.path)
    apart = asked.model_copy(update={"data": asked.data.model_copy(update={"part": "held_out"})})
    rows = rows_of(apart, load_tokenizer(pico("llama"))).rows
    assert list(run.manifest["held_out_losses"]) == ["2", "4"]
    assert run.manifest["held_out_losses"]["4"] == pytest.approx(loss_of(model, rows), rel=1e-4)
    found, wanted = tensors_of(run.path), tensors_of(once(sft, steer).path)
    assert all(torch.equal(found[name], wanted[name]) for name in wanted), "evaluating is no step"


def hooks_in(model):
    return [
        hook
        for module in model.modules()
        for hook in (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
    ]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fails", [False, True])
def test_no_hook_is_left_on_the_model(recipe, tmp_path, monkeypatch, kind, fails):
    kept, sft = [], "personality_vector.finetuning.sft"

    def loading(*args, **given):
        kept.append(load_model(*args, **given))
        return kept[0]

    monkeypatch.setattr(f"{sft}.load_model", loading)
    during = []

    def failing(_self, model, *_args, **_given):
        during.extend(hooks_in(model))
        raise RuntimeError("no memory")

    if fails:
        monkeypatch.setattr("trl.SFTTrainer.compute_loss", failing)
        with pytest.raises(TrainingError, match="no memory"):
            trained(recipe(*KINDS[kind]), tmp_path / "run")
        assert len(during) == 1
    else:
        trained(recipe(*KINDS[kind]), tmp_path / "run")
    assert hooks_in(kept[0]) == []


@dataclass
class Interrupted:
    """A guidance during which somebody presses Ctrl-C."""

    of: Guidance
    steps: int

    def identity(self):
        return self.of.identity()

    def check(self, base):
        self.of.check(base)

    def applied(self, model):
        self.steps -= 1
        if self.steps < 0:
            raise KeyboardInterrupt
        return self.of.applied(model)


@pytest.fixture
def interrupted(recipe, tmp_path):
    """Return ``interrupted(kind)``: the recipe and the folder of a training that was cut short."""

    def make(kind):
        asked, out = recipe(*KINDS[kind]), tmp_path / "run"
        with pytest.raises(KeyboardInterrupt):
            train(asked, out, guidance=Interrupted(weights._guidance(asked), 3))
        assert (tmp_path / ".run.training").is_dir()
        return asked, out

    return make


@pytest.mark.parametrize("kind", KINDS)
def test_a_training_that_was_interrupted_resumes_to_the_same_weights(interrupted, once, kind):
    asked, out = interrupted(kind)
    rest = Interrupted(weights._guidance(asked), 2)
    resumed = train(asked, out, guidance=rest)
    assert rest.steps >= 0, "it starts again from a checkpoint"
    whole = once(*KINDS[kind])
    found, wanted = tensors_of(resumed.path), tensors_of(whole.path)
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    assert (out / MANIFEST).read_bytes() == (whole.path / MANIFEST).read_bytes()


def test_a_changed_vector_is_another_training(interrupted, folder):
    asked, out = interrupted("add")
    other = TrainingSteering.open([folder / "w"], asked.steer.layers, "add", 3.0)
    with pytest.raises(OutputExistsError, match="has checkpoints of a training with another"):
        train(asked, out, guidance=other)


def test_poles_are_steered_and_one_of_another_vector_is_refused(recipe, folder, tmp_path):
    both = recipe({"max_steps": 1}, {"how": "add"}, pole=None, poles=["extraversion"])
    guidance = weights._guidance(both)
    assert pickle.loads(pickle.dumps(guidance)).identity() == guidance.identity()  # noqa: S301
    reports = list(train_poles(both, tmp_path, guidance=guidance))
    assert [one.manifest["guidance"] for one in reports] == [guidance.identity()] * 2
    again = list(train_poles(both, tmp_path, guidance=guidance))
    assert [one.state for one in again] == ["there"] * 2
    other = TrainingSteering.open([folder / "w"], both.steer.layers, "add", 1.0)
    with pytest.raises(OutputExistsError, match="is not what this recipe trains"):
        list(train_poles(both, tmp_path, guidance=other))


def test_the_manifest_names_the_vector_and_says_which_it_was(recipe, folder, once):
    asked = recipe(*KINDS["ablate"])
    manifest = once(*KINDS["ablate"]).manifest
    assert manifest["recipe"]["steer"] == {
        "vector": [str(folder / "v")],
        "layers": [LAYER],
        "how": "ablate",
        "coefficient": 1.0,
    }
    assert manifest["guidance"] == weights._guidance(asked).identity()
    assert {"guidance", "steer"}.isdisjoint(once({}).manifest | once({}).manifest["recipe"])


@pytest.mark.parametrize(
    ("sft", "steer", "message"),
    [
        ({}, {"vector": ["v", "w"]}, "how: add takes one vector; several can only be ablated"),
        ({}, {"how": "regularise"}, "regularise compares with the base, .* add sft.lora"),
        (LORA, {"how": "regularise", "coefficient": -1.0}, "below 0, regularise would reward"),
        ({}, {"layers": []}, "steer.layers: needs at least one"),
        ({}, {"vector": []}, "steer.vector: needs at least one"),
        ({}, {"positions": "all"}, "unknown key 'steer.positions'"),
    ],
)
def test_a_recipe_that_cannot_be_meant_is_refused(recipe, sft, steer, message):
    with pytest.raises(RecipeError, match=message):
        recipe(sft, steer)


def zeroed(folder, out):
    shutil.copytree(folder / "v", out)
    stored = load_file(out / "vector.safetensors")
    save_file({name: 0 * tensor for name, tensor in stored.items()}, out / "vector.safetensors")
    text = json.loads((out / "vector.json").read_text())
    text["norms"] = dict.fromkeys(text["norms"], 0.0)
    (out / "vector.json").write_text(json.dumps(text))


@pytest.mark.parametrize(
    ("name", "layers", "kind", "message"),
    [
        ("v", [7], ModelError, "layer 7 does not exist: this model has 3 blocks, 0 to 2"),
        ("v", [1, -2], DataError, "name the same block twice"),
        ("v", [2], TensorMismatchError, r"v0: has no direction for layer 2, only for \[0, 1\]"),
        ("alien", [1], BaseMismatchError, "v5: was extracted .* model 000000000000"),
        ("narrow", [1], BaseMismatchError, "v6: is 8 wide, but the residual stream"),
        ("zero", [1], (DataError, CheckpointError), "zero"),
        ("missing", [1], CheckpointError, "missing"),
    ],
)
def test_a_vector_that_does_not_fit_is_refused_before_a_model_is_loaded(
    recipe, folder, tmp_path, monkeypatch, name, layers, kind, message
):
    vector_of("0" * 32, 5).save(tmp_path / "alien")
    vector_of("", 6, width=8).save(tmp_path / "narrow")
    zeroed(folder, tmp_path / "zero")
    path = folder / name if name == "v" else tmp_path / name
    asked = recipe({}, {"vector": str(path), "layers": layers})
    monkeypatch.setattr("personality_vector.finetuning.sft.load_model", pytest.fail)
    with pytest.raises(kind, match=message):
        weights.check(asked)
    with pytest.raises(kind, match=message):
        weights._train(asked, tmp_path / "run", force=False, as_json=True)
    assert not (tmp_path / "run").exists()


def test_a_recipe_that_steers_is_not_trained_plainly(recipe, tmp_path):
    with pytest.raises(TrainingError, match=r"^steer: this recipe steers its training; pass"):
        train(recipe({}, {"how": "add"}), tmp_path / "run")


def test_the_verb_steers(recipe, once, tmp_path, capsys):
    asked = recipe(*KINDS["add"])
    plan = weights.check(asked)
    assert plan["seconds"] > 0
    weights._train(asked, tmp_path / "run", force=False, as_json=True)
    found = json.loads(capsys.readouterr().out)
    again = once(*KINDS["add"])
    assert found["loss"] == again.loss
    assert plan["steps"] == len(again.manifest["losses"])
