"""``pvec push``: what the Hub is asked for, and what never reaches it."""

import json
import re
from types import SimpleNamespace

import huggingface_hub
import pytest
from huggingface_hub.errors import HTTPError, LocalTokenNotFoundError

from personality_vector.manifest import MANIFEST, write_manifest


@pytest.fixture
def written(tmp_path):
    """Return a directory such as a merge leaves."""
    path = tmp_path / "merged"
    (path / "additional_chat_templates").mkdir(parents=True)
    (path / "model.safetensors").write_bytes(b"weights")
    (path / "additional_chat_templates" / "tools.jinja").write_text("{{ tools }}")
    write_manifest(path, "merge", {"seed": 0})
    return path


@pytest.fixture
def hub(monkeypatch):
    """Return what a Hub without a network is asked for; ``hub.fail`` is raised on upload."""
    hub = SimpleNamespace(created=[], uploaded=[], private=True, fail=None)

    class FakeApi:
        def create_repo(self, repo_id, **given):
            hub.created.append((repo_id, given))
            return f"https://hub.test/{repo_id}"

        def model_info(self, repo_id):
            assert repo_id == hub.created[-1][0]
            return SimpleNamespace(private=hub.private)

        def upload_folder(self, **given):
            if hub.fail:
                raise hub.fail
            hub.uploaded.append(given)

    monkeypatch.setattr(huggingface_hub, "HfApi", FakeApi)
    return hub


def test_every_file_is_uploaded_in_one_commit_and_the_url_is_told(pvec, written, hub):
    ended = pvec("push", written, "me/merged", "--message", "first")
    assert (ended.code, ended.out, ended.err) == (0, "https://hub.test/me/merged\n", "")
    ((repo, given),) = hub.created
    assert (repo, given["exist_ok"], given["private"]) == ("me/merged", True, None)
    (upload,) = hub.uploaded
    assert (upload["repo_id"], upload["commit_message"]) == ("me/merged", "first")
    assert upload["folder_path"] == written
    assert set(upload["allow_patterns"]) == {
        MANIFEST,
        "model.safetensors",
        "additional_chat_templates/tools.jinja",
    }


def test_private_is_asked_for_and_checked(pvec, written, hub):
    ended = pvec("push", written, "me/merged", "--private", "--json")
    assert ended.json["url"] == "https://hub.test/me/merged"
    assert hub.created[0][1]["private"] is True
    hub.private = False
    ended = pvec("push", written, "me/merged", "--private")
    assert ended.code == 1
    assert "exists and is public" in ended.err
    assert len(hub.uploaded) == 1


def test_a_dry_run_lists_the_files_and_asks_the_hub_for_nothing(pvec, written, hub):
    ended = pvec("push", written, "me/merged", "--dry-run")
    assert "7  model.safetensors\n" in ended.out
    assert "bytes would be uploaded to me/merged" in ended.out
    listed = pvec("push", written, "me/merged", "--dry-run", "--json").json["files"]
    assert listed.keys() == {
        MANIFEST,
        "model.safetensors",
        "additional_chat_templates/tools.jinja",
    }
    assert hub.created == hub.uploaded == []


def rewrite(path, change):
    manifest = json.loads((path / MANIFEST).read_text())
    change(manifest)
    (path / MANIFEST).write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda path: (path / MANIFEST).unlink(), f"merged: has no {MANIFEST}"),
        (lambda path: (path / MANIFEST).write_text("{"), "is not JSON"),
        (lambda path: rewrite(path, lambda manifest: manifest.pop("files")), "does not list files"),
        (lambda path: (path / "model.safetensors").write_bytes(b"short"), "has 5 bytes, .* says 7"),
        (lambda path: (path / "model.safetensors").unlink(), "lacks model.safetensors"),
        (lambda path: (path / ".env").write_text("TOKEN=1"), r"\.env is not in MANIFEST"),
        (lambda path: (path / "results.sqlite").write_text(""), "is a run"),
    ],
)
def test_what_is_not_as_it_was_written_is_refused(pvec, written, hub, damage, reason):
    damage(written)
    for words in ([], ["--dry-run"]):
        ended = pvec("push", written, "me/merged", *words)
        assert ended.code == 1
        assert re.search(reason, ended.err)
    assert hub.created == hub.uploaded == []


@pytest.mark.parametrize("repo", ["a/b/c", "no spaces", "name", "../up"])
def test_a_name_that_the_hub_does_not_take_is_refused(pvec, written, hub, repo):
    ended = pvec("push", written, repo)
    assert ended.code == 1
    assert "is not a name on the Hub; write OWNER/NAME" in ended.err
    assert hub.created == []


@pytest.mark.parametrize(
    "failure",
    [HTTPError("Connection\nrefused"), LocalTokenNotFoundError("no token"), OSError("no route")],
)
def test_a_hub_that_fails_is_one_sentence(pvec, written, hub, failure):
    hub.fail = failure
    ended = pvec("push", written, "me/merged")
    assert ended.code == 1
    assert ended.err.startswith("error: me/merged: was not uploaded: ")
    assert " ".join(str(failure).split()) in ended.err
    assert len(ended.err.splitlines()) == 1
