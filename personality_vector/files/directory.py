"""Output directories that appear whole or not at all."""

import contextlib
import ctypes
import errno
import fcntl
import os
import shutil
import stat
from collections.abc import Callable, Generator, Iterable
from pathlib import Path
from types import TracebackType

from safetensors import SafetensorError

from personality_vector.errors import (
    FULL,
    LockedError,
    OutputExistsError,
    StorageError,
    is_of_disk,
    require_new,
)
from personality_vector.files.owned import PARTIAL, require_replaceable

_DISK_ERRORS = {*FULL, errno.EIO, errno.EACCES, errno.EPERM}
_RENAME_EXCHANGE = 2
_AT_FDCWD = -100


class AtomicDirectory:
    """Yields a hidden sibling to write into; renames it to ``path`` when the block succeeds.

    After an error nothing is left. A killed process leaves ``.NAME.partial``, which no loader
    takes for a model and which the next run removes. Files and directories are flushed to disk
    before the rename and the parent after it.

    A ``.NAME.partial`` of somebody else is left alone. Ours has the sticky bit, from the moment it
    is created until it has its final name; the bit means nothing else for a directory of one user.

    Args:
        path: The output. It must not exist, unless ``force``.
        kind: The kind of its manifest.
        force: Replace an output of this kind that is as this tool wrote it, in one exchange.
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
        kind: str,
        force: bool = False,
        inputs: Iterable[Path] = (),
        size: int = 0,
    ) -> None:
        self.path = Path(path).resolve()
        self._kind = kind
        self._force = force
        self._size = size
        self._partial = self.path.parent / f".{self.path.name}.partial"
        for source in inputs:
            real = source.resolve()
            if self.path.is_relative_to(real) or real.is_relative_to(self.path):
                raise OutputExistsError(f"{self.path}: is, holds or lies in the input {source}")
        self._refuse_existing()

    def __enter__(self) -> Path:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            free = shutil.disk_usage(self.path.parent).free
            if free < 1.05 * self._size:
                wanted = f"needs {_amount(1.05 * self._size)}, {_amount(free)} are free there"
                raise OSError(errno.ENOSPC, wanted)
            self._lock = _create_locked(self._partial)
            _return(_aside(self._partial), self.path)
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
            why = error.strerror
        elif error is not None and is_of_disk(error):
            why = str(error)  # of safetensors, tokenizers or torch
        else:
            return
        raise StorageError(
            f"{self.path}: cannot be written: {why}; nothing was published"
        ) from error

    def _publish(self) -> None:
        umask = _umask()
        for file in sorted(self._partial.rglob("*")):
            if file.is_file():  # safetensors' own writer leaves a mode of 0600 (safetensors #782)
                file.chmod(0o666 & ~umask)
            _sync(file)
        _sync(self._partial)
        self._refuse_existing()
        if self.path.exists():
            _mark(self.path)
            _exchange(self._partial, self.path)
        else:
            self._partial.rename(self.path)
        with contextlib.suppress(OSError):  # the bit does no harm, and the output is published
            _mark(self.path, on=False)
        _sync(self.path.parent)

    def _refuse_existing(self) -> None:
        require_new(self.path, force=self._force)
        if os.path.lexists(self.path):
            require_replaceable(self.path, self._kind)


def _create_locked(partial: Path) -> int:
    """Create and lock an empty directory, removing what a killed process left there."""
    with contextlib.suppress(FileExistsError):
        partial.mkdir(0o777 | stat.S_ISVTX)
    descriptor = os.open(partial, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not partial.exists() or not os.path.samestat(os.fstat(descriptor), partial.stat()):
            raise BlockingIOError  # it was published between open and lock
        _clear(partial)
    except BaseException as error:
        os.close(descriptor)
        if isinstance(error, BlockingIOError):
            raise LockedError(f"{partial}: is being written by another process") from error
        raise
    return descriptor


def _clear(partial: Path) -> None:
    """Remove what a killed process left in a directory, and refuse what anybody else put there."""
    left = list(partial.iterdir())
    if not partial.stat().st_mode & stat.S_ISVTX:
        if left:
            raise OutputExistsError(
                f"{partial}: was not written by this tool, which would work there; move it away, "
                "or choose another output"
            )
        _mark(partial)
    for path in left:
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def _mark(directory: Path, *, on: bool = True) -> None:
    """Set or clear the bit of a directory that is being written."""
    mode = stat.S_IMODE(directory.stat().st_mode)
    directory.chmod(mode | stat.S_ISVTX if on else mode & ~stat.S_ISVTX)


def _exchange(one: Path, other: Path) -> None:
    """Swap two directories in one step where the system can, so that neither is ever missing."""
    swap = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    names = os.fsencode(one), os.fsencode(other)
    if swap and swap(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE) == 0:
        return
    other.rename(_aside(one))
    one.rename(other)
    _aside(one).rename(one)


def _aside(partial: Path) -> Path:
    """Return where an old output is for a moment while a new one takes its name."""
    return partial.with_name(f"{partial.name}.old")


def _return(aside: Path, path: Path) -> None:
    """Give an old output its name again, or remove it if a killed process had published a new one.

    One that is not marked is not ours.
    """
    if aside.is_dir() and aside.stat().st_mode & stat.S_ISVTX:
        shutil.rmtree(aside) if path.exists() else aside.rename(path)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def explained(path: Path) -> Generator[None]:
    """Turn an error of the disk, while ``path`` is written, into ours."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        why = getattr(error, "strerror", None) or error
        raise StorageError(f"{path}: cannot be written: {why}") from error


def write_file(path: Path, write: bytes | Callable[[Path], object]) -> None:
    """Write a file that appears whole or not at all, and flush it to disk.

    A killed process leaves a hidden file, which the next one that writes ``path`` takes over.

    Args:
        path: The file; it is replaced if it exists.
        write: The content, or what writes it into the path that it is given.

    Raises:
        StorageError: It cannot be written.
    """
    with explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}{PARTIAL}")
        with _locked(partial):
            try:
                write(partial) if callable(write) else partial.write_bytes(write)
                partial.chmod(0o666 & ~_umask())
                _sync(partial)
                partial.replace(path)
            except BaseException:
                partial.unlink(missing_ok=True)
                raise
        _sync(path.parent)


@contextlib.contextmanager
def _locked(partial: Path) -> Generator[None]:
    """Create a file, or take over what a killed process left, and keep other processes from it."""
    while True:
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            # Otherwise the process that had the lock has given the file its final name.
            if partial.exists() and os.path.samestat(os.fstat(descriptor), partial.stat()):
                yield
                return
        finally:
            os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """Flush every file of a folder to disk, and the folders.

    Raises:
        StorageError: The disk is failing.
    """
    with explained(folder):
        for path in [*sorted(folder.rglob("*")), folder]:
            if path.is_file() or path.is_dir():
                _sync(path)


def _amount(size: int | float) -> str:
    """Return a number of bytes in the unit in which it is not 0."""
    for power, unit in ((9, "GB"), (6, "MB"), (3, "kB")):
        if size >= 10**power:
            return f"{size / 10**power:.2f} {unit}"
    return f"{size:.0f} bytes" if size else "0 GB"


def _umask() -> int:
    umask = os.umask(0)
    os.umask(umask)
    return umask
