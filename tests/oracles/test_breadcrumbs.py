"""Model breadcrumbs, restated from Davari and Belilovsky 2023, against what a merge writes."""

import numpy as np
import pytest

from personality_vector import Output, merge

SIZES = [1200, 500, 231, 150_063]
ALPHAS = [1.0, -0.5, 0.25]


def masked(vector: np.ndarray, beta: float, gamma: float) -> np.ndarray:
    """Without the smallest share ``beta`` and the largest share ``gamma`` of each tensor."""
    parts = []
    for part in np.split(vector, np.cumsum(SIZES)[:-1]):
        order = np.argsort(-abs(part))
        middle = order[int(gamma * len(part)) : int(round((1 - beta) * len(part), 6))]
        kept = np.zeros_like(part)
        kept[middle] = part[middle]
        parts.append(kept)
    return np.concatenate(parts)


@pytest.mark.parametrize(("beta", "gamma"), [(0.85, 0.01), (0.5, 0.2), (0.0, 0.1), (0.3, 0.0)])
@pytest.mark.parametrize("factor", [1.0, 0.75])
def test_a_merge_is_breadcrumbs_bit_for_bit(exact, flat, tmp_path, beta, gamma, factor):
    base, tuned = exact
    start = flat(base)
    options = {"beta": beta, "gamma": gamma, "lambda": factor}
    terms = list(zip(tuned, ALPHAS, strict=True))
    small = Output(shard_size="20KB")
    out = tmp_path / "out"
    found = flat(
        merge(base, terms, out=out, method="breadcrumbs", options=options, output=small).path
    )
    kept = [masked(flat(path) - start, beta, gamma) for path in tuned]
    change = sum(alpha * delta for alpha, delta in zip(ALPHAS, kept, strict=True))
    assert np.array_equal(found, (start + factor * change).astype(np.float32))
    assert (change != 0).mean() < 0.99 or beta + gamma < 0.2
