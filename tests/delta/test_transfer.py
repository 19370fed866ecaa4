"""A delta may move to a relative of its base: every number arrives, or the move is refused."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from personality_vector.checkpoint import Checkpoint
from personality_vector.checkpoint.names import kind
from personality_vector.delta import Delta
from personality_vector.delta.sources import whole
from personality_vector.delta.transfer import transferred
from personality_vector.errors import (
    BaseMismatchError,
    CheckpointError,
    RecipeError,
    TensorMismatchError,
)
from personality_vector.traits import Pole
from tests import vlms

TARGETS = [
    (family, layout)
    for family in vlms.FAMILIES
    for layout in vlms.LAYOUTS
    if (family, layout) != ("smolvlm", "native")  # the same as its legacy layout
]


NOTHING = vlms.excluding()


@pytest.fixture
def moving(text) -> Callable[..., Any]:
    """Return ``moving(family, target, exclude)``: the delta of its text model, moved."""

    def move(family: str, target: Path, exclude: Callable[[str], bool] = NOTHING) -> Any:
        of = Checkpoint.open(text(family))
        delta = Delta.between(of, text(family, tuned=0), pole="openness:high")
        return *transferred(delta, of, Checkpoint.open(target), exclude), delta

    return move


def added(moved: Delta, target: Path, alpha: float, out: Path) -> Path:
    """Write ``target + alpha * moved``, under the names that ``target`` has on disk."""
    shutil.copytree(target, out)
    tensors = load_file(target / "model.safetensors")
    for name in moved.names:
        change = moved.source.part(name, whole(moved.source, name)).reshape(moved.shape(name))
        tensors[name] = (tensors[name].double() + alpha * change).to(tensors[name].dtype)
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    return out


@pytest.mark.parametrize(("family", "layout"), TARGETS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_language_part_gets_the_delta_and_nothing_else_does(
    moving, text, vlm, tmp_path, family, layout, dtype
):
    target = vlm(family, layout, dtype=dtype)
    moved, transfer, _ = moving(family, target)
    written = added(moved, target, 0.7, tmp_path / "written")
    in_memory = vlms.with_text_delta(target, text(family), text(family, tuned=0), 0.7)
    loaded = dict(vlms.load(written).named_parameters())
    for name, weight in in_memory.named_parameters():
        assert torch.equal(loaded[name], weight), name
    assert transfer.matched == moved.names
    assert len(moved.names) == len(Checkpoint.open(text(family)).names)
    assert sorted(transfer.matched + transfer.left_alone) == list(Checkpoint.open(target).names)
    assert {kind(name) for name in transfer.left_alone} == {"vision"}


@pytest.mark.parametrize(("family", "layout"), TARGETS)
def test_the_model_still_answers_about_an_image(moving, text, vlm, tmp_path, family, layout):
    target = vlm(family, layout)
    written = added(moving(family, target)[0], target, 1.0, tmp_path / "written")
    in_memory = vlms.with_text_delta(target, text(family), text(family, tuned=0), 1.0)
    assert vlms.answers(written) == vlms.answers(in_memory) != vlms.answers(target)
    assert torch.equal(vlms.logits(written), vlms.logits(in_memory))


def test_the_layout_of_transformers_5_5_is_met_as_well(moving, vlm, tmp_path):
    hybrid = {
        "model.language_model.": "model.language_model.model.",
        "lm_head.": "language_model.lm_head.",
        "model.vision_tower.": "model.vision_tower.vision_model.",
    }
    native = vlm("llava", "native")
    target = Path(shutil.copytree(native, tmp_path / "hybrid"))
    tensors = load_file(native / "model.safetensors")
    for before, after in hybrid.items():
        tensors = {name.replace(before, after, 1): tensors[name] for name in tensors}
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    (moved, transfer, _), (expected, _, _) = moving("llava", target), moving("llava", native)
    written = added(moved, target, 1.0, tmp_path / "written")
    assert len(transfer.matched) == len(expected.names)
    assert torch.equal(
        vlms.logits(written), vlms.logits(added(expected, native, 1.0, tmp_path / "expected"))
    )


@pytest.mark.parametrize("family", ["llava", "qwen2_vl", "gemma3"])
@pytest.mark.parametrize(("there", "here"), [("legacy", "native"), ("native", "legacy")])
def test_a_delta_of_a_vlm_moves_whole_to_the_other_layout(vlm, family, there, here):
    of, target = (Checkpoint.open(vlm(family, layout)) for layout in (there, here))
    delta = Delta.between(of, vlm(family, there, tuned=True))
    expected = Delta.between(target, vlm(family, here, tuned=True))
    moved, transfer = transferred(delta, of, target, NOTHING)
    assert of.names != target.names == moved.names
    assert transfer.left_alone == ()
    assert all(torch.equal(moved[name], expected[name]) for name in moved.names)


def test_the_language_part_of_a_vlm_delta_moves_to_the_text_model(vlm, text):
    of, target = Checkpoint.open(vlm("gemma3")), Checkpoint.open(text("gemma3"))
    delta = Delta.between(of, vlm("gemma3", tuned=True))
    with pytest.raises(TensorMismatchError, match=r"exclude 'multi_modal_projector\*' to leave"):
        transferred(delta, of, target, NOTHING)
    moved, _ = transferred(delta, of, target, vlms.excluding("vision"))
    assert moved.names == target.names
    assert all(torch.equal(moved[n], delta[f"language_model.{n}"]) for n in moved.names)


@pytest.mark.parametrize("family", ["gpt_neox", "phi", "qwen2"])
def test_models_of_the_same_names_match_name_by_name(pico, pico_tuned, family):
    of, target = Checkpoint.open(pico(family)), Checkpoint.open(pico_tuned(family, seed=1))
    delta = Delta.between(of, pico_tuned(family), pole="openness:low", label="x")
    moved, transfer = transferred(delta, of, target, NOTHING)
    assert moved.names == transfer.matched == delta.names
    assert (moved.base, delta.base) == (target.fingerprint, of.fingerprint)
    assert (moved.label, moved.pole) == ("x", Pole("openness", "low"))
    assert all(torch.equal(moved[name], delta[name]) for name in delta.names)


def test_parts_and_files_are_those_of_the_source_and_the_tuned_model_is_not_its_own(moving, vlm):
    moved, _, delta = moving("llava", vlm("llava"))
    ours, theirs = "language_model.model.norm.weight", "model.norm.weight"
    part = slice(3, 20)
    assert torch.equal(moved.source.part(ours, part), delta.source.part(theirs, part))
    assert moved.source.inputs == delta.source.inputs
    assert delta.source.tuned_part(theirs, part, torch.zeros(17)) is not None
    assert moved.source.tuned_part(ours, part, torch.zeros(17)) is None


def test_a_file_that_changed_is_noticed_through_the_move(text, vlm, tmp_path):
    tuned = Path(shutil.copytree(text("llava", tuned=0), tmp_path / "tuned"))
    of = Checkpoint.open(text("llava"))
    moved, _ = transferred(Delta.between(of, tuned), of, Checkpoint.open(vlm("llava")), NOTHING)
    assert moved[moved.names[0]].numel()
    moved.source.require_unchanged()
    with (tuned / "model.safetensors").open("ab") as file:
        file.write(b"\0")
    with pytest.raises(CheckpointError, match="was changed while it was being read"):
        moved.source.require_unchanged()


def test_a_saved_move_is_a_delta_of_the_target(moving, vlm, tmp_path):
    moved, _, _ = moving("llava", vlm("llava"))
    loaded = Delta.load(moved.save(tmp_path / "saved"))
    assert (loaded.base, loaded.identity) == (moved.base, moved.identity)
    assert all(torch.equal(loaded[name], moved[name]) for name in moved.names)


def test_a_move_of_a_saved_delta_is_not_what_was_saved(text, vlm, tmp_path):
    of = Checkpoint.open(text("llava"))
    saved = Delta.load(Delta.between(of, text("llava", tuned=0)).save(tmp_path / "saved"))
    moved, _ = transferred(saved, of, Checkpoint.open(vlm("llava")), NOTHING)
    assert saved.directory is not None
    assert moved.directory is None
    assert torch.equal(moved["language_model.model.norm.weight"], saved["model.norm.weight"])


def test_identity_tells_which_numbers_and_not_where(moving, vlm):
    moved, _, delta = moving("llava", vlm("llava"))
    native, _, _ = moving("llava", vlm("llava", "native"))
    assert moved.identity == native.identity == delta.identity
    parts = [
        moving("llava", vlm("llava"), vlms.excluding(*kinds))[0].identity
        for kinds in (["norms"], ["head"], ["norms", "head"])
    ]
    assert len({*parts, delta.identity}) == 4
    assert moving("llava", vlm("llava", "native"), vlms.excluding("norms"))[0].identity == parts[0]


def test_what_is_excluded_stays(moving, vlm):
    moved, transfer, delta = moving("llava", vlm("llava"), vlms.excluding("norms", "embeddings"))
    kinds = [kind(name) for name in delta.names]
    assert {kind(name) for name in transfer.excluded} == {"norms", "embeddings"}
    assert len(transfer.excluded) == kinds.count("norms") + kinds.count("embeddings")
    assert len(moved.names) == len(delta.names) - len(transfer.excluded)
    assert {kind(name) for name in moved.names} == {None, "head"}
    assert "language_model.model.embed_tokens.weight" in transfer.left_alone


def test_what_to_exclude_may_be_told_by_either_name(vlm):
    of, target = Checkpoint.open(vlm("llava")), Checkpoint.open(vlm("llava", "native"))
    delta = Delta.between(of, vlm("llava", tuned=True))
    expected = transferred(delta, of, target, vlms.excluding("norms"))[0].names
    on_disk = {name for name in delta.names if kind(name) == "norms"}
    canonical = {name.removeprefix("language_model.") for name in on_disk}
    for names in (on_disk, canonical):
        assert transferred(delta, of, target, names.__contains__)[0].names == expected


def test_a_transfer_says_what_it_matched(moving, vlm):
    _, transfer, _ = moving("qwen2_vl", vlm("qwen2_vl", "native"), vlms.excluding("norms", "head"))
    assert transfer.describe() == {
        "matched": 21,
        "of": 58,
        "excluded": {"lm_head.weight": 1, "model.layers.*": 4, "model.norm.weight": 1},
        "left_alone": {
            "lm_head.weight": 1,
            "model.language_model.layers.*": 4,
            "model.language_model.norm.weight": 1,
            "model.visual.*": 31,
        },
    }
    assert json.loads(json.dumps(transfer.describe())) == transfer.describe()
    assert moving("qwen2_vl", vlm("qwen2_vl"))[1].describe() == {
        "matched": 27,
        "of": 58,
        "excluded": {},
        "left_alone": {"visual.*": 31},
    }
    transfer = moving("qwen2_vl", vlm("qwen2_vl"), vlms.excluding("head"))[1]
    assert transfer.describe()["excluded"] == {"lm_head.weight": 1}


def test_an_adapter_moves_without_a_word_about_embeddings(pico, pico_tuned, adapter):
    of = Checkpoint.open(pico("llama"))
    target = pico_tuned("llama")
    delta = Delta.from_lora(adapter(target_modules=["q_proj"]), of)
    moved, transfer = transferred(delta, of, Checkpoint.open(target), NOTHING)
    assert moved.names == tuple(f"model.layers.{n}.self_attn.q_proj.weight" for n in range(3))
    assert all(torch.equal(moved[name], delta[name]) for name in moved.names)
    assert len(transfer.left_alone) == len(of.names) - 3


def test_a_delta_of_another_base_is_refused(text, vlm):
    of, tuned = Checkpoint.open(text("llava")), Checkpoint.open(text("llava", tuned=0))
    with pytest.raises(BaseMismatchError, match=f"x: is a delta of base .*, but {tuned.path} is"):
        transferred(
            Delta.between(of, tuned, label="x"), tuned, Checkpoint.open(vlm("llava")), NOTHING
        )


def test_nothing_left_is_refused(moving, vlm):
    with pytest.raises(RecipeError, match="openness:high: has 21 tensors and all are excluded"):
        moving("llava", vlm("llava"), lambda _: True)
