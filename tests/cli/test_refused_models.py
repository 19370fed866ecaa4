"""Every verb that takes a model refuses one that is quantised, or that would run code."""

import json
import shutil

import pytest

VERBS = {
    "merge": lambda lab, model: ["merge", lab.merge, "--set", f"base={model}"],
    "merge of a quantised fine-tune": lambda lab, model: [
        *("merge", "--base", lab.base, "--term", f"{model}=1"),
    ],
    "diff": lambda lab, model: ["diff", model, lab.tuned],
    "diff of a fine-tune": lambda lab, model: ["diff", lab.base, model],
    "train": lambda lab, model: ["train", lab.train, "--set", f"base={model}"],
    "sweep": lambda lab, model: ["sweep", lab.sweep, "--set", f"base={model}"],
    "compare": lambda lab, model: ["compare", lab.compare, "--set", f"base={model}"],
    "eval": lambda lab, model: ["eval", lab.eval, "--set", f"model={model}"],
    "extract": lambda lab, model: ["steer", "extract", lab.extract, "--set", f"model={model}"],
}


@pytest.fixture
def model(lab, tmp_path):
    """Return a copy of a model, and a function that changes its config."""
    path = shutil.copytree(lab.base, tmp_path / "model")

    def change(**keys):
        config = json.loads((path / "config.json").read_text())
        (path / "config.json").write_text(json.dumps({**config, **keys}))
        return path

    return change


@pytest.mark.parametrize("words", VERBS.values(), ids=VERBS)
def test_a_quantised_model_is_refused_by_that_word(pvec, lab, model, tmp_path, words):
    path = model(quantization_config={"quant_method": "fp8"})
    done = pvec(*words(lab, path), "--out", tmp_path / "out")
    assert done.code == 1
    assert f"{path / 'config.json'}: says that this checkpoint is quantised (fp8)" in done.err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("verb", ["train", "sweep", "eval", "extract"])
def test_a_model_that_needs_code_is_refused_and_nobody_is_asked(
    pvec, lab, model, tmp_path, verb, monkeypatch
):
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked"))
    path = model(model_type="mine", auto_map={"AutoConfig": "mine.Mine"})
    (path / "mine.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    done = pvec(*VERBS[verb](lab, path), "--out", tmp_path / "out")
    assert done.code == 1
    assert "needs code of its own, which is never run" in done.err
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "ran").exists()
