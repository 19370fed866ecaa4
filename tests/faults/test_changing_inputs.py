"""A disk that is too small, and inputs that change while they are read: nothing is mixed."""

import os
import re
import shutil

import pytest

from personality_vector.checkpoint import ShardWriter
from personality_vector.delta import Delta


def test_a_disk_too_small_is_refused_before_anything_is_merged(merge, bench, monkeypatch):
    folder, _ = bench
    monkeypatch.setattr("shutil.disk_usage", lambda _: shutil._ntuple_diskusage(9, 9, 0))
    monkeypatch.setattr(ShardWriter, "__enter__", lambda _: pytest.fail("a shard was begun"))
    code, err = merge()
    assert code == 4
    assert re.search(r"out: cannot be written: needs [1-9][\d.]* kB, 0 GB are free there", err)
    assert err.count("\n") == 1
    assert sorted(path.name for path in folder.iterdir()) == ["mine.yaml", "tuned"]


def written_to(file):
    """Change one byte in the middle."""
    with file.open("r+b") as stream:
        stream.seek(-1000, os.SEEK_END)
        byte = stream.read(1)[0]
        stream.seek(-1000, os.SEEK_END)
        stream.write(bytes([byte ^ 1]))


def touched(file):
    later = file.stat().st_mtime_ns + 1_000_000
    os.utime(file, ns=(later, later))


def truncated(file):
    os.truncate(file, file.stat().st_size - 100)


@pytest.mark.parametrize("change", [written_to, touched, truncated])
@pytest.mark.parametrize("place", ["base", "tuned", "delta"])
def test_an_input_that_changes_during_the_merge_is_refused(
    merge, bench, pico, monkeypatch, change, place
):
    folder, recipe = bench
    base = shutil.copytree(pico("llama"), folder / "base")
    recipe["base"] = str(base)
    Delta.between(base, folder / "tuned").save(folder / "delta")
    recipe["terms"].append({"delta": str(folder / "delta"), "alpha": 0.25})
    file = next((folder / place).glob("*.safetensors"))
    write_part, left = ShardWriter.write_part, [change]

    def write_and_change(self, *given):
        write_part(self, *given)
        if left:
            left.pop()(file)

    monkeypatch.setattr(ShardWriter, "write_part", write_and_change)
    code, err = merge()
    said = ("was changed while it was being read", "was it changed?")
    assert code == 1
    assert f"{file}: " in err
    assert any(words in err for words in said)
    assert err.count("\n") == 1
    assert not [path for path in folder.iterdir() if "out" in path.name]


def test_an_input_that_is_replaced_during_the_merge_is_read_to_its_end(
    merge, bench, pico, monkeypatch, tmp_path_factory
):
    """The files that were opened are the files that are read: nothing is mixed."""
    folder, _ = bench
    before = tmp_path_factory.mktemp("before") / "out"
    assert merge("--out", str(before))[0] == 0
    write_part, left = ShardWriter.write_part, [folder / "tuned" / "model.safetensors"]

    def write_and_replace(self, *given):
        write_part(self, *given)
        if left:
            shutil.copy(pico("llama") / "model.safetensors", folder / "new")
            (folder / "new").rename(left.pop())

    monkeypatch.setattr(ShardWriter, "write_part", write_and_replace)
    assert merge() == (0, "")
    weights = [path / "model.safetensors" for path in (before, folder / "out")]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    files = [path / "model.safetensors" for path in (folder / "tuned", pico("llama"))]
    assert files[0].read_bytes() == files[1].read_bytes()
