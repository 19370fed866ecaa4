"""DARE, restated from Yu et al. 2023 with its mask drawn anew, against what a merge writes.

The mask of a term: entry ``i`` of a tensor is dropped where the ``i``-th number of a splitmix64
stream, whose key is a hash of seed, term and tensor name, is below the drop rate.
"""

import hashlib

import numpy as np
import pytest

from personality_vector import Delta, Output, merge

RATES = pytest.mark.parametrize("drop_rate", [0.3, 0.5, 0.9])
SIZES = {"a.weight": 1200, "b.weight": 500, "c.bias": 231, "d.weight": 150_063}
COLUMNS = {"a.weight": 30, "b.weight": 500, "c.bias": 3, "d.weight": 50_021}
SEED = 9


def uniform(key: int, count: int) -> np.ndarray:
    """The first numbers of the stream: splitmix64 (Steele, Lea and Flood 2014), its upper bits."""
    state = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    state += np.uint64(key)
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    state ^= state >> np.uint64(31)
    return (state >> np.uint64(40)).astype(float) / 2**24


def numbers(identity: str, occurrence: int = 0) -> np.ndarray:
    """The numbers of a term, for all tensors by name."""
    drawn = []
    for name, size in sorted(SIZES.items()):
        text = f"{SEED}:{identity}:{occurrence}:{name}"
        digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
        drawn.append(uniform(int.from_bytes(digest, "big") >> 1, size))
    return np.concatenate(drawn)


@pytest.fixture
def run(exact, flat, tmp_path):
    """Return the flat base, ``kept(rate)`` of each delta, and ``write(alphas, method, ...)``."""
    base, tuned = exact
    start = flat(base)

    def write(alphas, method="dare", **options):
        out = tmp_path / f"out-{len(list(tmp_path.iterdir()))}"
        terms = list(zip(tuned, alphas, strict=False))
        small = Output(shard_size="20KB")
        return flat(
            merge(
                base, terms, out=out, method=method, options=options, seed=SEED, output=small
            ).path
        )

    def rescaled(drop_rate):
        """``(1 - m) * delta / (1 - p)`` of each delta."""
        masks = [numbers(Delta.between(base, path).identity) < drop_rate for path in tuned]
        deltas = [flat(path) - start for path in tuned]
        return [
            np.where(mask, 0.0, delta / (1 - drop_rate))
            for mask, delta in zip(masks, deltas, strict=True)
        ]

    return start, rescaled, write


@pytest.fixture
def order(exact):
    """Return in which order terms are added up: that of the identities of their deltas."""
    base, tuned = exact
    identities = [Delta.between(base, path).identity for path in tuned]
    return sorted(range(len(tuned)), key=identities.__getitem__)


def require_equal(found: np.ndarray, expected: np.ndarray) -> None:
    assert np.array_equal(found, expected.astype(np.float32))


@RATES
def test_one_delta_is_dropped_and_rescaled_bit_for_bit(run, drop_rate):
    start, rescaled, write = run
    require_equal(write([1.0], drop_rate=drop_rate), start + rescaled(drop_rate)[0])


@RATES
@pytest.mark.parametrize("alphas", [[0.5, -2.0], [1.0, 1.0]])
def test_dare_is_the_weighted_sum_of_what_was_kept(run, drop_rate, alphas):
    start, rescaled, write = run
    kept = rescaled(drop_rate)
    expected = start + 0.75 * (alphas[0] * kept[0] + alphas[1] * kept[1])
    require_equal(write(alphas, drop_rate=drop_rate, **{"lambda": 0.75}), expected)


@RATES
@pytest.mark.parametrize("consensus", ["mean", "sum"])
@pytest.mark.parametrize("election", ["mass", "count"])
def test_dare_ties_elects_among_what_was_kept(run, order, drop_rate, consensus, election):
    start, rescaled, write = run
    rows = np.stack(rescaled(drop_rate)) * [[0.5], [-1.0], [0.25]]
    rows = rows[order]
    elected = np.sign((rows if election == "mass" else np.sign(rows)).sum(axis=0))
    agrees = (np.sign(rows) == elected) & (elected != 0)
    total = np.where(agrees, rows, 0.0).sum(axis=0)
    expected = total / np.maximum(agrees.sum(axis=0), 1) if consensus == "mean" else total
    given = {"drop_rate": drop_rate, "consensus": consensus, "election": election}
    require_equal(write([0.5, -1.0, 0.25], "dare_ties", **given), start + expected)


def test_the_second_time_a_delta_is_given_it_draws_another_mask(exact, flat, tmp_path):
    base, tuned = exact
    start, identity = flat(base), Delta.between(base, tuned[0]).identity
    delta = flat(tuned[0]) - start
    given = {"method": "dare", "options": {"drop_rate": 0.5}, "seed": SEED}
    path = merge(base, [(tuned[0], 0.25), (tuned[0], 0.5)], out=tmp_path / "out", **given).path
    masks = [numbers(identity, occurrence) >= 0.5 for occurrence in (0, 1)]
    require_equal(flat(path), start + 0.25 * masks[0] * delta * 2 + 0.5 * masks[1] * delta * 2)


def test_masks_of_terms_and_tensors_are_independent(run):
    start, _, write = run
    kept = np.stack([write(np.eye(3)[i].tolist(), drop_rate=0.5) != start for i in range(3)])
    correlation = np.corrcoef(kept)
    assert abs(correlation - np.eye(3)).max() < 4 / len(start) ** 0.5
    a, b = kept[0][:500], kept[0][1200:1700]
    assert abs(np.corrcoef(a, b)[0, 1]) < 4 / 500**0.5


def rates(delta: np.ndarray, drop_rate: float, epsilon: float) -> np.ndarray:
    """DELLA's drop rates: in each row from the largest magnitude to the smallest, evenly spaced."""
    found, at = [], 0
    for name, size in sorted(SIZES.items()):
        for row in delta[at : at + size].reshape(-1, COLUMNS[name]):
            ranks = np.empty(len(row))
            ranks[np.argsort(-abs(row))] = np.arange(len(row))
            found.append(drop_rate - epsilon / 2 + epsilon * ranks / (len(row) - 1))
        at += size
    return np.concatenate(found)


@pytest.mark.parametrize(("drop_rate", "epsilon"), [(0.5, 0.2), (0.3, 0.6), (0.7, 0.0)])
def test_della_drops_small_entries_more_often(exact, flat, run, drop_rate, epsilon):
    """Deep et al. 2024, with the mask drawn anew: which entries, and what is left of them."""
    base, tuned = exact
    start, _, write = run
    delta = flat(tuned[0]) - start
    rate = rates(delta, drop_rate, epsilon)
    kept = numbers(Delta.between(base, tuned[0]).identity) >= rate
    found = write([1.0], "della", drop_rate=drop_rate, epsilon=epsilon) - start
    assert np.array_equal(found != 0, kept)
    np.testing.assert_allclose(found, np.where(kept, delta / (1 - rate), 0.0), atol=2**-20)
    top = abs(delta) >= np.median(abs(delta[-SIZES["d.weight"] :]))
    assert kept[top].mean() - kept[~top].mean() == pytest.approx(epsilon / 2, abs=0.05)
