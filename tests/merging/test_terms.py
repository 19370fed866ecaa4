"""The threshold is the k-th largest magnitude, found without sorting, whatever the sample says."""

from functools import partial

import pytest
import torch
from torch import Tensor

from personality_vector.merging.terms import magnitude_threshold
from personality_vector.numeric.kernels import count_magnitudes
from personality_vector.numeric.random import generator_for

DENSITIES = [1e-6, 0.001, 0.1, 0.2, 0.5, 0.77, 0.999]


def drawn(name: str, size: int = 5_000) -> Tensor:
    return torch.randn(size, generator=generator_for(0, name))


def by_sorting(vector: Tensor, density: float) -> float:
    k = max(1, int(density * vector.numel()))
    return float(vector.float().abs().sort(descending=True).values[k - 1])


def threshold(pieces: list[Tensor], density: float, sample: Tensor | None = None) -> float:
    def count(piece: torch.Tensor, low: int, shift: int, counts: torch.Tensor) -> int:
        return count_magnitudes(piece.double(), None, low, shift, counts)[0]

    counts = [partial(count, piece) for piece in pieces]
    whole = torch.cat(pieces)
    sample = whole[::7] if sample is None else sample
    return magnitude_threshold(counts, whole.numel(), sample, density)


VECTORS = {
    "normal": drawn("normal"),
    "every size": drawn("size") * 10.0 ** (20 * drawn("exponent")).clamp(-37, 37),
    "repeated": (3 * drawn("repeated")).round() / 7,
    "mostly zero": drawn("zero") * (drawn("mask") > 1.5),
    "all zero": torch.zeros(100),
    "signed zeros": torch.tensor([0.0, -0.0, 1.0, -1.0] * 10),
    "denormal": drawn("denormal").abs().mul(1e6).int().view(torch.float32),
    "one bin of 16 bits": 1.0 + drawn("bin").abs() * 1e-3,
    "next to each other": (0x3F800000 + torch.arange(5_000, dtype=torch.int32)).view(torch.float32),
    "equal": torch.full((50,), -0.3),
    "one entry": torch.tensor([-2.5]),
    "largest": torch.tensor([3.4028235e38, -3.4028235e38, 1e-45, -1e-45]),
    "beyond float32": torch.tensor([7e38, -7e38, 1.0, 0.5], dtype=torch.float64),
}
SAMPLES = {
    "zeros": torch.zeros(10),
    "one": torch.ones(1),
    "largest": torch.full((5,), torch.finfo(torch.float32).max),
    "infinite": torch.full((5,), torch.inf),
    "denormal": torch.full((5,), 1e-45),
}


@pytest.mark.parametrize("density", DENSITIES)
@pytest.mark.parametrize("name", VECTORS)
def test_it_equals_sorting(name, density):
    vector = VECTORS[name]
    assert threshold([vector], density) == by_sorting(vector, density)


@pytest.mark.parametrize("density", DENSITIES)
@pytest.mark.parametrize("name", VECTORS)
@pytest.mark.parametrize("sample", SAMPLES)
def test_a_sample_that_misleads_changes_nothing(name, density, sample):
    vector = VECTORS[name]
    assert threshold([vector], density, SAMPLES[sample]) == by_sorting(vector, density)


@pytest.mark.parametrize("density", DENSITIES)
def test_pieces_of_a_vector_have_the_threshold_of_the_whole(density):
    vector = VECTORS["every size"]
    pieces = [vector[:0], vector[:7], vector[7:1000], vector[1000:]]
    assert threshold(pieces, density) == by_sorting(vector, density)


@pytest.mark.parametrize("threads", ["1", "4"])
def test_any_number_of_threads_finds_it(threads, monkeypatch):
    monkeypatch.setenv("PVEC_THREADS", threads)
    vector = drawn("threads", 40_000)
    assert threshold(list(vector.split(1_001)), 0.2) == by_sorting(vector, 0.2)


@pytest.mark.parametrize("aside", [-70_000, -65_537, -65_536, -1, 0, 1, 65_535, 65_536, 70_000])
def test_a_threshold_at_the_edge_of_what_is_counted_is_found(aside):
    """Around the guess 131,072 numbers are told apart; beyond them all are counted again."""
    vector = (0x3F800000 + 1_000 * torch.arange(2_001, dtype=torch.int32)).view(torch.float32)
    expected = by_sorting(vector, 0.5)
    bits = torch.tensor(expected).view(torch.int32) + aside
    sample = bits.view(torch.float32).reshape(1)
    assert threshold([vector], 0.5, sample) == expected


def test_density_1_keeps_everything_uncounted():
    def never(_low: int, _shift: int, _counts: Tensor) -> int:
        raise AssertionError("counted")

    assert magnitude_threshold([never], 5, torch.ones(1), 1.0) == 0.0


@pytest.mark.parametrize("density", [0.0, -0.1, 1.1, float("nan")])
def test_an_impossible_density_is_refused(density):
    with pytest.raises(ValueError, match=r"density must be in \(0, 1\]"):
        threshold([torch.ones(2)], density)


def test_exactly_k_reach_it_and_equal_magnitudes_all():
    vector = VECTORS["normal"]
    assert int((vector.abs() >= threshold([vector], 0.2)).sum()) == 1_000
    repeated = torch.tensor([1.0, -2.0, 2.0, 2.0, 3.0])
    assert (repeated.abs() >= threshold([repeated], 0.4)).tolist() == [
        False,
        True,
        True,
        True,
        True,
    ]


def test_of_few_entries_one_is_kept():
    assert threshold([torch.tensor([1.0, -3.0, 2.0])], 0.01) == 3.0
