"""How a command ends when nobody reads what it prints, or when it is interrupted."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from personality_vector.cli.main import _was_interrupted
from personality_vector.errors import CheckpointError, StorageError, foreign, redacted

PVEC = [sys.executable, "-m", "personality_vector.cli"]


def ended(*words, **how):
    """Run a command in a process of its own."""
    how = {"stderr": subprocess.PIPE, "check": False, "timeout": 120, **how}
    return subprocess.run([*PVEC, *map(str, words)], **how)


def closed() -> None:
    os.close(1)


@pytest.fixture
def merge(lab, tmp_path):
    return ["merge", lab.merge, "--out", tmp_path / "out"]


def require_merged(done, out) -> None:
    assert done.returncode == 0
    assert b"Traceback" not in done.stderr
    assert (out / "MANIFEST.json").is_file()


def test_a_merge_is_done_though_standard_output_is_full(merge):
    with Path("/dev/full").open("wb") as full:
        done = ended(*merge, stdout=full)
    require_merged(done, merge[-1])
    assert b"the result could not be printed: No space left on device" in done.stderr


def test_a_merge_is_done_though_standard_output_is_closed(merge):
    require_merged(ended(*merge, "--quiet", preexec_fn=closed), merge[-1])


def test_a_merge_is_done_though_nobody_reads_what_it_prints(merge):
    read, write = os.pipe()
    os.close(read)
    require_merged(ended(*merge, stdout=write), merge[-1])
    os.close(write)


def test_what_is_only_printed_is_lost_when_standard_output_is_full():
    with Path("/dev/full").open("wb") as full:
        assert ended("recipes", stdout=full).returncode == 4
        assert ended("show", "nowhere", stdout=full, stderr=full).returncode == 1


@pytest.mark.parametrize("words", [[], ["--json"]], ids=["text", "json"])
def test_names_that_a_terminal_cannot_show_are_escaped(tmp_path, pico, words):
    model = tmp_path / "mödel-🙂"
    model.symlink_to(pico("llama"))
    env = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    done = ended("show", model, *words, env=env, stdout=subprocess.PIPE)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.isascii()
    if words:
        assert json.loads(done.stdout)["path"] == str(model)


@pytest.mark.slow
@pytest.mark.parametrize("delay", [0.02, 0.1, 0.2, 0.35, 0.5, 0.8, 1.2, 2.0])
def test_an_interrupt_at_any_moment_says_one_line(lab, tmp_path, delay):
    words = ["merge", str(lab.merge), "--out", str(tmp_path / "out")]
    child = subprocess.Popen(
        # Before this line the interpreter starts, and nothing of ours can answer.
        [
            sys.executable,
            "-c",
            f"import sys; sys.argv[:] = ['pvec', *{words!r}]\n"
            "import os; os.write(1, b'.')\nimport personality_vector.cli.main as m; m.main()",
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert child.stdout.read(1) == b"."
    time.sleep(delay)
    child.send_signal(signal.SIGINT)
    _, said = child.communicate(timeout=60)
    assert b"Traceback" not in said, said
    assert child.returncode in (0, 130, -signal.SIGINT)
    left = {path.name for path in tmp_path.iterdir()}
    assert left <= {"out", ".out.partial"}


DESTROYED = """
import signal, sys, time
import personality_vector.cli.main as m

class Thing:
    def __del__(self):
        signal.raise_signal(signal.SIGINT)

def verb(*_, **__):
    Thing()
    time.sleep(20)
    return 0

m.run = verb
m.main([])
"""


def test_an_interrupt_while_an_object_is_destroyed_is_not_lost():
    done = subprocess.run([sys.executable, "-c", DESTROYED], capture_output=True, check=False)
    assert (done.returncode, done.stderr.count(b"\n")) == (130, 1), done.stderr


IMPORTED = """
import sys, time
import personality_vector.cli.main as m

def verb(*_, **__):
    import interrupted
    time.sleep(20)

sys.path.insert(0, {folder!r})
m.run = verb
m.main([])
"""


def test_an_interrupt_does_not_let_an_import_fail(tmp_path):
    # As a module in C++ does, which calls no handler of Python's.
    module = "import os, signal\ntry: signal.raise_signal(signal.SIGINT)\nexcept: os.abort()\n"
    (tmp_path / "interrupted.py").write_text(module)
    program = IMPORTED.format(folder=str(tmp_path))
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=False)
    assert (done.returncode, done.stderr.count(b"\n")) == (130, 1), done.stderr


def test_an_interrupt_that_a_library_wraps_is_an_interrupt():
    def failed(outer):
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt as error:
            raise outer from error

    with pytest.raises(ImportError) as caught:
        failed(ImportError("torch could not be imported"))
    assert _was_interrupted(caught.value)
    assert not _was_interrupted(ImportError("no such module"))


def test_an_interrupted_sweep_says_that_the_same_command_resumes(pvec, lab, tmp_path, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("personality_vector.study.worker.Worker.work", interrupted)
    done = pvec("sweep", lab.sweep, "--out", tmp_path / "run")
    assert done.code == 130
    assert "the same command resumes" in done.err


SECRETS = {
    "Incorrect API key provided: sk-proj-abcdefgh12345678. Find it": "sk-proj-abcdefgh12345678",
    "https://me:hunter22@host/v1 is down": "hunter22",
    "http://host/v1?api_key=12345678&x=1": "12345678",
    "{'Authorization': 'Bearer abc.def.ghi'}": "abc.def.ghi",
    "Invalid user token hf_abcdefghijklm": "hf_abcdefghijklm",
    "the server said: mine-own-key-1 is wrong": "mine-own-key-1",
}


@pytest.mark.parametrize(("said", "secret"), SECRETS.items())
def test_no_key_stays_in_a_message(monkeypatch, said, secret):
    monkeypatch.setenv("MY_API_KEY", "mine-own-key-1")
    assert secret not in redacted(said)
    with pytest.raises(CheckpointError) as caught, foreign(CheckpointError, "x"):
        raise ValueError(said)
    assert secret not in str(caught.value)


def test_an_ordinary_message_stays_as_it_is():
    said = "runs/task-1/out: token 5 of monkey=1 at https://hub.test/me/x is missing"
    assert redacted(said) == said


def test_a_full_disk_inside_a_library_is_not_called_an_error_of_the_library():
    with pytest.raises(OSError, match="full"), foreign(CheckpointError, "x"):
        raise OSError(28, "full")
    with pytest.raises(StorageError), foreign(CheckpointError, "x"):
        raise StorageError("ours")
