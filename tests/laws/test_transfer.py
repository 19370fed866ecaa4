"""A delta in a model that it was not taken from, through a whole merge."""

import json

import pytest
import torch
from safetensors.torch import load_file

from personality_vector import merge
from personality_vector.errors import BaseMismatchError, RecipeError, TensorMismatchError
from tests import vlms

TARGETS = [
    (family, layout)
    for family in vlms.FAMILIES
    for layout in vlms.LAYOUTS
    if (family, layout) != ("smolvlm", "native")  # the same as its legacy layout
]
ALPHA = 0.7


def weights(path):
    return load_file(path / "model.safetensors")


def as_bytes(tensor):
    return tensor.contiguous().view(torch.uint8)


def changed(text, family, names):
    """Return ``tuned - base`` in float64, by the names of the text model."""
    of, tuned = weights(text(family)), weights(text(family, tuned=1))
    return {name: tuned[name].double() - of[name].double() for name in names}


@pytest.mark.parametrize(("family", "layout"), TARGETS)
def test_the_language_part_gets_the_delta_and_the_rest_stays(text, vlm, tmp_path, family, layout):
    target = vlm(family, layout)
    summand = (text(family, tuned=1), ALPHA, text(family))
    report = merge(target, [summand], out=tmp_path / "out")
    before, after = weights(target), weights(report.path)
    own = {name: vlms.text_name(name) for name in before}
    change = changed(text, family, filter(None, own.values()))
    assert before.keys() == after.keys()
    for name, old in before.items():
        if own[name] is None:
            assert torch.equal(as_bytes(after[name]), as_bytes(old)), name
        else:
            expected = old.double() + ALPHA * change[own[name]]
            assert torch.equal(after[name], expected.to(old.dtype)), name
    found = report.manifest["terms"][0]["transfer"]
    assert found["matched"] == sum(name is not None for name in own.values()) > 0
    assert found["of"] == len(before) > found["matched"]


@pytest.mark.parametrize(("family", "layout"), TARGETS)
def test_the_merged_vlm_answers_about_an_image_as_one_edited_in_memory(
    text, vlm, tmp_path, family, layout
):
    target, of, tuned = vlm(family, layout), text(family), text(family, tuned=1)
    merged = merge(target, [(tuned, ALPHA, of)], out=tmp_path / "out").path
    edited = vlms.with_text_delta(target, of, tuned, ALPHA)
    torch.testing.assert_close(vlms.logits(merged), vlms.logits(edited))
    assert not torch.allclose(vlms.logits(merged), vlms.logits(target))
    assert len(vlms.answers(merged)) == 8


def test_side_files_of_the_target_are_kept(text, vlm, tmp_path):
    target = vlm("llava", "legacy")
    (target / "preprocessor_config.json").write_text(json.dumps({"size": 8}))
    (target / "chat_template.jinja").write_text("{{ messages }}")
    merged = merge(target, [(text("llava", tuned=1), 1.0, text("llava"))], out=tmp_path / "o")
    for name in ("config.json", "preprocessor_config.json", "chat_template.jinja"):
        assert (merged.path / name).read_bytes() == (target / name).read_bytes()


def test_two_deltas_of_two_bases_meet_in_one_model(text, vlm, tmp_path):
    """theta = theta_base + alpha * phi_domain + beta * phi_personality, each of its own base."""
    target = vlm("qwen2_vl", "native")
    domain, of_text = vlm("qwen2_vl", "native", tuned=True), text("qwen2_vl")
    terms = [(domain, 0.5), (text("qwen2_vl", tuned=1), -0.25, of_text)]
    after = weights(merge(target, terms, out=tmp_path / "out").path)
    before, tuned = weights(target), weights(domain)
    for name, old in before.items():
        change = 0.5 * (tuned[name].double() - old.double())
        own = vlms.text_name(name)
        if own is not None:
            change += -0.25 * changed(text, "qwen2_vl", [own])[own]
        torch.testing.assert_close(after[name], (old.double() + change).to(old.dtype))


def test_a_chat_vector_is_a_delta_of_another_base(text, tmp_path):
    """A + alpha (B - C)."""
    a, b, c = (text("llava", tuned=seed) for seed in (1, 2, 3))
    after = weights(merge(a, [(b, ALPHA, c)], out=tmp_path / "out").path)
    theirs = [weights(path) for path in (a, b, c)]
    for name, tensor in after.items():
        base, plus, minus = (table[name].double() for table in theirs)
        assert torch.equal(tensor, (base + ALPHA * (plus - minus)).to(tensor.dtype)), name


def test_without_of_a_delta_of_another_base_is_refused(text, vlm, tmp_path):
    from personality_vector.delta import Delta

    delta = Delta.between(text("llava"), text("llava", tuned=1))
    with pytest.raises(BaseMismatchError, match="is a delta of base"):
        merge(text("llava", tuned=2), [(delta, 1.0)], out=tmp_path / "out")
    with pytest.raises(TensorMismatchError):
        merge(vlm("llava", "legacy"), [(text("llava", tuned=1), 1.0)], out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_another_vocabulary_needs_embeddings_and_head_excluded(text, vlm, tmp_path):
    small = {"vocab_size": 64}
    summand = (text("llava", tuned=1, **small), 1.0, text("llava", **small))
    target = vlm("llava", "legacy")
    with pytest.raises(TensorMismatchError, match="exclude embeddings and head"):
        merge(target, [summand], out=tmp_path / "out")
    merged = merge(target, [summand], out=tmp_path / "out", exclude=["embeddings", "head"]).path
    before, after = weights(target), weights(merged)
    for name, old in before.items():
        own = vlms.text_name(name)
        alone = own is None or "embed_tokens" in name or "lm_head" in name
        assert torch.equal(after[name], old) == alone, name


def test_a_word_that_means_nothing_is_refused(text, vlm, tmp_path):
    summand = (text("llava", tuned=1), 1.0, text("llava"))
    with pytest.raises(RecipeError, match=r"'\*.mpl.\*' matches no tensor"):
        merge(vlm("llava", "legacy"), [summand], out=tmp_path / "out", exclude=["*.mpl.*"])
