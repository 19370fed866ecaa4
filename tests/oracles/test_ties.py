"""TIES, restated from Yadav et al. 2023 on flat vectors, against what a merge writes."""

import numpy as np
import pytest

from personality_vector import merge

SIZES = [1200, 500, 231]
ALPHAS = [1.0, -0.5, 0.25]


def top(vector: np.ndarray, density: float) -> np.ndarray:
    k = max(1, int(density * len(vector)))
    return np.where(abs(vector) >= np.sort(abs(vector))[-k], vector, np.float32(0))


def trimmed(vector: np.ndarray, density: float, trim: str) -> np.ndarray:
    if trim == "global":
        return top(vector, density)
    return np.concatenate([top(part, density) for part in np.split(vector, np.cumsum(SIZES)[:-1])])


def ties(deltas, alphas, density, trim, consensus, factor) -> np.ndarray:
    """Trim, elect, and the disjoint mean or sum, in float32."""
    rows = np.stack(
        [trimmed(d, density, trim) * np.float32(a) for d, a in zip(deltas, alphas, strict=True)]
    )
    elected = np.sign(rows.sum(axis=0))
    agrees = (np.sign(rows) == elected) & (elected != 0)
    total = np.where(agrees, rows, np.float32(0)).sum(axis=0, dtype=np.float32)
    count = np.maximum(agrees.sum(axis=0), 1).astype(np.float32)
    return np.float32(factor) * (total / count if consensus == "mean" else total)


@pytest.mark.parametrize("trim", ["global", "per_tensor"])
@pytest.mark.parametrize("consensus", ["mean", "sum"])
@pytest.mark.parametrize(("density", "factor"), [(0.2, 1.0), (0.7, 0.75), (1.0, 1.5), (1e-9, 1.0)])
def test_a_merge_is_ties_bit_for_bit(exact, flat, tmp_path, trim, consensus, density, factor):
    base, tuned = exact
    options = {"density": density, "trim": trim, "consensus": consensus, "lambda": factor}
    terms = list(zip(tuned, ALPHAS, strict=True))
    found = flat(merge(base, terms, out=tmp_path / "out", method="ties", options=options).path)
    start = flat(base)
    deltas = [flat(path) - start for path in tuned]
    expected = start + ties(deltas, ALPHAS, density, trim, consensus, factor)
    assert found.tobytes() == expected.tobytes()


def test_the_two_scopes_of_trimming_keep_other_entries(exact, flat):
    base, tuned = exact
    delta = flat(tuned[0]) - flat(base)
    by_scope = [trimmed(delta, 0.2, trim) != 0 for trim in ("global", "per_tensor")]
    assert (by_scope[0] != by_scope[1]).mean() > 0.1


@pytest.mark.parametrize("consensus", ["mean", "sum"])
def test_where_the_votes_cancel_nothing_is_added(exact, flat, tmp_path, consensus):
    base, tuned = exact
    options = {"density": 0.5, "consensus": consensus}
    terms = [(tuned[0], 0.5), (tuned[0], -0.5)]
    path = merge(base, terms, out=tmp_path / "out", method="ties", options=options).path
    assert flat(path).tobytes() == flat(base).tobytes()


def test_a_term_with_alpha_0_does_not_dilute_the_mean(exact, flat, tmp_path):
    base, tuned = exact
    terms = [(tuned[0], 1.0), (tuned[1], 0.0), (tuned[2], 0.0)]
    path = merge(base, terms, out=tmp_path / "out", method="ties", options={"density": 0.3}).path
    start = flat(base)
    expected = start + top(flat(tuned[0]) - start, 0.3)
    assert flat(path).tobytes() == expected.tobytes()
