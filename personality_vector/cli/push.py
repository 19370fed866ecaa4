"""``pvec push``: upload what this tool wrote to the Hugging Face Hub."""

import json
import re
import tempfile
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from personality_vector.cli import options
from personality_vector.errors import CheckpointError, reason_of, some
from personality_vector.files.owned import MANIFEST, digest_in
from personality_vector.files.reading import parse_json, read_text

_TEXTS = {
    *(MANIFEST, "README.md", "config.json", "adapter_config.json"),
    *("delta.json", "vector.json", "neurons.json", "choice.json"),
}
_ROOT = r"(?:~|[A-Za-z]:)?[/\\]"
_WHOLE = re.compile(rf'"({_ROOT}[^"\n]*[/\\][^"\n]*)"')
_ABSOLUTE = re.compile(
    rf"""(?<![^\s"'(=`,|\[]){_ROOT}(?:[^\s"'`,|<>()\[\]{{}}:/]+/)+[^\s"'`,|<>()\[\]{{}}:/]*"""
)
_REPO = re.compile(r"[a-z0-9][\w.-]*/[\w-][\w.-]*", re.ASCII | re.IGNORECASE)


def push(
    directory: Annotated[
        Path, typer.Argument(metavar="DIR", help="A checkpoint, delta or vector of this tool.")
    ],
    repo: Annotated[str, typer.Argument(metavar="REPO", help="Repository on the Hub: OWNER/NAME.")],
    private: Annotated[
        bool, typer.Option("--private", help="Make the repository private.")
    ] = False,
    message: Annotated[
        str | None, typer.Option("--message", metavar="TEXT", help="Commit message.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check DIR and list what would be uploaded.")
    ] = False,
    as_json: options.Json = False,
) -> None:
    """Upload a merged checkpoint, a saved delta or a steering vector to the Hub.

    Log in first with `hf auth login`. The files of DIR must be those that its MANIFEST.json lists,
    by name and size, and a saved delta is verified. Of a path on this machine, manifest and card
    keep the last part alone.
    """
    manifest, files = read_pushable(directory)
    if not _REPO.fullmatch(repo):
        raise CheckpointError(f"{repo!r}: is not a name on the Hub; write OWNER/NAME")
    kind = manifest["kind"]
    result: dict[str, Any] = {"repo": repo, "kind": kind, "files": files}
    if dry_run:
        lines = [f"{size:>15,}  {name}" for name, size in files.items()]
        lines.append(f"{sum(files.values()):>15,}  bytes would be uploaded to {repo}")
        options.show(result, as_json=as_json, text=lambda: "\n".join(lines))
        return
    message = message or f"Upload {kind.replace('_', ' ')} by personality-vector"
    url = upload(directory, repo, files, private=private, message=message)
    options.show({**result, "url": url}, as_json=as_json, text=lambda: url)


def read_pushable(directory: Path) -> tuple[dict[str, Any], dict[str, int]]:
    """Return the manifest of a directory, and the size in bytes of every file to upload.

    Raises:
        CheckpointError: It has no manifest, is a run, or its files are not those of the manifest.
    """
    from personality_vector.checkpoint.folder import read_json

    if not (directory / MANIFEST).is_file():
        raise CheckpointError(
            f"{directory}: has no {MANIFEST}; only what this tool wrote is uploaded"
        )
    manifest = read_json(directory / MANIFEST)
    listed, kind = manifest.get("files"), manifest.get("kind")
    if not isinstance(listed, dict) or not isinstance(kind, str):
        raise CheckpointError(f"{directory / MANIFEST}: does not list files and a kind")
    if (directory / "results.sqlite").exists():
        raise CheckpointError(f"{directory}: is a run with its answers, not a model or a vector")
    found = {
        path.relative_to(directory).as_posix(): path.stat().st_size
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }
    _require_as_listed(directory, listed, found)
    if kind == "delta":
        from personality_vector.delta.storage import verify

        verify(directory)
    return manifest, found


