"""A merge is computed again and compared: the same bits, rounding, another merge, or no answer."""

import shutil
import warnings

import pytest
import torch
from safetensors.torch import load_file, save_file

import personality_vector as pv
from personality_vector.checkpoint import Checkpoint
from personality_vector.errors import UndecidedError
from personality_vector.merging.plan import plan_merge
from personality_vector.merging.verifying import verify_merge
from personality_vector.subject.models import load_model
from tests.rows import EVERY_ROW


def compared(written, base, terms, **how):
    return verify_merge(plan_merge(base, pv.merged(base, terms, **how)), Checkpoint.open(written))


@EVERY_ROW
def test_a_merge_by_this_tool_is_the_same_to_the_bit(pico, pico_tuned, tmp_path, method, options):
    base = pico("llama", "bfloat16")
    terms = [
        (pico_tuned("llama", "bfloat16", seed), alpha) for seed, alpha in ((0, 0.7), (1, -0.4))
    ]
    how = {"method": method, "options": options, "seed": 5}
    pv.merge(base, terms, out=tmp_path / "out", **how)
    assert compared(tmp_path / "out", base, terms, **how).entries == 0


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_merge_by_peft_is_the_same_but_for_rounding(pico, tmp_path, dtype):
    from peft import LoraConfig, get_peft_model

    base = pico("llama", dtype)
    config = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)
    with warnings.catch_warnings(action="ignore"):
        model = get_peft_model(load_model(base), config)
        model.save_pretrained(tmp_path / "adapter")
        model.merge_and_unload().to(getattr(torch, dtype)).save_pretrained(tmp_path / "merged")
    found = compared(tmp_path / "merged", base, [(tmp_path / "adapter", 1.0, base)])
    assert found.is_rounding
    assert not compared(tmp_path / "merged", base, [(tmp_path / "adapter", 1.01, base)]).is_rounding


def test_what_differs_is_counted_and_named(pico, pico_tuned, tmp_path):
    base, terms = pico("llama"), [(pico_tuned("llama"), 0.5)]
    pv.merge(base, terms, out=tmp_path / "out")
    shutil.copytree(tmp_path / "out", tmp_path / "other")
    weights = load_file(tmp_path / "other" / "model.safetensors")
    weights["model.norm.weight"][3] += 0.25
    save_file(weights, tmp_path / "other" / "model.safetensors")
    (tmp_path / "other" / "MANIFEST.json").unlink()
    found = compared(tmp_path / "other", base, terms)
    assert (found.entries, found.coarse, found.tensor) == (1, 1, "model.norm.weight")
    assert found.largest == pytest.approx(0.25, abs=1e-6)


def test_what_cannot_be_told_has_its_own_error(pico, pico_tuned, tmp_path):
    base, terms = pico("llama"), [(pico_tuned("llama"), 1.0)]
    pv.merge(base, terms, out=tmp_path / "out", method="dare", seed=1)
    with pytest.raises(UndecidedError, match="its masks are random; give the seed"):
        compared(tmp_path / "out", base, terms, method="dare", seed=2)
    with pytest.raises(UndecidedError, match="cannot tell whether this is the merge"):
        compared(pico("gpt_neox"), base, terms)
