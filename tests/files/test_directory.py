"""An output appears whole or not at all, and never replaces what we did not write."""

import contextlib
import errno
import os
import signal
import subprocess
import sys

import pytest

from personality_vector.errors import LockedError, OutputExistsError, StorageError
from personality_vector.files import AtomicDirectory
from personality_vector.manifest import MANIFEST


def publish(path, text="new", **options) -> None:
    with AtomicDirectory(path, **options) as partial:
        (partial / "a.txt").write_text(text)
        (partial / MANIFEST).write_text("{}")


def test_it_appears_at_the_end_and_not_before(tmp_path):
    out = tmp_path / "deep" / "out"
    with AtomicDirectory(out) as partial:
        (partial / "a.txt").write_text("new")
        assert partial.parent == out.parent
        assert not out.exists()
    assert (out / "a.txt").read_text() == "new"
    assert list(out.parent.iterdir()) == [out]


def fail(path, error, **options) -> None:
    with AtomicDirectory(path, **options) as partial:
        (partial / "sub").mkdir()
        (partial / "sub" / "a.txt").write_text("half")
        raise error


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_after_an_exception_nothing_is_left(tmp_path, error):
    with pytest.raises(error):
        fail(tmp_path / "out", error)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EROFS])
def test_a_failing_disk_is_a_storage_error(tmp_path, code):
    with pytest.raises(StorageError, match="out: cannot be written") as caught:
        fail(tmp_path / "out", OSError(code, os.strerror(code)))
    assert caught.value.exit_code == 4
    assert not list(tmp_path.iterdir())


def test_a_parent_that_is_a_file_is_a_storage_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError), AtomicDirectory(tmp_path / "file" / "out"):
        pass


def test_an_existing_output_is_refused_before_anything_is_written(tmp_path):
    publish(tmp_path / "out", "old")
    with pytest.raises(OutputExistsError, match="--force"):
        AtomicDirectory(tmp_path / "out")
    assert (tmp_path / "out" / "a.txt").read_text() == "old"


def test_an_output_that_appears_meanwhile_is_not_replaced(tmp_path):
    ours, theirs = AtomicDirectory(tmp_path / "out"), tmp_path / "out" / "theirs"
    ours.__enter__()
    theirs.mkdir(parents=True)
    with pytest.raises(OutputExistsError):
        ours.__exit__(None, None, None)
    assert theirs.is_dir()


def test_an_output_that_appears_meanwhile_leaves_no_partial(tmp_path):
    with pytest.raises(OutputExistsError), AtomicDirectory(tmp_path / "out"):
        (tmp_path / "out").mkdir()
    assert list(tmp_path.iterdir()) == [tmp_path / "out"]


def test_force_replaces_ours_and_leaves_nothing_of_the_old(tmp_path):
    publish(tmp_path / "out", "old")
    (tmp_path / "out" / "stale.txt").write_text("")
    publish(tmp_path / "out", "new", force=True)
    assert {file.name for file in (tmp_path / "out").iterdir()} == {"a.txt", MANIFEST}
    assert (tmp_path / "out" / "a.txt").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_failed_force_leaves_the_old_output_whole(tmp_path):
    publish(tmp_path / "out", "old")
    with pytest.raises(ValueError, match="stop"):
        fail(tmp_path / "out", ValueError("stop"), force=True)
    assert (tmp_path / "out" / "a.txt").read_text() == "old"
    assert list(tmp_path.iterdir()) == [tmp_path / "out"]


@pytest.mark.parametrize("kind", ["directory", "file"])
def test_force_never_replaces_what_has_no_manifest_of_ours(tmp_path, kind):
    out = tmp_path / "out"
    (out / "thesis").mkdir(parents=True) if kind == "directory" else out.write_text("thesis")
    with pytest.raises(OutputExistsError, match="not written by this tool"):
        AtomicDirectory(out, force=True)
    assert out.exists()


@pytest.mark.parametrize("output", ["model", "model/merged", ".", "link", "link/merged"])
def test_an_output_that_is_holds_or_lies_in_an_input_is_refused(tmp_path, output):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / MANIFEST).write_text("{}")
    (tmp_path / "link").symlink_to(tmp_path / "model")
    with pytest.raises(OutputExistsError, match="input"):
        AtomicDirectory(tmp_path / output, force=True, inputs=[tmp_path / "model"])


def test_an_output_beside_an_input_of_a_longer_name_is_allowed(tmp_path):
    (tmp_path / "model-base").mkdir()
    publish(tmp_path / "model", inputs=[tmp_path / "model-base"])
    assert (tmp_path / "model" / MANIFEST).is_file()


def test_the_second_of_two_writers_is_locked_out_and_the_first_finishes(tmp_path):
    with AtomicDirectory(tmp_path / "out") as partial:
        (partial / "a.txt").write_text("first")
        with pytest.raises(LockedError) as caught, AtomicDirectory(tmp_path / "out"):
            pass
        assert caught.value.exit_code == 3
    assert (tmp_path / "out" / "a.txt").read_text() == "first"


def test_what_a_killed_process_left_is_removed(tmp_path):
    left = tmp_path / ".out.partial"
    (left / "sub").mkdir(parents=True)
    (left / "half.safetensors").write_text("half")
    publish(tmp_path / "out")
    assert {file.name for file in (tmp_path / "out").iterdir()} == {"a.txt", MANIFEST}
    assert not left.exists()


KILLED = """
import os, signal, sys
from personality_vector.files import AtomicDirectory
with AtomicDirectory(sys.argv[1], force=True) as partial:
    (partial / "a.txt").write_text("half")
    (partial / "b.txt").write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("old", [False, True], ids=["fresh", "over an old output"])
def test_after_kill_9_there_is_the_old_output_or_none_and_a_rerun_succeeds(tmp_path, old):
    out = tmp_path / "out"
    if old:
        publish(out, "old")
    killed = subprocess.run([sys.executable, "-c", KILLED, str(out)], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert out.exists() == old
    assert not old or (out / "a.txt").read_text() == "old"
    publish(out, force=True)
    assert {file.name for file in out.iterdir()} == {"a.txt", MANIFEST}
    assert list(tmp_path.iterdir()) == [out]


def test_files_get_the_usual_mode(tmp_path):
    with AtomicDirectory(tmp_path / "out") as partial:
        (partial / "a.txt").touch(mode=0o600)
    umask = os.umask(0)
    os.umask(umask)
    assert (tmp_path / "out" / "a.txt").stat().st_mode & 0o777 == 0o666 & ~umask


def test_force_through_a_link_replaces_and_leaves_nothing(tmp_path):
    publish(tmp_path / "real", "old")
    (tmp_path / "out").symlink_to(tmp_path / "real")
    publish(tmp_path / "out", "new", force=True)
    assert (tmp_path / "out" / "a.txt").read_text() == "new"
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_a_partial_directory_that_is_a_link_is_not_followed(tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter").write_text("kept")
    (tmp_path / ".out.partial").symlink_to(tmp_path / "thesis")
    with contextlib.suppress(StorageError, LockedError):
        publish(tmp_path / "out")
    assert (tmp_path / "thesis" / "chapter").read_text() == "kept"
