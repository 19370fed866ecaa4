"""Output directories that appear whole or not at all."""

import contextlib
import ctypes
import errno
import fcntl
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType

from personality_vector.errors import LockedError, OutputExistsError, StorageError, require_new
from personality_vector.manifest import MANIFEST

_DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EACCES, errno.EPERM}
_RENAME_EXCHANGE = 2
_AT_FDCWD = -100


class AtomicDirectory:
    """Yields a hidden sibling to write into; renames it to ``path`` when the block succeeds.

    After an error nothing is left. A killed process leaves ``.NAME.partial``, which no loader
    takes for a model and which the next run removes. Files and directories are flushed to disk
    before the rename and the parent after it.

    Args:
        path: The output. It must not exist, unless ``force``.
        force: Replace an existing output that carries our manifest, in one atomic exchange.
        inputs: Directories being read; an output that is or lies in one of them is refused.
        size: Number of bytes to write, as far as known; more than the disk has free is refused.

    Raises:
        OutputExistsError: ``path`` exists, or is an input.
        LockedError: Another process is writing ``path``.
        StorageError: The disk is full, read-only or failing.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        force: bool = False,
        inputs: Iterable[Path] = (),
        size: int = 0,
    ) -> None:
        self.path = Path(path).resolve()
        self._force = force
        self._size = size
        self._partial = self.path.parent / f".{self.path.name}.partial"
        for source in inputs:
            real = source.resolve()
            if self.path.is_relative_to(real) or real.is_relative_to(self.path):
                raise OutputExistsError(f"{self.path}: is, holds or lies in the input {source}")
        _refuse_existing(self.path, force=force)

    def __enter__(self) -> Path:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            free = shutil.disk_usage(self.path.parent).free
            if free < 1.05 * self._size:
                wanted = f"needs {self._size / 1e9:.2f} GB, {free / 1e9:.2f} GB are free there"
                raise OSError(errno.ENOSPC, wanted)
            self._lock = _create_locked(self._partial)
        except OSError as error:
            raise StorageError(
                f"{self.path}: cannot be written: {error.strerror or error}"
            ) from error
        return self._partial

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            if error is None:
                self._publish()
        except OSError as failure:
            raise StorageError(f"{self.path}: cannot be written: {failure.strerror}") from failure
        finally:
            # After a rename there is nothing of that name; after any failure there is.
            shutil.rmtree(self._partial, ignore_errors=True)
            os.close(self._lock)
        if isinstance(error, OSError) and error.errno in _DISK_ERRORS:
            raise StorageError(
                f"{self.path}: cannot be written: {error.strerror}; nothing was published"
            ) from error

    def _publish(self) -> None:
        umask = os.umask(0)
        os.umask(umask)
        for file in sorted(self._partial.rglob("*")):
            if file.is_file():  # safetensors' own writer leaves a mode of 0600 (safetensors #782)
                file.chmod(0o666 & ~umask)
            _sync(file)
        _sync(self._partial)
        _refuse_existing(self.path, force=self._force)
        if self.path.exists():
            _exchange(self._partial, self.path)
        else:
            self._partial.rename(self.path)
        _sync(self.path.parent)


def _refuse_existing(path: Path, *, force: bool) -> None:
    require_new(path, force=force)
    if path.exists() and not (path / MANIFEST).is_file():
        raise OutputExistsError(
            f"{path}: was not written by this tool (it has no {MANIFEST}), so it is never replaced"
        )


def _create_locked(partial: Path) -> int:
    """Create and lock an empty directory, removing what a killed process left there."""
    with contextlib.suppress(FileExistsError):
        partial.mkdir()
    descriptor = os.open(partial, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not partial.exists() or not os.path.samestat(os.fstat(descriptor), partial.stat()):
            raise BlockingIOError  # it was published between open and lock
    except BlockingIOError as error:
        os.close(descriptor)
        raise LockedError(f"{partial}: is being written by another process") from error
    for left in partial.iterdir():
        shutil.rmtree(left) if left.is_dir() else left.unlink()
    return descriptor


def _exchange(one: Path, other: Path) -> None:
    """Swap two directories in one step where the system can, so that neither is ever missing."""
    swap = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    names = os.fsencode(one), os.fsencode(other)
    if swap and swap(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE) == 0:
        return
    aside = one.with_name(f"{one.name}.old")
    other.rename(aside)
    one.rename(other)
    aside.rename(one)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
