"""The threshold is the k-th largest magnitude, found without sorting."""

import pytest
import torch

from personality_vector.merging.select import keep_at_least, magnitude_threshold
from personality_vector.rng import generator_for

DENSITIES = [1e-6, 0.001, 0.1, 0.2, 0.5, 0.77, 0.999]


def drawn(name: str, size: int = 5_000) -> torch.Tensor:
    return torch.randn(size, generator=generator_for(0, name))


def by_sorting(vector: torch.Tensor, density: float) -> float:
    k = max(1, int(density * vector.numel()))
    return float(vector.abs().sort(descending=True).values[k - 1])


VECTORS = {
    "normal": drawn("normal"),
    "every size": drawn("size") * 10.0 ** (20 * drawn("exponent")).clamp(-37, 37),
    "repeated": (3 * drawn("repeated")).round() / 7,
    "mostly zero": drawn("zero") * (drawn("mask") > 1.5),
    "all zero": torch.zeros(100),
    "signed zeros": torch.tensor([0.0, -0.0, 1.0, -1.0] * 10),
    "denormal": drawn("denormal").abs().mul(1e6).int().view(torch.float32),
    "one bin of 16 bits": 1.0 + drawn("bin").abs() * 1e-3,
    "equal": torch.full((50,), -0.3),
    "one entry": torch.tensor([-2.5]),
    "largest": torch.tensor([3.4028235e38, -3.4028235e38, 1e-45, -1e-45]),
}


@pytest.mark.parametrize("density", DENSITIES)
@pytest.mark.parametrize("name", VECTORS)
def test_it_equals_sorting(name, density):
    vector = VECTORS[name]
    assert magnitude_threshold(lambda: [vector], density) == by_sorting(vector, density)


@pytest.mark.parametrize("density", DENSITIES)
def test_pieces_of_a_vector_have_the_threshold_of_the_whole(density):
    vector = VECTORS["every size"][:4800]
    pieces = [
        vector[:0],
        vector[:7],
        vector[7:1000],
        vector[1000:4600],
        vector[4600:].reshape(20, 10).T,
    ]
    assert magnitude_threshold(lambda: iter(pieces), density) == by_sorting(vector, density)


def test_density_1_keeps_everything_unread():
    def never():
        raise AssertionError("read")

    assert magnitude_threshold(never, 1.0) == 0.0
    assert torch.equal(keep_at_least(VECTORS["normal"], 0.0), VECTORS["normal"])


@pytest.mark.parametrize("density", [0.0, -0.1, 1.1, float("nan")])
def test_an_impossible_density_is_refused(density):
    with pytest.raises(ValueError, match=r"density must be in \(0, 1\]"):
        magnitude_threshold(lambda: [torch.ones(2)], density)


def test_exactly_k_are_kept_and_equal_magnitudes_at_the_threshold_all():
    vector = VECTORS["normal"]
    kept = keep_at_least(vector, magnitude_threshold(lambda: [vector], 0.2))
    assert int((kept != 0).sum()) == 1000
    assert torch.equal(kept[kept != 0], vector[kept != 0])
    repeated = torch.tensor([1.0, -2.0, 2.0, 2.0, 3.0])
    kept = keep_at_least(repeated, magnitude_threshold(lambda: [repeated], 0.4))
    assert kept.tolist() == [0.0, -2.0, 2.0, 2.0, 3.0]
