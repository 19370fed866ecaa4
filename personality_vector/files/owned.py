"""Telling outputs of this tool that nobody has changed since from everything else."""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import xxhash

from personality_vector.errors import OutputExistsError, some
from personality_vector.files.reading import parse_json, read_bytes

MANIFEST = "MANIFEST.json"
RESULTS = "results.sqlite"
PARTIAL = ".pvec-partial"
"""End of the name of a hidden file that is being written, or that a killed process left."""
_WHOLE = 1 << 20
_WINDOWS, _WINDOW = 64, 1 << 14


def sizes_in(directory: Path) -> dict[str, int]:
    """Return the size in bytes of everything in a directory that is not a directory, by path.

    A file that is being written is not counted.
    """
    found = {}
    for folder, folders, files in os.walk(directory):
        links = [name for name in folders if (Path(folder) / name).is_symlink()]
        for path in (Path(folder) / name for name in [*files, *links] if not _is_partial(name)):
            found[path.relative_to(directory).as_posix()] = path.lstat().st_size
    return dict(sorted(found.items()))


def _is_partial(name: str) -> bool:
    return name.startswith(".") and name.endswith(PARTIAL)


def text_digest(text: str) -> str:
    """Return a digest of a text, which a file carries to show that nobody has edited it."""
    return str(xxhash.xxh3_128_hexdigest(text.encode()))


def digest_in(file: Path) -> str:
    """Return a digest of a file: of all of it, or of 64 windows of it if it is larger than 1 MiB.

    The windows do not show a flipped bit. They show that somebody saved another model there.
    """
    digest, size = xxhash.xxh3_128(), file.stat().st_size
    with file.open("rb") as stream:
        if size <= _WHOLE:
            digest.update(stream.read())
        else:
            for number in range(_WINDOWS):
                stream.seek(number * (size - _WINDOW) // (_WINDOWS - 1))
                digest.update(stream.read(_WINDOW))
    return str(digest.hexdigest())


def changes_in(directory: Path, manifest: Mapping[str, Any]) -> Iterator[str]:
    """Yield how a directory differs from what its manifest lists.

    Manifests of earlier versions list sizes only, which then have to agree.
    """
    listed, digests = manifest["files"], manifest.get("digests", {})
    found = {name: size for name, size in sizes_in(directory).items() if name != MANIFEST}
    added, missing = found.keys() - listed.keys(), listed.keys() - found.keys()
    if added:
        yield f"{some(added)} is not in {MANIFEST}"
    if missing:
        yield f"lacks {some(missing)}, which {MANIFEST} lists"
    for name in sorted(found.keys() & listed.keys()):
        path = directory / name
        if found[name] != listed[name]:
            yield f"{name} has {found[name]} bytes, {MANIFEST} says {listed[name]}"
        elif path.is_symlink() or (name in digests and digest_in(path) != digests[name]):
            yield f"{name} was changed after {MANIFEST} was written"


def require_replaceable(path: Path, kind: str) -> None:
    """Check that an output that exists is one of this kind by this tool, as it was written.

    Raises:
        OutputExistsError: It is something else; the message says what.
    """
    for reason in _objections(path, kind):
        raise OutputExistsError(
            f"{path}: {reason}, so it is never replaced; move it away, or choose another output"
        )


def _objections(path: Path, kind: str) -> Iterator[str]:
    """Yield why a path that exists is not ours to replace, the gravest reason first."""
    if not path.is_dir():
        yield "was not written by this tool (it is a file)"
    if (path / RESULTS).exists():
        yield f"is the folder of a run, with {RESULTS}"
    manifest = manifest_of(path)
    if manifest is None:
        yield f"was not written by this tool (it has no {MANIFEST} of this tool)"
    else:
        if manifest["kind"] != kind:
            yield f"is a {manifest['kind']:.40} by this tool, and not a {kind}"
        for change in changes_in(path, manifest):
            yield f"is not as this tool wrote it ({change})"


def beside(file: Path) -> Path:
    """Return the path of the manifest of a single file: ``flagged.MANIFEST.json``."""
    return file.with_name(f"{file.stem}.{MANIFEST}")


def require_replaceable_file(file: Path, kind: str) -> list[Path]:
    """Check that a file and what is listed with it are as this tool wrote them.

    Returns:
        The files that the manifest beside it lists, which may be replaced or removed.

    Raises:
        OutputExistsError: It is something else; the message says what.
    """
    manifest = _manifest_in(beside(file))
    listed = manifest["files"] if manifest and manifest["kind"] == kind else {}
    if manifest is None or file.name not in listed or "digests" not in manifest:
        raise OutputExistsError(
            f"{file}: {beside(file).name} does not say that this tool wrote it, so it is never "
            "replaced; choose another output"
        )
    written = {name: file.with_name(Path(name).name) for name in listed}
    for name, path in written.items():
        if path.exists() and digest_in(path) != manifest["digests"].get(name):
            raise OutputExistsError(
                f"{path}: was changed after {beside(file).name} was written, so it is never "
                "replaced; choose another output"
            )
    return list(written.values())


def manifest_of(directory: Path) -> dict[str, Any] | None:
    """Return the manifest of a directory, if there is one and this tool wrote it."""
    return _manifest_in(directory / MANIFEST)


def _manifest_in(file: Path) -> dict[str, Any] | None:
    try:
        found = parse_json(read_bytes(file))
        is_ours = (
            found["manifest"] == 1
            and found["tool"]["name"] == "personality-vector"
            and isinstance(found["kind"], str)
            and all(type(size) is int for size in found["files"].values())
            and isinstance(found.get("digests", {}), dict)
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return found if is_ours else None
