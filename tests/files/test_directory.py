"""An output appears whole or not at all, and never replaces what we did not write."""

import contextlib
import errno
import json
import os
import signal
import stat
import subprocess
import sys
from threading import Thread

import pytest

from personality_vector.errors import LockedError, OutputExistsError, StorageError
from personality_vector.files import AtomicDirectory, write_file
from personality_vector.files.owned import PARTIAL
from personality_vector.manifest import MANIFEST, write_manifest


def publish(path, text="new", kind="merge", **options) -> None:
    with AtomicDirectory(path, kind=kind, **options) as partial:
        (partial / "a.txt").write_text(text)
        (partial / "weights").write_bytes(bytes(3 << 20))
        write_manifest(partial, kind, {})


WHOLE = {"a.txt", "weights", MANIFEST}


def test_it_appears_at_the_end_and_not_before(tmp_path):
    out = tmp_path / "deep" / "out"
    with AtomicDirectory(out, kind="merge") as partial:
        (partial / "a.txt").write_text("new")
        assert partial.parent == out.parent
        assert not out.exists()
    assert (out / "a.txt").read_text() == "new"
    assert list(out.parent.iterdir()) == [out]


def fail(path, error, **options) -> None:
    with AtomicDirectory(path, kind="merge", **options) as partial:
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
    with pytest.raises(StorageError), AtomicDirectory(tmp_path / "file" / "out", kind="merge"):
        pass


def test_an_existing_output_is_refused_before_anything_is_written(tmp_path):
    publish(tmp_path / "out", "old")
    with pytest.raises(OutputExistsError, match="--force"):
        AtomicDirectory(tmp_path / "out", kind="merge")
    assert (tmp_path / "out" / "a.txt").read_text() == "old"


def test_an_output_that_appears_meanwhile_is_not_replaced(tmp_path):
    ours, theirs = AtomicDirectory(tmp_path / "out", kind="merge"), tmp_path / "out" / "theirs"
    ours.__enter__()
    theirs.mkdir(parents=True)
    with pytest.raises(OutputExistsError):
        ours.__exit__(None, None, None)
    assert theirs.is_dir()


def test_an_output_that_appears_meanwhile_leaves_no_partial(tmp_path):
    with pytest.raises(OutputExistsError), AtomicDirectory(tmp_path / "out", kind="merge"):
        (tmp_path / "out").mkdir()
    assert list(tmp_path.iterdir()) == [tmp_path / "out"]


def test_force_replaces_ours_and_leaves_nothing_of_the_old(tmp_path):
    publish(tmp_path / "out", "old")
    publish(tmp_path / "out", "new", force=True)
    assert {file.name for file in (tmp_path / "out").iterdir()} == WHOLE
    assert (tmp_path / "out" / "a.txt").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_failed_force_leaves_the_old_output_whole(tmp_path):
    publish(tmp_path / "out", "old")
    with pytest.raises(ValueError, match="stop"):
        fail(tmp_path / "out", ValueError("stop"), force=True)
    assert (tmp_path / "out" / "a.txt").read_text() == "old"
    assert list(tmp_path.iterdir()) == [tmp_path / "out"]


def swap_a_byte(out) -> None:
    file = out / "weights"
    file.write_bytes(b"\1" + file.read_bytes()[1:])


def retrain(out) -> None:
    (out / "weights").write_bytes(b"\7" * (3 << 20))


def rewrite(change):
    def of(out) -> None:
        manifest = json.loads((out / MANIFEST).read_text())
        change(manifest)
        (out / MANIFEST).write_text(json.dumps(manifest))

    return of


def link(out) -> None:
    (out.parent / "elsewhere").write_text("old")
    (out / "a.txt").unlink()
    (out / "a.txt").symlink_to(out.parent / "elsewhere")


