"""A fingerprint is of the content: not of files, paths or order."""

import pytest
import torch

from personality_vector.checkpoint import Checkpoint

SAMPLED = [0, 127, 5696, 5823, 39_872, 39_999]
"""Entries of a float32 tensor of 40,000 that lie in a window: 8 of 128 entries, evenly spread."""


def digest(path) -> str:
    return Checkpoint.open(path).fingerprint.digest


def test_shards_and_order_do_not_matter(single, sharded, tensors):
    backwards = dict(reversed(tensors.items()))
    digests = {digest(single(tensors)), digest(single(backwards, "b")), digest(sharded(tensors))}
    assert len(digests) == 1


def test_it_counts_tensors_and_parameters(single, tensors):
    found = Checkpoint.open(single(tensors)).fingerprint
    assert (found.tensors, found.parameters) == (5, 30 + 21 + 1 + 40_000)


@pytest.mark.parametrize("place", SAMPLED)
def test_one_changed_entry_in_a_window_shows(single, tensors, place):
    before = digest(single(tensors))
    tensors["long"][place] += 1.0
    assert digest(single(tensors, "changed")) != before


def test_every_entry_of_a_small_tensor_is_sampled(single):
    small = torch.zeros(1024)
    digests = {digest(single({"a": small}))}
    for place in range(0, 1024, 93):
        changed = small.clone()
        changed[place] = -0.0
        digests.add(digest(single({"a": changed}, str(place))))
    assert len(digests) == 1 + len(range(0, 1024, 93))


@pytest.mark.parametrize(
    "change",
    [
        lambda t: {**t, "extra": torch.zeros(0)},
        lambda t: {("c.weight" if k == "a.weight" else k): v for k, v in t.items()},
        lambda t: {**t, "a.weight": t["a.weight"].reshape(5, 6)},
        lambda t: {**t, "b.weight": t["b.weight"].view(torch.float16)},
        lambda t: {**t, "none": torch.zeros(4, 0)},
    ],
    ids=["one more", "name", "shape", "dtype of the same bytes", "shape of no bytes"],
)
def test_names_shapes_and_dtypes_count(single, tensors, change):
    assert digest(single(tensors)) != digest(single(change(tensors), "changed"))


def test_models_of_the_same_shapes_differ(pico, pico_tuned):
    paths = [pico("llama"), pico_tuned("llama"), pico_tuned("llama", seed=1)]
    assert len({digest(path) for path in paths}) == 3


def test_it_is_short_in_messages(single, tensors):
    found = Checkpoint.open(single(tensors)).fingerprint
    assert str(found) == found.digest[:12]
