"""TIES, restated from Yadav et al. 2023 on flat dense vectors, against what a merge writes."""

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from personality_vector import Output, merge

SIZES = [1200, 500, 231, 150_063]
ALPHAS = [1.0, -0.5, 0.25]


def top(vector: np.ndarray, density: float) -> np.ndarray:
    """Keep the ``k`` largest magnitudes, by sorting all of them."""
    k = max(1, int(density * len(vector)))
    kept = np.zeros_like(vector)
    largest = np.argsort(abs(vector), kind="stable")[-k:]
    kept[largest] = vector[largest]
    return kept


def trimmed(vector: np.ndarray, density: float, trim: str) -> np.ndarray:
    if trim == "global":
        return top(vector, density)
    return np.concatenate([top(part, density) for part in np.split(vector, np.cumsum(SIZES)[:-1])])


def ties(deltas, alphas, options) -> np.ndarray:
    """Trim, elect by mass or by count, and the disjoint mean or sum, in float64."""
    rows = np.stack(
        [
            trimmed(delta, options["density"], options["trim"]) * alpha
            for delta, alpha in zip(deltas, alphas, strict=True)
        ]
    )
    votes = rows if options["election"] == "mass" else np.sign(rows)
    elected = np.sign(votes.sum(axis=0))
    agrees = (np.sign(rows) == elected) & (elected != 0)
    total = np.where(agrees, rows, 0.0).sum(axis=0)
    if options["consensus"] == "mean":
        total /= np.maximum(agrees.sum(axis=0), 1)
    return options["lambda"] * total


@pytest.fixture
def run(exact, flat, tmp_path):
    """Return the flat base, the flat deltas, and ``write(alphas, **options)``: what was written."""
    base, tuned = exact
    start = flat(base)

    def write(alphas, **options):
        terms = list(zip(tuned, alphas, strict=True))
        small = Output(shard_size="20KB")
        return flat(
            merge(
                base, terms, out=tmp_path / "out", method="ties", options=options, output=small
            ).path
        )

    return start, [flat(path) - start for path in tuned], write


@pytest.mark.parametrize("trim", ["global", "per_tensor"])
@pytest.mark.parametrize("election", ["mass", "count"])
@pytest.mark.parametrize("consensus", ["mean", "sum"])
@pytest.mark.parametrize(("density", "factor"), [(0.2, 1.0), (0.7, 0.75), (1.0, 1.5), (1e-9, 1.0)])
def test_a_merge_is_ties_bit_for_bit(run, trim, election, consensus, density, factor):
    start, deltas, write = run
    options = {"density": density, "trim": trim, "election": election, "consensus": consensus}
    options["lambda"] = factor
    expected = start + ties(deltas, ALPHAS, options)
    assert np.array_equal(write(ALPHAS, **options), expected.astype(np.float32))


def test_the_default_is_the_paper(run):
    start, deltas, write = run
    paper = {"density": 0.2, "trim": "global", "election": "mass", "consensus": "mean", "lambda": 1}
    expected = start + ties(deltas, ALPHAS, paper)
    assert np.array_equal(write(ALPHAS), expected.astype(np.float32))


def test_options_decide_something(run):
    """Otherwise an oracle that ignored one would agree."""
    _, deltas, _ = run
    paper = {"density": 0.2, "trim": "global", "election": "mass", "consensus": "mean", "lambda": 1}
    found = ties(deltas, ALPHAS, paper)
    for other in ({"trim": "per_tensor"}, {"election": "count"}, {"consensus": "sum"}):
        changed = ties(deltas, ALPHAS, paper | other) != found
        assert changed.sum() > 20, other


def test_magnitudes_differ(run):
    """So that the threshold has no ties, where implementations may differ."""
    for delta in run[1]:
        assert len(np.unique(abs(delta))) == len(delta)


SIZE = (1 << 21) + 70_001
"""More than a thread takes at once."""


def shuffled(values: np.ndarray) -> np.ndarray:
    return np.random.default_rng(1).permutation(values)


VECTORS = {
    "sorted": np.linspace(-1.0, 2.0, SIZE),
    "mostly zero": np.where(np.arange(SIZE) % 11 == 0, np.linspace(0.5, 1.0, SIZE), 0.0),
    "two magnitudes": np.where(np.arange(SIZE) % 7 == 0, -0.75, 0.5),
    "one magnitude": np.full(SIZE, 0.25),
    "large in a corner": np.where(np.arange(SIZE) < 9_000, 1e4, np.linspace(0.0, 1.0, SIZE)),
    "of all sizes": shuffled(10.0 ** np.linspace(-36, 3, SIZE)),
    "below the normal numbers": shuffled(np.linspace(0.0, 1.0, SIZE) * 2.0**-126),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("density", [0.2, 0.001])
@pytest.mark.parametrize("vector", VECTORS)
def test_the_threshold_is_exact_however_the_magnitudes_lie(
    tmp_path, weights, vector, density, dtype
):
    tuned = torch.from_numpy(VECTORS[vector]).to(dtype)
    for name, values in (("base", torch.zeros_like(tuned)), ("tuned", tuned)):
        (tmp_path / name).mkdir()
        save_file({"w": values}, tmp_path / name / "model.safetensors")
    magnitude = tuned.abs().float().numpy()
    k = int(density * SIZE)
    least = np.partition(magnitude, SIZE - k)[SIZE - k]
    given = {"method": "ties", "options": {"density": density}, "out": tmp_path / "out"}
    found = weights(merge(tmp_path / "base", [(tmp_path / "tuned", 1.0)], **given).path)["w"]
    assert torch.equal(found, tuned.where(torch.from_numpy(magnitude >= least), 0))


def test_equal_magnitudes_at_the_threshold_are_all_kept(tmp_path, flat):
    steps = np.array([1, -3, 2, 2, -2, 5, 0, 1], dtype=np.float32)
    for name, values in (("base", np.ones(8, np.float32)), ("tuned", 1 + steps)):
        (tmp_path / name).mkdir()
        save_file({"w": torch.from_numpy(values)}, tmp_path / name / "model.safetensors")
    terms = [(tmp_path / "tuned", 1.0)]
    options = {"density": 0.4}  # three of eight, and three more are as large as the third
    path = merge(
        tmp_path / "base", terms, out=tmp_path / "out", method="ties", options=options
    ).path
    assert flat(path).tolist() == [1, -2, 3, 3, -1, 6, 1, 1]


@pytest.mark.parametrize("consensus", ["mean", "sum"])
@pytest.mark.parametrize("election", ["mass", "count"])
def test_where_the_votes_cancel_nothing_is_added(exact, flat, tmp_path, consensus, election):
    base, tuned = exact
    options = {"density": 0.5, "consensus": consensus, "election": election}
    terms = [(tuned[0], 0.5), (tuned[0], -0.5)]
    path = merge(base, terms, out=tmp_path / "out", method="ties", options=options).path
    assert np.array_equal(flat(path), flat(base))


def test_a_term_with_alpha_0_neither_votes_nor_counts(run):
    start, deltas, write = run
    expected = start + top(deltas[0], 0.3)
    assert np.array_equal(write([1.0, 0.0, -0.0], density=0.3), expected)