CHANGES = {
    "notes were added": lambda out: (out / "NOTES.md").write_text("mine"),
    "notes in a new folder": lambda out: (out / "mine").mkdir() or (out / "mine/x").write_text(""),
    "a link to a folder": lambda out: (out / "mine").symlink_to(out.parent),
    "a file is longer": lambda out: (out / "a.txt").write_text("older"),
    "a file of the same size": lambda out: (out / "a.txt").write_text("mod"),
    "large: its first byte": swap_a_byte,
    "large: another model": retrain,
    "a file is gone": lambda out: (out / "a.txt").unlink(),
    "a file became a link": link,
    "a run": lambda out: (out / "results.sqlite").write_text(""),
    "another kind": rewrite(lambda manifest: manifest.update(kind="delta")),
    "a manifest of another tool": rewrite(lambda manifest: manifest["tool"].update(name="theirs")),
    "a manifest without files": rewrite(lambda manifest: manifest.pop("files")),
    "a manifest that is a list": lambda out: (out / MANIFEST).write_text("[]"),
    "a manifest that is too deep": lambda out: (out / MANIFEST).write_text("[" * 10**6),
    "a manifest that is a pipe": lambda out: (out / MANIFEST).unlink() or os.mkfifo(out / MANIFEST),
}


def content(folder):
    return {
        path: path.read_bytes() if path.is_file() else None for path in sorted(folder.rglob("*"))
    }


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_force_never_replaces_what_is_not_as_this_tool_wrote_it(tmp_path, change):
    publish(tmp_path / "out", "old")
    change(tmp_path / "out")
    before = content(tmp_path)
    with pytest.raises(OutputExistsError, match="never replaced") as caught:
        publish(tmp_path / "out", force=True)
    assert str(caught.value).startswith(f"{tmp_path / 'out'}: ")
    assert content(tmp_path) == before


@pytest.mark.parametrize("change", list(CHANGES)[:4])
def test_a_change_while_the_new_output_is_written_is_not_lost_either(tmp_path, change):
    publish(tmp_path / "out", "old")
    ours = AtomicDirectory(tmp_path / "out", kind="merge", force=True)
    ours.__enter__()
    CHANGES[change](tmp_path / "out")
    before = content(tmp_path / "out")
    with pytest.raises(OutputExistsError):
        ours.__exit__(None, None, None)
    assert content(tmp_path / "out") == before


def test_outputs_of_earlier_versions_which_list_sizes_alone_are_ours(tmp_path):
    publish(tmp_path / "out", "old")
    rewrite(lambda manifest: manifest.pop("digests"))(tmp_path / "out")
    publish(tmp_path / "out", "new", force=True)
    assert (tmp_path / "out" / "a.txt").read_text() == "new"


@pytest.mark.parametrize("kind", ["directory", "file"])
def test_force_never_replaces_what_has_no_manifest(tmp_path, kind):
    out = tmp_path / "out"
    (out / "thesis").mkdir(parents=True) if kind == "directory" else out.write_text("thesis")
    with pytest.raises(OutputExistsError, match="not written by this tool"):
        AtomicDirectory(out, kind="merge", force=True)
    assert out.exists()


def test_somebody_elses_partial_is_neither_written_to_nor_removed(tmp_path):
    mine = tmp_path / ".out.partial"
    mine.mkdir()
    (mine / "thesis").write_text("kept")
    with pytest.raises(OutputExistsError, match=r"\.out\.partial: was not written by this tool"):
        publish(tmp_path / "out")
    assert (mine / "thesis").read_text() == "kept"
    (tmp_path / ".x.txt.partial").write_text("kept")
    write_file(tmp_path / "x.txt", b"new")
    assert (tmp_path / ".x.txt.partial").read_text() == "kept"


