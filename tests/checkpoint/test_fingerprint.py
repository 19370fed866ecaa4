"""A fingerprint is of the content: not of files, paths or order."""

import os
import random
import shutil

import pytest
import torch
from safetensors.torch import save_file

from personality_vector.checkpoint import Checkpoint, is_sampled
from personality_vector.delta import Delta
from personality_vector.errors import CheckpointError
from personality_vector.files import content_of
from personality_vector.steering import SteeringVector

FLIPS = 40


def digest(path) -> str:
    return Checkpoint.open(path).fingerprint.digest


def test_shards_and_order_do_not_matter(single, sharded, tensors):
    backwards = dict(reversed(tensors.items()))
    digests = {digest(single(tensors)), digest(single(backwards, "b")), digest(sharded(tensors))}
    assert len(digests) == 1


def test_it_counts_tensors_and_parameters(single, tensors):
    found = Checkpoint.open(single(tensors)).fingerprint
    assert (found.tensors, found.parameters) == (5, 30 + 21 + 1 + 40_000)


def flip(file, bit):
    """Change one bit of a file where it lies, as a bad disk would; twice is not at all."""
    with file.open("r+b") as stream:
        stream.seek(bit // 8)
        byte = stream.read(1)[0]
        stream.seek(bit // 8)
        stream.write(bytes([byte ^ 1 << bit % 8]))


def places(path, whole):
    """Return 40 random bits of the files of a folder: of all their bytes, or of tensors alone."""
    if whole:
        spans = [(file, 0, file.stat().st_size) for file in path.rglob("*") if file.is_file()]
    else:
        entries = Checkpoint.open(path).entries.values()
        spans = [(entry.file, entry.start, entry.end) for entry in entries]
    spans = sorted(span for span in spans if span[1] < span[2])
    drawn = random.Random(0)
    chosen = drawn.choices(spans, [end - start for _, start, end in spans], k=FLIPS)
    return [(file, drawn.randrange(8 * start, 8 * end)) for file, start, end in chosen]


@pytest.fixture
def things(pico, pico_tuned, tmp_path):
    """Return ``things(kind)``: a folder that was just written, of a base, a delta or a vector."""

    def write(kind):
        base = shutil.copytree(pico("llama"), tmp_path / "base")
        if kind == "delta":
            return Delta.between(base, pico_tuned("llama")).save(tmp_path / "delta")
        if kind == "vector":
            directions = {0: torch.arange(1.0, 49.0), 2: torch.linspace(-1.0, 1.0, 48)}
            vector = SteeringVector(directions, digest(base), None, "v", "response_mean", (1, 1))
            vector.save(tmp_path / "vector")
            return tmp_path / "vector"
        return base

    return write


def test_40_of_40_flipped_bits_of_a_base_change_its_fingerprint(things):
    path = things("base")
    seen = {digest(path)}
    for file, bit in places(path, whole=False):
        flip(file, bit)
        seen.add(digest(path))
        flip(file, bit)
    assert len(seen) == 1 + FLIPS
    assert digest(path) in seen


@pytest.mark.parametrize("kind", ["base", "delta", "vector"])
def test_40_of_40_flipped_bits_of_whatever_was_just_written_change_its_content(things, kind):
    path = things(kind)
    seen = {content_of(path)}
    for file, bit in places(path, whole=True):
        flip(file, bit)
        seen.add(content_of(path))
        flip(file, bit)
    assert len(seen) == 1 + FLIPS
    assert content_of(path) in seen


def test_a_flipped_bit_of_base_or_fine_tune_changes_the_identity_of_their_delta(
    pico, pico_tuned, tmp_path
):
    base = shutil.copytree(pico("llama"), tmp_path / "base")
    tuned = shutil.copytree(pico_tuned("llama"), tmp_path / "tuned")
    seen = {Delta.between(base, tuned).identity}
    for path in (base, tuned):
        for file, bit in places(path, whole=False)[:20]:
            flip(file, bit)
            seen.add(Delta.between(base, tuned).identity)
            flip(file, bit)
    assert len(seen) == 1 + FLIPS


def test_the_header_of_a_file_does_not_matter(single, tensors):
    described = single(tensors, "described")
    save_file(tensors, described / "model.safetensors", {"by": "somebody else"})
    assert digest(described) == digest(single(tensors))


def test_a_file_that_cannot_be_read_is_named(single, tensors):
    checkpoint = Checkpoint.open(single(tensors))
    (checkpoint.path / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="single: cannot be read: No such file"):
        _ = checkpoint.fingerprint


def test_a_file_that_was_cut_short_is_named(single, tensors):
    checkpoint = Checkpoint.open(single(tensors))
    os.truncate(checkpoint.path / "model.safetensors", 500)
    with pytest.raises(CheckpointError, match=r"model\.safetensors: ends at byte 500"):
        _ = checkpoint.fingerprint


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


def test_what_an_earlier_version_recorded_is_told_apart_and_compared_with_its_sample(
    single, tensors
):
    found = Checkpoint.open(single(tensors))
    recorded = "f0db2e62876492324ae0e744211fd920"  # by version 0.1.0 of this package
    assert (is_sampled(recorded), is_sampled(found.fingerprint.digest)) == (True, False)
    assert found.digest_like(recorded) == recorded
    assert found.digest_like(found.fingerprint.digest) == found.fingerprint.digest
    tensors["long"][0] += 1.0
    assert Checkpoint.open(single(tensors, "changed")).digest_like(recorded) != recorded


@pytest.mark.parametrize("content", ["[]", "{", '{"weights": "v2 of somebody else"}'])
def test_a_manifest_that_is_not_ours_says_nothing_about_the_weights(single, tensors, content):
    path = single(tensors)
    before = digest(path)
    (path / "MANIFEST.json").write_text(content)
    assert digest(path) == before
