"""Every byte counts, and what was seen once is not read again while the file is as it was."""

import json
import os
import random
import shutil
import sys
import threading
import time
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
import xxhash
from safetensors.torch import save_file

from personality_vector import files
from personality_vector.checkpoint import Checkpoint
from personality_vector.errors import CheckpointError, DataError
from personality_vector.files import content_of, digests, ranges
from personality_vector.files.ahead import look_ahead
from personality_vector.files.digests import Range
from personality_vector.lab import cache_folder

SIZE = 3_000_000
TENSORS = 3


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    """Give every test a cache of its own, and return its folder."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("PVEC_CACHE", str(folder))
    return folder / "digests"


@pytest.fixture
def kept(monkeypatch):
    """Let files be kept that are small and have just been written."""
    monkeypatch.setattr(digests, "_WORTH_KEEPING", 0)
    monkeypatch.setattr(digests, "_SETTLED_NS", -(10**12))


@pytest.fixture
def reads(monkeypatch):
    """Return a list that grows with every range that is read."""
    seen = []

    def read(descriptor, file, *cuts):
        seen.extend((file.name, *place) for place in pairwise(cuts))
        return ranges.read(descriptor, file, *cuts)

    monkeypatch.setattr(digests, "read", read)
    return seen


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "bytes"
    path.write_bytes(random.Random(0).randbytes(SIZE))
    os.utime(path, (0, 1e9))  # so that any change is of another tick of the clock
    return path


@pytest.fixture
def model(tmp_path):
    """Return a checkpoint of some tensors, of 120 KB."""
    tensors = {f"{number}.weight": torch.full((100, 100), number) for number in range(TENSORS)}
    (tmp_path / "model").mkdir()
    save_file(tensors, tmp_path / "model" / "model.safetensors")
    return tmp_path / "model"


def flip(path, bit):
    """Change one bit of a file where it lies, as a bad disk would."""
    with path.open("r+b") as stream:
        stream.seek(bit // 8)
        byte = stream.read(1)[0]
        stream.seek(bit // 8)
        stream.write(bytes([byte ^ 1 << bit % 8]))


def leased(path):
    """Return whether this file system grants read leases."""
    with path.open("rb") as stream, ranges.leased([stream.fileno()]):
        return ranges._is_leased(stream.fileno())


# What counts.


def test_a_digest_is_xxh3_of_the_bytes_whatever_way_they_are_read(file, monkeypatch):
    content = file.read_bytes()
    parts = [(0, SIZE), (1, SIZE), (4095, 4096), (5000, 2_000_001), (7, 7)]
    wanted = [xxhash.xxh3_128_hexdigest(content[slice(*part)]) for part in parts]
    for size in (1 << 24, 1 << 20, 12_288):
        monkeypatch.setattr(ranges, "MAPPED", size)
        for least in (0, 1 << 40):
            monkeypatch.setattr(ranges, "_WORTH_MAPPING", least)
            with file.open("rb") as stream:
                found = digests.digests([Range(file, stream.fileno(), part) for part in parts])
            assert found == wanted


def test_ranges_that_are_read_together_are_told_apart(file, monkeypatch):
    content, draw = file.read_bytes(), random.Random(1)
    for span, mapped, least in [(1 << 20, 1 << 20, 0), (SIZE, 12_288, 0), (SIZE, SIZE, SIZE)]:
        monkeypatch.setattr(digests, "MAPPED", span)
        monkeypatch.setattr(ranges, "MAPPED", mapped)
        monkeypatch.setattr(ranges, "_WORTH_MAPPING", least)
        cuts = sorted([0, SIZE, *draw.choices(range(SIZE), k=40)])
        cuts = sorted([*cuts, *cuts[5:10]])  # some ranges are empty
        places = [place for place in pairwise(cuts) if draw.random() < 0.8]  # others are left out
        with file.open("rb") as stream:
            found = digests.digests([Range(file, stream.fileno(), place) for place in places])
        assert found == [xxhash.xxh3_128_hexdigest(content[slice(*place)]) for place in places]


def test_the_content_of_a_file_is_its_bytes_and_not_its_name(file, tmp_path):
    assert content_of(file) == xxhash.xxh3_128_hexdigest(file.read_bytes())
    assert content_of(shutil.copyfile(file, tmp_path / "other")) == content_of(file)


def test_the_content_of_a_folder_is_every_file_with_its_place_there(tmp_path):
    def folder(name, files):
        for place, text in files.items():
            target = tmp_path / name / place
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(text)
        return content_of(tmp_path / name)

    files = {"a": "text", "b/a": "more"}
    assert folder("one", files) == folder("two", dict(reversed(files.items())))
    others = [
        {"a": "more", "b/a": "text"},
        {"a": "text", "c/a": "more"},
        {"a": "text", "b/a": "more", "b/c": ""},
        {"a": "text"},
    ]
    found = {folder(f"other {number}", other) for number, other in enumerate(others)}
    assert len(found | {content_of(tmp_path / "one")}) == 1 + len(others)


def test_what_is_not_there_has_no_content(tmp_path):
    (tmp_path / "empty").mkdir()
    for name in ("absent", "empty"):
        with pytest.raises(DataError, match=rf"{name}: cannot be read: "):
            content_of(tmp_path / name)


@pytest.mark.parametrize("threads", ["1", "3"])
@pytest.mark.usefixtures("file")
def test_threads_change_nothing(tmp_path, monkeypatch, threads):
    shutil.copytree(tmp_path, tmp_path / "copy")
    whole = content_of(tmp_path)
    monkeypatch.setenv("PVEC_THREADS", threads)
    assert content_of(tmp_path) == whole


# The cache.


@pytest.mark.usefixtures("kept")
def test_what_was_seen_is_not_read_again(file, reads):
    before = content_of(file)
    assert reads.count(("bytes", 0, SIZE)) == 1
    assert content_of(file) == before
    assert len(reads) == 1


@pytest.mark.usefixtures("kept")
def test_a_fingerprint_that_was_seen_reads_no_tensor(model, reads):
    before = Checkpoint.open(model).fingerprint
    assert len(reads) == TENSORS
    assert Checkpoint.open(model).fingerprint == before
    assert len(reads) == TENSORS
    content_of(model / "model.safetensors")  # another range of the same file
    assert Checkpoint.open(model).fingerprint == before
    assert len(reads) == TENSORS + 1


# Ahead of the import of torch.


@pytest.mark.usefixtures("kept")
def test_what_was_hashed_ahead_is_not_read_again(model, reads):
    look_ahead([str(model), str(model / "none")])
    assert len(reads) == TENSORS
    before = Checkpoint.open(model).fingerprint
    assert len(reads) == TENSORS
    flip(model / "model.safetensors", 8 * (model / "model.safetensors").stat().st_size - 1)
    assert Checkpoint.open(model).fingerprint != before


@pytest.mark.parametrize("content", [b"", bytes(80), b"\xff" * 80])
@pytest.mark.usefixtures("kept")
def test_a_damaged_file_is_refused_where_it_is_read_and_not_ahead(model, content):
    (model / "model.safetensors").write_bytes(content)
    look_ahead([str(model)])
    with pytest.raises(CheckpointError):
        Checkpoint.open(model)


def test_another_process_hashes_what_a_fingerprint_waits_for(model, cache, monkeypatch):
    save_file({"large": torch.zeros(1 << 20)}, model / "model.safetensors")
    time.sleep(3.2)  # what has just been written is not kept
    monkeypatch.setattr(digests, "sys", SimpleNamespace(executable=sys.executable, modules={}))
    monkeypatch.setattr(digests, "_ahead", None)
    files.begin([model, model / "none"])
    assert digests._ahead.wait() == 0
    (entry,) = cache.iterdir()
    kept = entry.read_text()
    assert Checkpoint.open(model).fingerprint.tensors == 1
    assert entry.read_text() == kept


def test_nothing_is_begun_once_torch_is_there(model):
    files.begin([model])
    assert digests._ahead is None


@pytest.mark.parametrize(
    "change",
    [
        lambda file: flip(file, 0),
        lambda file: file.write_bytes(b"0" + file.read_bytes()[1:]),
        lambda file: shutil.copyfile(file, file.with_name("new")).replace(file),
        lambda file: os.utime(file, ns=(0, 0)),
    ],
    ids=["a bit", "rewritten", "replaced", "back in time"],
)
@pytest.mark.usefixtures("kept")
def test_a_file_that_was_touched_is_read_again(file, reads, change):
    content_of(file)
    change(file)
    content_of(file)
    assert len(reads) == 2


@pytest.mark.usefixtures("kept")
def test_a_change_that_keeps_size_and_time_of_modification_is_seen(file):
    before, status = content_of(file), file.stat()
    time.sleep(0.02)  # more than a tick of the clock
    flip(file, 12_345)
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert file.stat().st_mtime_ns == status.st_mtime_ns
    assert content_of(file) != before


def test_a_file_that_was_just_written_is_not_kept(file, reads, cache, monkeypatch):
    monkeypatch.setattr(digests, "_WORTH_KEEPING", 0)
    for _ in range(2):
        content_of(file)
    assert len(reads) == 2
    later = time.time_ns() + 4 * 10**9
    monkeypatch.setattr(digests.time, "time_ns", lambda: later)
    for _ in range(2):
        content_of(file)
    assert len(reads) == 3
    assert len(list(cache.iterdir())) == 1


def test_a_rewrite_in_the_same_tick_of_the_clock_is_seen(file, monkeypatch):
    """As on a file system whose time stamps, all of them, count in coarse steps."""
    monkeypatch.setattr(digests, "_WORTH_KEEPING", 0)
    tick = time.time_ns()
    stamp = ranges.Stamp(SIZE, tick, tick, 1)
    monkeypatch.setattr(ranges.Stamp, "of", lambda _: stamp)
    found = {content_of(file)}
    flip(file, 99)
    found.add(content_of(file))
    assert len(found) == 2


def test_a_small_file_is_not_kept(file, cache, monkeypatch):
    monkeypatch.setattr(digests, "_SETTLED_NS", -(10**12))
    content_of(file)
    assert not cache.exists()


@pytest.mark.parametrize(
    "damage",
    [
        lambda _: "",
        lambda text: text[:-9],
        lambda text: text.replace('"digests": [[0, 3000000, "', '"digests": [[0, 3000000, "0'),
        lambda text: "\0" * len(text),
        lambda _: "{}",
    ],
    ids=["empty", "cut", "another digest", "zeros", "not ours"],
)
@pytest.mark.usefixtures("kept")
def test_a_damaged_entry_is_ignored_and_written_again(file, reads, cache, damage):
    before = content_of(file)
    (entry,) = cache.iterdir()
    whole = entry.read_text()
    assert damage(whole) != whole
    entry.write_text(damage(whole))
    assert content_of(file) == before
    assert (len(reads), entry.read_text()) == (2, whole)


@pytest.mark.usefixtures("kept")
def test_an_entry_of_another_version_is_ignored(file, cache):
    before = content_of(file)
    (entry,) = cache.iterdir()
    for content in ([], {"of": []}, {}, 3):
        text = json.dumps(content)
        entry.write_text(f"{xxhash.xxh3_128_hexdigest(text.encode())}\n{text}")
        assert content_of(file) == before


@pytest.mark.parametrize("where", ["/proc/nowhere", "/dev/null", "{file}"])
@pytest.mark.usefixtures("kept")
def test_without_a_place_for_it_nothing_is_kept_and_nothing_fails(file, reads, monkeypatch, where):
    monkeypatch.setenv("PVEC_CACHE", where.format(file=file))
    assert content_of(file) == content_of(file)
    assert len(reads) == 2


@pytest.mark.usefixtures("kept")
def test_a_user_without_a_home_has_no_cache(file, monkeypatch):
    monkeypatch.delenv("PVEC_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")

    def homeless(_):
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr("pathlib.Path.expanduser", homeless)
    assert content_of(file) == content_of(file)


def test_the_folder_is_the_users_unless_it_is_given(tmp_path, monkeypatch):
    monkeypatch.setenv("PVEC_CACHE", str(tmp_path))
    assert cache_folder("digests") == tmp_path / "digests"
    monkeypatch.delenv("PVEC_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder("digests") == tmp_path / "xdg/personality-vector/digests"
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for ignored in ("", "relative"):
        monkeypatch.setenv("XDG_CACHE_HOME", ignored)
        assert cache_folder("digests") == tmp_path / "home/.cache/personality-vector/digests"


@pytest.mark.usefixtures("kept")
def test_the_oldest_entries_go_when_there_are_too_many(tmp_path, cache, monkeypatch):
    monkeypatch.setattr(digests, "_MOST", 4)
    for number in range(6):
        (tmp_path / f"{number}").write_text("text")
        content_of(tmp_path / f"{number}")
    assert len(list(cache.iterdir())) == 4
    assert not list(cache.glob("*.partial"))


# Files that change while they are read.


def test_a_file_that_changes_while_it_is_read_is_refused(file, monkeypatch):
    def read(descriptor, path, *cuts):
        for piece in ranges.read(descriptor, path, *cuts):
            os.utime(file, ns=(1, 1))
            yield piece

    monkeypatch.setattr(digests, "read", read)
    with pytest.raises(CheckpointError, match="bytes: was changed while it was being read"):
        content_of(file)


@pytest.mark.parametrize("least", [0, 1 << 40], ids=["mapped", "copied"])
def test_a_file_that_is_shorter_than_it_was_is_refused(file, monkeypatch, least):
    monkeypatch.setattr(ranges, "_WORTH_MAPPING", least)
    with file.open("rb") as stream, pytest.raises(CheckpointError, match="ends at byte 3000000 of"):
        digests.digests([Range(file, stream.fileno(), (0, SIZE + 1))])


def test_who_writes_to_a_file_waits_until_it_was_read(file):
    """A map of a file that is cut short meanwhile would end the process."""
    if not leased(file):
        pytest.skip("no leases on this file system")
    cut = threading.Thread(target=os.truncate, args=(file, 0))
    content = file.read_bytes()
    with file.open("rb") as stream, ranges.leased([stream.fileno()]):
        pieces = ranges.read(stream.fileno(), file, 0, SIZE)
        first = next(pieces)
        cut.start()
        cut.join(0.05)
        assert cut.is_alive()
        assert bytes(first) == content
        assert not ranges._is_leased(stream.fileno())  # somebody waits: no more maps
        first.release()
        assert list(pieces) == []
    cut.join(10)
    assert file.stat().st_size == 0


def test_a_file_that_is_open_for_writing_is_copied(file):
    with file.open("r+b"), file.open("rb") as stream, ranges.leased([stream.fileno()]):
        assert not ranges._is_leased(stream.fileno())
        content = b"".join(map(bytes, ranges.read(stream.fileno(), file, 0, SIZE)))
    assert content == file.read_bytes()
