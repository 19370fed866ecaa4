"""Randomness hangs from a name and an index, never from the order of work."""

import hashlib
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from numba import njit

from personality_vector.numeric.compiled import mixed
from personality_vector.numeric.random import generator_for, key_for, uniform

GAMMA, MIX_1, MIX_2, MASK = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB, 2**64 - 1


def splitmix64(key: int, index: int) -> float:
    """Restated from Steele, Lea and Flood 2014 with unsigned Python integers."""
    z = (key + (index + 1) * GAMMA) & MASK
    z = ((z ^ (z >> 30)) * MIX_1) & MASK
    z = ((z ^ (z >> 27)) * MIX_2) & MASK
    z ^= z >> 31
    return (z >> 40) / 2**24


@pytest.fixture(params=["cpu", "elsewhere"])
def anywhere(request, monkeypatch):
    """Run :func:`uniform` in its compiled form, and in that of other devices."""
    if request.param == "elsewhere":
        monkeypatch.setattr(torch, "device", lambda _: SimpleNamespace(type="elsewhere"))


@pytest.mark.usefixtures("anywhere")
@pytest.mark.parametrize("key", [0, 1, 2**63 - 1, key_for(0, "a")])
@pytest.mark.parametrize("start", [0, 1, 2**31 - 2, 2**31, 2**32 - 3, 2**40, 2**62])
def test_the_stream_is_splitmix64(key, start):
    expected = [splitmix64(key, index) for index in range(start, start + 50)]
    assert uniform(key, start, 50).tolist() == expected


def test_the_bits_in_a_compiled_loop_are_those_of_the_stream():
    @njit
    def bits(key, start, count):
        return [mixed(key, start + i) for i in range(count)]

    key = key_for(0, "bits")
    found = [int(one) / 2**24 for one in bits(np.uint64(key), 77, 50)]
    assert found == uniform(key, 77, 50).tolist()


@pytest.mark.parametrize("cut", [0, 1, 500, 999, 1000])
def test_parts_of_a_stream_are_the_stream(cut):
    key = key_for(3, "part")
    parts = torch.cat([uniform(key, 0, cut), uniform(key, cut, 1000 - cut)])
    assert torch.equal(parts, uniform(key, 0, 1000))


def test_the_stream_is_float32_and_at_most_the_largest_below_1():
    drawn = uniform(key_for(0, "range"), 0, 200_000)
    assert drawn.dtype == torch.float32
    assert drawn.min() >= 0.0
    assert drawn.max() <= 1.0 - 2.0**-24


def test_moments_are_those_of_a_uniform():
    drawn = uniform(key_for(0, "moments"), 0, 400_000).double()
    # Four standard errors each: 1 / sqrt(12 n) of the mean, 1 / sqrt(180 n) of the variance.
    assert abs(drawn.mean() - 1 / 2) < 4 / (12 * 400_000) ** 0.5
    assert abs(drawn.var() - 1 / 12) < 4 / (180 * 400_000) ** 0.5
    successive = torch.corrcoef(torch.stack([drawn[:-1], drawn[1:]]))[0, 1]
    assert abs(successive) < 4 / 400_000**0.5


@pytest.mark.parametrize("other", [(1, "a"), (0, "b"), (-1, "a")])
def test_streams_of_other_seeds_and_names_are_unrelated(other):
    one, two = uniform(key_for(0, "a"), 0, 100_000), uniform(key_for(*other), 0, 100_000)
    assert abs(torch.corrcoef(torch.stack([one, two]))[0, 1]) < 4 / 100_000**0.5


def test_a_key_is_63_bits_of_blake2b_so_that_it_never_changes():
    digest = hashlib.blake2b(b"7:layers.0.weight", digest_size=8).digest()
    assert key_for(7, "layers.0.weight") == int.from_bytes(digest, "big") >> 1


def test_a_generator_depends_on_seed_and_name_alone():
    first = torch.rand(5, generator=generator_for(0, "a"))
    torch.rand(5, generator=generator_for(0, "b"))
    assert torch.equal(first, torch.rand(5, generator=generator_for(0, "a")))
    assert not torch.equal(first, torch.rand(5, generator=generator_for(1, "a")))
