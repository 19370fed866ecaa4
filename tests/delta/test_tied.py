"""An adapter of the head or of the embeddings of a model that ties the two: both become its own."""

import json
import shutil
import warnings

import pytest
import torch
from safetensors.torch import load_file, save_file

import personality_vector as pv
from personality_vector.checkpoint import Checkpoint
from personality_vector.errors import TensorMismatchError
from personality_vector.merging.live import live_edit
from personality_vector.subject.models import load_model

IDS = torch.tensor([[5, 9, 33, 60, 7]])
KINDS = {
    "head": {"target_modules": ["lm_head"]},
    "head and layers": {"target_modules": r".*(lm_head|q_proj|c_attn)"},
    "a head of its own": {"modules_to_save": ["lm_head"]},
    "embeddings": {"target_modules": ["embed_tokens"]},
    "embeddings of their own": {"modules_to_save": ["embed_tokens"]},
    "both": {"target_modules": ["embed_tokens", "lm_head"]},
    "both of their own": {"modules_to_save": ["embed_tokens", "lm_head"]},
    "DoRA of the head": {"target_modules": ["lm_head"], "use_dora": True},
}
OF_GPT2 = {"embed_tokens": "wte"}


@torch.no_grad()
def logits(model):
    return model(IDS).logits


def by_peft(path, base):
    """Restate: the adapted model itself, in which nothing is merged."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    with warnings.catch_warnings(action="ignore"):
        return logits(
            PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), path).eval()
        )


@pytest.fixture
def tied(pico, adapter):
    def make(family, how):
        base = pico(family, tied=True)
        named = {key: renamed(value, family) for key, value in how.items()}
        if family == "gpt2":
            named.setdefault("target_modules", ["c_attn"])
        return base, adapter(family, base=base, **named)

    return make


def renamed(value, family):
    if family != "gpt2" or not isinstance(value, list):
        return value
    return [OF_GPT2.get(name, name) for name in value]


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("kind", KINDS)
def test_merged_saved_and_live_it_computes_what_peft_computes(tied, tmp_path, family, kind):
    base, path = tied(family, KINDS[kind])
    expected, plain = by_peft(path, base), load_model(base)
    assert (logits(plain) - expected).abs().max() > 1e-3
    merged = pv.merge(base, [(path, 1.0)], out=tmp_path / "merged").path
    assert json.loads((merged / "config.json").read_text())["tie_word_embeddings"] is False
    torch.testing.assert_close(logits(load_model(merged)), expected, rtol=0, atol=1e-4)
    delta = pv.Delta.from_lora(path, base)
    saved = pv.Delta.load(delta.save(tmp_path / "delta"))
    again = pv.merge(base, [(saved, 1.0)], out=tmp_path / "again").path
    for name in Checkpoint.open(merged).names:
        torch.testing.assert_close(Checkpoint.open(again)[name], Checkpoint.open(merged)[name])
    before = logits(plain)
    for one in (delta, saved):
        with live_edit(plain, one, 1.0):
            assert torch.equal(logits(plain), logits(load_model(merged if one is delta else again)))
        assert plain.get_output_embeddings().weight is plain.get_input_embeddings().weight
        assert torch.equal(logits(plain), before)
    nothing = pv.merge(base, [(path, 0.0)], out=tmp_path / "nothing").path
    assert torch.equal(logits(load_model(nothing)), before)


def test_what_changes_neither_leaves_the_two_tied(tied, tmp_path):
    base, path = tied("llama", {"target_modules": ["q_proj"]})
    merged = pv.merge(base, [(path, 1.0)], out=tmp_path / "merged").path
    assert Checkpoint.open(merged).names == Checkpoint.open(base).names
    assert (merged / "config.json").read_bytes() == (base / "config.json").read_bytes()


@pytest.mark.parametrize("names", [["embed_tokens"], ["embed_tokens", "lm_head"]])
def test_copies_that_no_training_changed_leave_them_tied(tied, tmp_path, names):
    """PEFT stores embeddings and head beside the factors where a vocabulary may have grown."""
    base, path = tied("llama", {"target_modules": ["q_proj"], "modules_to_save": names})
    file = path / "adapter_model.safetensors"
    table, stored = Checkpoint.open(base)["model.embed_tokens.weight"], load_file(file)
    changed = 0.5 if len(names) > 1 else 0.0  # equal copies of both are still one parameter
    copies = {key: table + changed for key in stored if "lora_" not in key}
    save_file(stored | copies, file)
    merged = Checkpoint.open(pv.merge(base, [(path, 1.0)], out=tmp_path / "merged").path)
    assert merged.names == Checkpoint.open(base).names
    torch.testing.assert_close(merged["model.embed_tokens.weight"], table + changed)


def test_terms_that_tie_and_untie_are_not_mixed(tied, pico_tuned, tmp_path):
    base, path = tied("llama", KINDS["head"])
    tuned = pico_tuned("llama", tied=True)
    terms = [(path, 1.0), (tuned, 0.5)]
    with pytest.raises(TensorMismatchError, match=r"to which .* ties its head"):
        pv.merge(base, terms, out=tmp_path / "out")
    merged = pv.merge(base, terms, out=tmp_path / "out", exclude=["embeddings"]).path
    assert "lm_head.weight" in Checkpoint.open(merged).names
    merged = pv.merge(base, [(path, 1.0)], out=tmp_path / "two", exclude=["norms"]).path
    assert "lm_head.weight" in Checkpoint.open(merged).names


def test_a_head_of_a_model_without_one_is_refused(pico, adapter, tmp_path):
    base = shutil.copytree(pico("llama", tied=True), tmp_path / "base")
    path = adapter("llama", base=base, target_modules=["lm_head"])
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": False}))
    with pytest.raises(TensorMismatchError, match=r"adapts lm_head\.weight, which the base"):
        pv.merge(base, [(path, 1.0)], out=tmp_path / "out")


@pytest.mark.parametrize(("family", "is_base"), [("llama", True), ("llama", False), ("gpt2", True)])
def test_a_fine_tune_is_restored_where_only_one_of_the_two_ties_its_head(
    pico, tmp_path, family, is_base
):
    tied, own = pico(family, tied=True), tmp_path / "own"
    model = load_model(tied)
    model.config.tie_word_embeddings = False
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach() * 1.5 + 0.01)
    model.save_pretrained(own)
    base, tuned = (tied, own) if is_base else (own, tied)
    expected, plain = logits(load_model(tuned)), load_model(base)
    before = logits(plain)
    assert (before - expected).abs().max() > 1e-2
    delta = pv.Delta.between(base, tuned)
    for storage in ("reference", "float32"):
        saved = pv.Delta.load(delta.save(tmp_path / storage, storage=storage))
        merged = pv.merge(base, [(saved, 1.0)], out=tmp_path / f"merged {storage}").path
        torch.testing.assert_close(logits(load_model(merged)), expected, rtol=0, atol=0)
    with live_edit(plain, delta, 1.0):
        torch.testing.assert_close(logits(plain), expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(logits(plain), before, rtol=0, atol=0)
