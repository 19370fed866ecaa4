"""DARE, restated from Yu et al. 2023 given its mask, against what a merge writes."""

import numpy as np
import pytest

from personality_vector import merge

RATES = pytest.mark.parametrize("drop_rate", [0.3, 0.5, 0.9])


@pytest.fixture
def run(exact, flat, tmp_path):
    """Return ``run(alphas, method, **options)``: the flat change that a merge wrote, and deltas."""
    base, tuned = exact
    start = flat(base)

    def write(alphas, method="dare", **options):
        out = tmp_path / f"out-{len(list(tmp_path.iterdir()))}"
        terms = list(zip(tuned, alphas, strict=False))
        return flat(merge(base, terms, out=out, method=method, options=options, seed=9).path)

    return start, [flat(path) - start for path in tuned], write


def rescaled(run, drop_rate: float) -> list[np.ndarray]:
    """``(1 - m) * delta / (1 - p)`` of each delta, with the mask seen in a merge of it alone."""
    start, deltas, write = run
    alone = [write(np.eye(3)[i].tolist(), drop_rate=drop_rate) for i in range(3)]
    kept = [found != start for found in alone]
    return [
        np.where(k, d / np.float32(1 - drop_rate), np.float32(0))
        for k, d in zip(kept, deltas, strict=True)
    ]


@RATES
def test_one_delta_is_dropped_and_rescaled_bit_for_bit(run, drop_rate):
    start, _, write = run
    expected = start + rescaled(run, drop_rate)[0]
    assert write([1.0], drop_rate=drop_rate).tobytes() == expected.tobytes()


@RATES
@pytest.mark.parametrize("alphas", [[0.5, -2.0], [1.0, 1.0]])
def test_dare_is_the_weighted_sum_of_what_was_kept(run, drop_rate, alphas):
    start, _, write = run
    kept = rescaled(run, drop_rate)
    change = np.float32(alphas[0]) * kept[0] + np.float32(alphas[1]) * kept[1]
    expected = start + np.float32(0.75) * change
    found = write(alphas, drop_rate=drop_rate, **{"lambda": 0.75})
    assert found.tobytes() == expected.tobytes()


@RATES
@pytest.mark.parametrize("consensus", ["mean", "sum"])
def test_dare_ties_elects_among_what_was_kept(run, drop_rate, consensus):
    start, _, write = run
    kept = rescaled(run, drop_rate)
    one, two = np.float32(0.5) * kept[0], np.float32(-1.0) * kept[1]
    elected = np.sign(one + two)
    agree = [(np.sign(term) == elected) & (elected != 0) for term in (one, two)]
    total = sum(np.where(a, t, np.float32(0)) for a, t in zip(agree, (one, two), strict=True))
    count = np.maximum(agree[0].astype(np.float32) + agree[1], np.float32(1))
    expected = start + (total / count if consensus == "mean" else total)
    found = write([0.5, -1.0], "dare_ties", drop_rate=drop_rate, consensus=consensus)
    assert found.tobytes() == expected.tobytes()


def test_masks_of_terms_and_tensors_are_independent(run):
    start, _, write = run
    kept = np.stack([write(np.eye(3)[i].tolist(), drop_rate=0.5) != start for i in range(3)])
    correlation = np.corrcoef(kept)
    assert abs(correlation - np.eye(3)).max() < 4 / len(start) ** 0.5
    a, b = kept[0][:500], kept[0][1200:1700]
    assert abs(np.corrcoef(a, b)[0, 1]) < 4 / 500**0.5
