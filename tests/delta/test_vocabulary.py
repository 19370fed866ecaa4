"""Rows of embeddings are carried by the token that they stand for, or left alone."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

import personality_vector as pv
from personality_vector.errors import CheckpointError, TensorMismatchError
from personality_vector.subject.models import load_model

TOKENS = 101
EMBEDDINGS = ("model.embed_tokens.weight", "lm_head.weight")


@pytest.fixture
def variant(tmp_path, pico, pico_tuned):
    """Return ``variant(name, tokens, tuned=None)``: pico llama whose rows are of these tokens.

    Token ``i`` has the row that pico has at ``i``; of another token the row is -1.
    """

    def write(name, tokens, *, tuned=False, has_tokenizer=True):
        source, path = (pico_tuned if tuned else pico)("llama"), tmp_path / name
        weights = load_file(source / "model.safetensors")
        for embeddings in EMBEDDINGS:
            rows = [
                weights[embeddings][i] if i < TOKENS else -torch.ones(weights[embeddings].shape[1])
                for i in tokens
            ]
            weights[embeddings] = torch.stack(rows)
        path.mkdir()
        save_file(weights, path / "model.safetensors", {"format": "pt"})
        config = json.loads((source / "config.json").read_text()) | {"vocab_size": len(tokens)}
        (path / "config.json").write_text(json.dumps(config))
        known = {f"<{token}>": row for row, token in enumerate(tokens) if token < TOKENS}
        added = [{"id": row, "content": f"<{t}>"} for row, t in enumerate(tokens) if t >= TOKENS]
        if has_tokenizer:
            (path / "tokenizer.json").write_text(
                json.dumps({"model": {"vocab": known}, "added_tokens": added})
            )
        return path

    return write


PLAIN = list(range(TOKENS))
SHUFFLED = [(37 * token + 11) % TOKENS for token in range(TOKENS)]
LONGER = [*PLAIN, *range(TOKENS, TOKENS + 64)]


def logits(path, ids):
    with torch.no_grad():
        return load_model(path)(ids).logits


@pytest.mark.parametrize("method", ["task_arithmetic", "ties"])
def test_other_ids_of_the_same_tokens_change_nothing_in_the_merged_model(variant, tmp_path, method):
    base, target = variant("base", PLAIN), variant("target", SHUFFLED)
    tuned = variant("tuned", PLAIN, tuned=True)
    how = {"method": method, "embeddings": "match"}
    pv.merge(base, [(tuned, 0.7)], out=tmp_path / "plain", **how)
    done = pv.merge(target, [(tuned, 0.7, base)], out=tmp_path / "moved", **how)
    tokens = done.manifest["terms"][0]["transfer"]["tokens"]
    assert tokens == {"carried": TOKENS, "own": 0, "without_place": 0}
    ids, places = torch.arange(0, 60, 5)[None], torch.tensor([SHUFFLED.index(t) for t in PLAIN])
    found = logits(tmp_path / "moved", places[ids])[..., places]
    torch.testing.assert_close(found, logits(tmp_path / "plain", ids), rtol=0, atol=2e-6)


def test_tokens_that_only_the_target_has_keep_their_own_rows(variant, tmp_path, weights):
    base, tuned = variant("base", LONGER), variant("tuned", SHUFFLED, tuned=True)
    done = pv.merge(base, [(tuned, 1.0)], out=tmp_path / "out", embeddings="match")
    assert done.manifest["terms"][0]["tokens"] == {"carried": TOKENS, "own": 64, "without_place": 0}
    before, after, new = (weights(path) for path in (base, tmp_path / "out", tuned))
    for name in EMBEDDINGS:
        assert torch.equal(after[name][TOKENS:], before[name][TOKENS:])
        for row in range(TOKENS):
            assert torch.equal(after[name][row], new[name][SHUFFLED.index(row)])


def test_tokens_that_the_fine_tune_added_have_no_place(variant, tmp_path, weights):
    base, tuned = variant("base", PLAIN), variant("tuned", LONGER, tuned=True)
    with pytest.raises(TensorMismatchError, match=r"embeddings: match .* exclude embeddings and"):
        pv.merge(base, [(tuned, 1.0)], out=tmp_path / "strict")
    done = pv.merge(base, [(tuned, 1.0)], out=tmp_path / "out", embeddings="match")
    assert done.manifest["terms"][0]["tokens"]["without_place"] == 64
    assert torch.equal(
        weights(tmp_path / "out")[EMBEDDINGS[0]], weights(tuned)[EMBEDDINGS[0]][:TOKENS]
    )


@pytest.mark.parametrize("tokens", [LONGER, PLAIN], ids=["another size", "the same"])
def test_skip_leaves_them_alone_only_where_vocabularies_differ(variant, tmp_path, weights, tokens):
    base, tuned = variant("base", PLAIN), variant("tuned", tokens, tuned=True)
    pv.merge(base, [(tuned, 1.0)], out=tmp_path / "out", embeddings="skip")
    before, after = weights(base), weights(tmp_path / "out")
    assert torch.equal(before[EMBEDDINGS[0]], after[EMBEDDINGS[0]]) == (tokens is LONGER)
    assert not torch.equal(before["model.norm.weight"], after["model.norm.weight"])


def test_a_live_edit_carries_the_same_rows(variant, tmp_path):
    base, tuned = variant("base", LONGER), variant("tuned", SHUFFLED, tuned=True)
    pv.merge(base, [(tuned, 0.5)], out=tmp_path / "out", embeddings="match")
    delta, model = pv.merged(base, [(tuned, 0.5)], embeddings="match"), load_model(base)
    ids = torch.arange(0, 60, 5)[None]
    with torch.no_grad(), pv.WeightEdit(delta).applied(pv.Subject(model, None), 1.0):
        assert torch.equal(model(ids).logits, logits(tmp_path / "out", ids))


def test_without_a_tokenizer_rows_have_no_tokens(variant, tmp_path):
    base, tuned = variant("base", PLAIN), variant("tuned", LONGER, tuned=True, has_tokenizer=False)
    with pytest.raises(CheckpointError, match=r"tuned: has no tokenizer\.json, which embeddings"):
        pv.merge(base, [(tuned, 1.0)], out=tmp_path / "out", embeddings="match")
    pv.merge(base, [(tuned, 1.0)], out=tmp_path / "out", embeddings="skip")