def upload(
    directory: Path, repo: str, files: Mapping[str, int], *, private: bool, message: str
) -> str:
    """Create the repository if need be, upload the files in one commit, return its address.

    Raises:
        CheckpointError: The Hub refuses, cannot be reached, or shows ``repo`` to everybody though
            ``private`` is asked for.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]  # of httpx

    api = HfApi()
    try:
        url = api.create_repo(repo, private=private or None, repo_type="model", exist_ok=True)
        if private and not api.model_info(repo).private:
            raise CheckpointError(
                f"{repo}: exists and is public; --private makes only a new repository private"
            )
        with _publishable(directory, files) as folder:
            api.upload_folder(
                repo_id=repo,
                folder_path=folder,
                commit_message=message,
                allow_patterns=list(files),
            )
    except (OSError, HTTPError, ValueError) as error:
        reason = reason_of(error).rstrip(".")
        raise CheckpointError(
            f"{repo}: was not uploaded: {reason}; is the name right, and are you logged in "
            "(`hf auth login`)?"
        ) from error
    return str(url)


@contextmanager
def _publishable(directory: Path, files: Mapping[str, int]) -> Generator[Path]:
    """Yield a folder with the same files, in which no text has a path of this machine."""
    texts = {name: read_text(directory / name) for name in sorted(_TEXTS & files.keys())}
    changed = {name: text for name, text in without_paths(texts).items() if text != texts[name]}
    if not changed:
        yield directory
        return
    with tempfile.TemporaryDirectory(prefix="pvec-push-") as folder:
        for name in files:
            copy = Path(folder) / name
            copy.parent.mkdir(parents=True, exist_ok=True)
            if name in changed:
                copy.write_text(changed[name], encoding="utf-8")
            else:
                copy.symlink_to((directory / name).resolve())
        _list_again(Path(folder), changed)
        yield Path(folder)


def _list_again(folder: Path, changed: Mapping[str, str]) -> None:
    """Let the manifest say what the texts are now."""
    manifest = parse_json(read_text(folder / MANIFEST))
    for name in changed.keys() - {MANIFEST}:
        manifest["files"][name] = (folder / name).stat().st_size
        if name in manifest.get("digests", {}):
            manifest["digests"][name] = digest_in(folder / name)
    text = json.dumps(manifest, indent=2, ensure_ascii=False) + "\n"
    (folder / MANIFEST).unlink()
    (folder / MANIFEST).write_text(text, encoding="utf-8")


def without_paths(texts: Mapping[str, str]) -> dict[str, str]:
    """Return texts with the last part of every absolute path in place of the path.

    Paths that stand alone in a JSON string may hold blanks; they are replaced in all texts.
    """
    from personality_vector.checkpoint.cards import shown

    whole = {path for text in texts.values() for path in _WHOLE.findall(text)}
    known = {form for path in whole for form in (path, shown(path))}
    found = {}
    for name, text in texts.items():
        for path in sorted(known, key=len, reverse=True):
            text = text.replace(path, _last(path))
        found[name] = _ABSOLUTE.sub(lambda match: _last(match[0]), text)
    return found


def _last(path: str) -> str:
    return re.split(r"[/\\](?=[^/\\]*$)", path.rstrip("/"))[-1]


def _require_as_listed(
    directory: Path, listed: Mapping[str, Any], found: Mapping[str, int]
) -> None:
    missing, unknown = listed.keys() - found.keys(), found.keys() - listed.keys() - {MANIFEST}
    if missing:
        raise CheckpointError(f"{directory}: lacks {some(missing)}, which {MANIFEST} lists")
    if unknown:
        raise CheckpointError(f"{directory}: {some(unknown)} is not in {MANIFEST}; remove it first")
    for name, size in listed.items():
        if found[name] != size:
            raise CheckpointError(
                f"{directory / name}: has {found[name]} bytes, {MANIFEST} says {size}; "
                "it was changed or is damaged"
            )
