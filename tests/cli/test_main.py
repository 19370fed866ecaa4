"""The frame of the command line: help, exit codes, one sentence for an error."""

import gc
import json
import signal
import subprocess
import sys

import pytest

from personality_vector.cli.main import main
from personality_vector.files import AtomicDirectory

VERBS = (
    "demo",
    "train",
    "diff",
    "merge",
    "sweep",
    "compare",
    "eval",
    "show",
    "similarity",
    "report",
)


@pytest.fixture
def process(tmp_path):
    """Return ``process(*words)``: run ``pvec`` by itself, and list the heavy imports it made."""

    def call(*words):
        code = (
            "import sys\nfrom personality_vector.cli.main import run\n"
            f"code = run({list(map(str, words))!r})\n"
            "print([n for n in ('torch', 'transformers', 'pandas') if n in sys.modules])\n"
            "sys.exit(code)"
        )
        return subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False
        )

    return call


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["--help"], 0),
        (["merge", "--help"], 0),
        (["steer", "--help"], 0),
        (["recipes"], 0),
        (["train", "training/smoke", "--set", "sft.epochs=0"], 1),
        (["merge", "absent.yaml"], 1),
        (["sweep", "eval/sweeps/smoke", "--set", "strenghts=[1]"], 1),
        (["nonsense"], 2),
    ],
)
def test_help_and_refusals_answer_without_torch(process, words, code):
    done = process(*words)
    assert done.returncode == code, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"
    assert "Traceback" not in done.stderr


def test_the_installed_command_is_this_one():
    done = subprocess.run(
        [sys.executable, "-m", "personality_vector.cli", "--help"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert all(f"\n  {verb} " in done.stdout for verb in (*VERBS, "recipes", "steer"))
    assert "Exit codes: 0 done, 1 refused, 2 usage, 3 locked, 4 " in " ".join(done.stdout.split())


@pytest.mark.parametrize("verb", [*VERBS, "recipes", "recipes copy", "steer extract"])
def test_every_verb_has_help(pvec, verb):
    ended = pvec(*verb.split(), "--help")
    assert (ended.code, ended.err) == (0, "")
    assert ended.out.startswith("Usage: ")
    assert len(ended.out.split("Options:")[0].strip().splitlines()) > 1  # says what it does


@pytest.mark.parametrize(
    "words",
    [
        ["nonsense"],
        ["merge", "--nonsense"],
        ["merge", "a", "b"],
        ["show"],
        ["diff", "a", "b"],
        ["train", "r", "--out"],
        ["diff", "a", "b", "--out", "c", "--dtype", "int8"],
    ],
    ids=" ".join,
)
def test_a_wrong_command_line_is_2(pvec, words):
    ended = pvec(*words)
    assert (ended.code, ended.out) == (2, "")
    assert ended.err.startswith("error: ")
    assert "Traceback" not in ended.err


@pytest.mark.parametrize(("words", "name"), [(["show"], "PATH"), (["diff", "a", "b"], "--out")])
def test_a_missing_argument_is_named(pvec, words, name):
    assert name in pvec(*words).err


def test_nothing_at_all_shows_the_help(pvec):
    ended = pvec()
    assert "error" not in ended.err
    assert (ended.out + ended.err).startswith("Usage: ")


@pytest.fixture
def restored(monkeypatch):
    """What a command line sets for its whole process, this one gets back."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGALRM)}
    threshold = gc.get_threshold()
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)
    yield
    gc.set_threshold(*threshold)
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("restored")
@pytest.mark.parametrize("place", [0, 1, 2])
def test_traceback_is_shown_wherever_it_is_asked_for(capsys, tmp_path, place):
    words = ["show", str(tmp_path / "absent")]
    with pytest.raises(SystemExit) as plain:
        main(words)
    sentence = capsys.readouterr().err
    words.insert(place, "--traceback")
    with pytest.raises(SystemExit) as traced:
        main(words)
    err = capsys.readouterr().err
    assert plain.value.code == traced.value.code == 1
    assert sentence == f"error: {tmp_path / 'absent'}: no such directory\n"
    assert err.startswith("Traceback (most recent call last)")
    assert err.endswith(sentence)


def test_a_locked_output_is_3(pvec, lab, tmp_path):
    with AtomicDirectory(tmp_path / "out", kind="merge"):
        ended = pvec("merge", lab.merge, "--out", tmp_path / "out")
    assert ended.code == 3
    assert "is being written by another process" in ended.err
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("words", [["merge"], ["sweep"]], ids=" ".join)
def test_an_output_that_cannot_be_written_is_4(pvec, lab, tmp_path, words):
    (tmp_path / "file").write_text("mine")
    ended = pvec(*words, getattr(lab, words[0]), "--out", tmp_path / "file" / "out")
    assert ended.code == 4
    assert "cannot be" in ended.err
    assert (tmp_path / "file").read_text() == "mine"


def test_an_interrupt_is_130_and_leaves_nothing(pvec, lab, tmp_path, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("personality_vector.merging.engine.merge_batch", interrupted)
    ended = pvec("merge", lab.merge, "--out", tmp_path / "out")
    assert ended.code == 130
    assert "interrupted" in ended.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("no_pictures")
def test_numbers_that_json_does_not_have_are_null(pvec, lab, tmp_path):
    ended = pvec("sweep", lab.sweep, "--set", "strengths=[1.0]", "--out", tmp_path, "--json")
    text = ended.out
    assert ended.code == 0
    assert json.loads(text, parse_constant=pytest.fail)["dose and response"][0]["pearson"] is None
