"""--force replaces what the same verb wrote and nobody changed, whatever the verbs are."""

import json
import sqlite3
from itertools import pairwise

import pytest

from personality_vector.manifest import MANIFEST


def content(folder):
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def made(lab, tmp_path_factory):
    """Return a folder with an output of every kind, and the command that makes each."""
    from personality_vector.cli.main import run

    folder = tmp_path_factory.mktemp("made")
    commands = {
        "merge": ["merge", lab.merge],
        "delta": ["diff", lab.base, lab.tuned],
        "vector": ["steer", "extract", lab.extract],
        "eval": ["eval", lab.eval],
        "sweep": ["sweep", lab.sweep],
    }
    commands = {kind: list(map(str, words)) for kind, words in commands.items()}
    for kind, words in commands.items():
        assert run([*words, "--out", str(folder / kind)]) == 0
    return folder, commands


KINDS = ["merge", "delta", "vector", "eval", "sweep"]


# Every kind replaces itself, and is kept from the next one.
PAIRS = [(kind, kind) for kind in KINDS] + list(pairwise([*KINDS, KINDS[0]]))


@pytest.mark.parametrize(("old", "new"), PAIRS)
def test_force_replaces_an_output_of_the_same_kind_alone(pvec, made, old, new):
    folder, commands = made
    before = content(folder / old)
    done = pvec(*commands[new], "--out", folder / old, "--force")
    if old == new:
        assert done.code == 0
        return
    assert done.code == 1
    assert str(folder / old) in done.err
    assert content(folder / old) == before


@pytest.mark.parametrize("kind", KINDS[:3])
def test_force_keeps_what_a_user_added_or_changed(pvec, made, kind):
    folder, commands = made
    out = folder / kind
    notes = out / "NOTES.md"
    notes.write_text("mine")
    done = pvec(*commands[kind], "--out", out, "--force")
    assert (done.code, notes.read_text()) == (1, "mine")
    assert "NOTES.md is not in MANIFEST.json" in done.err
    notes.unlink()
    text = next(path for path in sorted(out.iterdir()) if path.name != MANIFEST)
    kept = text.read_bytes()
    text.write_bytes(kept[:-1] + b"!")
    done = pvec(*commands[kind], "--out", out, "--force")
    assert done.code == 1
    assert f"{text.name} was changed after" in done.err
    text.write_bytes(kept)
    assert pvec(*commands[kind], "--out", out, "--force").code == 0


def test_notes_in_the_folder_of_a_run_stay(pvec, made):
    folder, commands = made
    (folder / "eval" / "NOTES.md").write_text("mine")
    assert pvec(*commands["eval"], "--out", folder / "eval", "--force").code == 0
    assert (folder / "eval" / "NOTES.md").read_text() == "mine"


ALTERED = [
    "UPDATE run SET value = '[[[' WHERE key = 'recipe'",
    "UPDATE run SET value = '7'",
    "DELETE FROM run WHERE key != 'format'",
    "UPDATE readings SET value = 'high'",
    "UPDATE readings SET n = 'many'",
    "UPDATE answers SET reply = x'ff00'",
    "UPDATE planned SET nominal = 'x'",
    "UPDATE planned SET label = x'ff'",
    "DELETE FROM planned",
    "DROP TABLE answers",
    "ALTER TABLE readings RENAME COLUMN value TO worth",
    "UPDATE run SET value = 'NaN' WHERE key = 'seeds'",
    "UPDATE run SET value = printf('%.*c', 100000, '[') WHERE key = 'base'",
]


@pytest.mark.parametrize(
    ("verb", "change"),
    [
        *(("report", change) for change in ALTERED),
        *(("judge", change) for change in ALTERED[::4]),
        *(("eval", change) for change in ALTERED[:9:8]),  # which measures again what is gone
    ],
)
def test_altered_results_are_one_sentence_or_still_good(pvec, made, lab, tmp_path, verb, change):
    import shutil

    folder, commands = made
    run = shutil.copytree(folder / "eval", tmp_path / "run")
    with sqlite3.connect(run / "results.sqlite") as store:
        store.execute(change)
    store.close()
    words = {
        "report": ["report", run],
        "judge": ["judge", run, "--judge", lab.judge],
        "eval": [*commands["eval"], "--out", run],
    }
    done = pvec(*words[verb])
    assert done.code in (0, 1, 5)
    assert done.code == 0 or (done.err.startswith("error: ") and str(run) in done.err)
    assert "Traceback" not in done.err


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE readings SET value = value + 0.01; UPDATE cells SET seconds = 1.0",
        "DELETE FROM answers WHERE id = 1",
    ],
)
def test_a_result_that_was_changed_is_seen_by_every_reader(pvec, made, lab, tmp_path, change):
    import shutil

    folder, commands = made
    run = shutil.copytree(folder / "eval", tmp_path / "run")
    with sqlite3.connect(run / "results.sqlite") as store:
        store.executescript(change)
    store.close()
    for words in (
        ["report", run],
        ["verify", run],
        ["judge", run, "--judge", lab.judge],
        [*commands["eval"], "--out", run],
    ):
        done = pvec(*words)
        assert (done.code, "results were changed after" in done.err) == (5, True)


def test_what_is_pushed_has_no_path_of_this_machine(pvec, made, monkeypatch):
    import huggingface_hub

    folder, _ = made
    seen = {}

    class Api:
        def create_repo(self, repo_id, **_):
            return f"https://hub.test/{repo_id}"

        def upload_folder(self, *, folder_path, allow_patterns, **_):
            for name in allow_patterns:
                seen[name] = (folder_path / name).read_bytes()

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    for kind in ("merge", "delta", "vector"):
        before = content(folder / kind)
        seen.clear()
        assert pvec("push", folder / kind, "me/x").code == 0
        texts = {name: data.decode() for name, data in seen.items() if name.endswith(("on", "md"))}
        assert not {name for name, text in texts.items() if "/tmp/" in text or "/home/" in text}
        manifest = json.loads(texts[MANIFEST])
        assert {name: len(data) for name, data in seen.items() if name != MANIFEST} == manifest[
            "files"
        ]
        assert content(folder / kind) == before