@pytest.mark.parametrize("is_published", [False, True], ids=["before", "after"])
def test_killed_between_two_renames_the_old_output_returns_or_goes(tmp_path, is_published):
    """Where two folders cannot be exchanged in one step, the old one is aside for a moment."""
    out, aside = tmp_path / "out", tmp_path / ".out.partial.old"
    publish(out, "old")
    out.chmod(out.stat().st_mode | stat.S_ISVTX)
    out.rename(aside)
    if is_published:
        publish(tmp_path / "newer", "newer")
        (tmp_path / "newer").rename(out)
    with pytest.raises(KeyboardInterrupt):
        fail(out, KeyboardInterrupt, force=True)
    assert (out / "a.txt").read_text() == ("newer" if is_published else "old")
    publish(out, force=True)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    aside.mkdir()
    publish(out, force=True)
    assert aside.exists(), "what is not marked is not ours"


def test_a_file_that_a_killed_process_was_writing_is_taken_over(tmp_path):
    left = tmp_path / f".{MANIFEST}{PARTIAL}"
    left.write_text("half of something longer")
    assert write_manifest(tmp_path, "eval", {})["files"] == {}
    assert [path.name for path in tmp_path.iterdir()] == [MANIFEST]
    left.write_text("half")
    write_file(tmp_path / MANIFEST, b"new")
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"new"]


def test_a_file_that_cannot_be_finished_leaves_the_old_one(tmp_path):
    def fail(partial):
        partial.write_text("half")
        raise OSError(errno.ENOSPC, "full")

    (tmp_path / "x.txt").write_text("old")
    with pytest.raises(StorageError, match=r"x.txt: cannot be written: full"):
        write_file(tmp_path / "x.txt", fail)
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]


def test_two_writers_of_a_file_take_turns(tmp_path):
    """The second begins when the first is done, and neither writes into the file of the other."""
    file, second = tmp_path / "x.txt", Thread(target=write_file, args=(tmp_path / "x.txt", b"2"))

    def write(partial):
        second.start()
        second.join(0.2)
        assert second.is_alive()
        partial.write_text("1")

    write_file(file, write)
    second.join()
    assert [path.read_text() for path in tmp_path.iterdir()] == ["2"]


@pytest.mark.parametrize("output", ["model", "model/merged", ".", "link", "link/merged"])
def test_an_output_that_is_holds_or_lies_in_an_input_is_refused(tmp_path, output):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / MANIFEST).write_text("{}")
    (tmp_path / "link").symlink_to(tmp_path / "model")
    with pytest.raises(OutputExistsError, match="input"):
        AtomicDirectory(tmp_path / output, force=True, kind="merge", inputs=[tmp_path / "model"])


def test_an_output_beside_an_input_of_a_longer_name_is_allowed(tmp_path):
    (tmp_path / "model-base").mkdir()
    publish(tmp_path / "model", inputs=[tmp_path / "model-base"])
    assert (tmp_path / "model" / MANIFEST).is_file()


def test_the_second_of_two_writers_is_locked_out_and_the_first_finishes(tmp_path):
    with AtomicDirectory(tmp_path / "out", kind="merge") as partial:
        (partial / "a.txt").write_text("first")
        with pytest.raises(LockedError) as caught, AtomicDirectory(tmp_path / "out", kind="merge"):
            pass
        assert caught.value.exit_code == 3
    assert (tmp_path / "out" / "a.txt").read_text() == "first"


def test_what_a_killed_process_left_is_removed(tmp_path):
    left = tmp_path / ".out.partial"
    subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / "out")], check=False)
    (left / "sub").mkdir()
    assert (left / "b.txt").is_file()
    publish(tmp_path / "out")
    assert {file.name for file in (tmp_path / "out").iterdir()} == WHOLE
    assert not left.exists()


KILLED = """
import os, signal, sys
from personality_vector.files import AtomicDirectory
with AtomicDirectory(sys.argv[1], kind="merge", force=True) as partial:
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
    assert {file.name for file in out.iterdir()} == WHOLE
    assert list(tmp_path.iterdir()) == [out]


def test_files_get_the_usual_mode(tmp_path):
    with AtomicDirectory(tmp_path / "out", kind="merge") as partial:
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
