"""``pvec push``: upload what this tool wrote to the Hugging Face Hub."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from personality_vector.cli import options
from personality_vector.errors import CheckpointError, some
from personality_vector.manifest import MANIFEST

_REPO = re.compile(r"[a-z0-9][\w.-]*/[\w-][\w.-]*", re.ASCII | re.IGNORECASE)


def push(
    directory: Annotated[
        Path, typer.Argument(metavar="DIR", help="A checkpoint, delta or vector of this tool.")
    ],
    repo: Annotated[str, typer.Argument(metavar="REPO", help="On the Hub: OWNER/NAME.")],
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
    by name and size, and a saved delta is verified. Manifest and card name the paths of the inputs.
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
        api.upload_folder(
            repo_id=repo,
            folder_path=directory,
            commit_message=message,
            allow_patterns=list(files),
        )
    except (OSError, HTTPError, ValueError) as error:
        reason = " ".join(str(error).split()).rstrip(".")
        raise CheckpointError(
            f"{repo}: was not uploaded: {reason}; is the name right, and are you logged in "
            "(`hf auth login`)?"
        ) from error
    return str(url)


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
