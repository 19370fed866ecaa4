"""One tree of errors: each message says what is wrong with which thing, and what would be right.

The command line prints the message and exits with ``exit_code``:
1 a refused input, 3 locked by another process, 4 disk or input/output, 5 verification failed,
6 cannot be verified.
"""

import errno
import logging
import os
import re
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar


class PersonalityVectorError(Exception):
    """The base of every error that this package raises on purpose."""

    exit_code: ClassVar[int] = 1


class TraitError(PersonalityVectorError):
    """A trait, level or pole that cannot be read."""


class RecipeError(PersonalityVectorError):
    """A recipe that does not say what to do: unknown key, wrong value, unreadable YAML."""


class CheckpointError(PersonalityVectorError):
    """A checkpoint, adapter or delta on disk that is missing, damaged or not what it claims."""


class VerificationError(CheckpointError):
    """Bytes on disk that are not the ones that were written."""

    exit_code = 5


class UndecidedError(PersonalityVectorError):
    """What is on disk cannot be compared with what it is supposed to be."""

    exit_code = 6


class BaseMismatchError(PersonalityVectorError):
    """A delta, vector or adapter that belongs to another base model."""


class TensorMismatchError(PersonalityVectorError):
    """Tensor names, shapes or dtypes that do not agree."""


class NonFiniteError(PersonalityVectorError):
    """NaN or infinity where a number is needed."""


class OutputExistsError(PersonalityVectorError):
    """An output that would overwrite something or lie in an input."""


class LockedError(PersonalityVectorError):
    """An output that another process is writing."""

    exit_code = 3


class StorageError(PersonalityVectorError):
    """The disk is full, read-only or failing; nothing was published."""

    exit_code = 4


class ModelError(PersonalityVectorError):
    """A model that cannot be loaded, or whose decoder blocks cannot be found."""


class RowsError(ModelError):
    """An intervention whose strengths cannot differ from row to row in this model."""


class DataError(PersonalityVectorError):
    """A row, statement, chat or instrument that cannot be used."""


class LengthError(DataError):
    """A chat that has more tokens than the model reads.

    Attributes:
        text: Its longest message, by which a caller finds the place of the chat in a file.
    """

    def __init__(self, text: str, tokens: str, most: int, remedy: str = "") -> None:
        remedy = remedy or "shorten it, or check the quotes of the file that it comes from"
        super().__init__(
            f"the chat with {text[:60]!r} has {tokens} tokens, and the model reads at most "
            f"{most:,}; {remedy}"
        )
        self.text = text
        self._given = (text, tokens, most, remedy)

    def remedied(self, remedy: str) -> "LengthError":
        """Return it with other advice."""
        return type(self)(*self._given[:3], remedy)

    def __reduce__(self) -> Any:
        """Let it come back from a worker process."""
        return type(self), self._given


class TrainingError(PersonalityVectorError):
    """A fine-tuning run that cannot start or that diverged."""


class DivergedError(TrainingError):
    """A loss, gradient or weight that is not finite; training again would end the same way."""


FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS})
"""Numbers of errors of a disk that takes no more."""
_LONGEST, _MOST_READ = 600, 1 << 16
"""Numbers of characters of a library's message that are passed on, and that are looked at."""


_SECRETS = re.compile(
    r"""(?P<before>
        ://(?=[^\s/@]*@)                                       # https://user:password@host
        |[?&;](?:api[-_]?key|key|token|access[-_]?token|sig|signature|password|secret)=
        |\bBearer\s+ |\b[Aa]uthorization["']?\s*[:=]\s*["']?(?:(?:Basic|Bearer)\s+)?
    )(?P<secret>[^\s&"'<>@]+)
    |\b(?:hf_|sk-|gsk_|ghp_|github_pat_|xai-|AIza)[\w*.-]{8,}""",
    re.VERBOSE | re.IGNORECASE,
)
_KEYS = ("_KEY", "_TOKEN", "_SECRET", "_PASSWORD")
_SHORTEST_KEY = 8


def redacted(text: str) -> str:
    """Return a text without keys and tokens: of forms that are known, or in the environment."""
    for name, value in os.environ.items():
        if name.upper().endswith(_KEYS) and len(value) >= _SHORTEST_KEY:
            text = text.replace(value, "***")
    return _SECRETS.sub(lambda match: f"{match['before'] or ''}***", text)


def require_new(path: Path, *, force: bool, option: str = "--out") -> None:
    """Refuse to overwrite a path, unless ``force`` is on.

    Raises:
        OutputExistsError: The path exists; the message names the option that chooses another.
    """
    if path.exists() and not force:
        raise OutputExistsError(f"{path}: exists; choose another {option}, or add --force")


def some(names: Iterable[str], most: int = 3) -> str:
    """Return sorted names for a message, at most ``most`` of them: ``a, b, c and 4 more``."""
    ordered = sorted(names)
    shown = ", ".join(ordered[:most])
    return shown if len(ordered) <= most else f"{shown} and {len(ordered) - most} more"


@contextmanager
def foreign(kind: type[PersonalityVectorError], what: str) -> Generator[None]:
    """Turn any error of a library that the block calls into one of ours, in one sentence.

    Args:
        kind: The error to raise.
        what: What failed, and at what: ``DIR: the tokenizer cannot be read``.
    """
    try:
        yield
    except PersonalityVectorError:
        raise
    except BaseException as error:
        if is_of_disk(error):
            raise  # the output that is being written says so
        # A panic of a library in Rust is no Exception.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise kind(f"{what}: {reason_of(error)}") from error


def is_of_disk(error: BaseException) -> bool:
    """Return whether a disk took no more, in the words of Python, safetensors or torch."""
    if isinstance(error, OSError):
        return error.errno in FULL
    text = str(error)
    is_of_rust = type(error).__name__ in ("SafetensorError", "Exception") and "os error" in text
    return is_of_rust or (isinstance(error, RuntimeError) and "PytorchStreamWriter" in text)


@contextmanager
def heard() -> Generator[None]:
    """Keep what transformers would print about a model: an error of ours says what matters."""
    theirs = logging.getLogger("transformers")
    usual, theirs.handlers = theirs.handlers, [logging.NullHandler()]
    try:
        yield
    finally:
        theirs.handlers = usual


def reason_of(error: BaseException) -> str:
    """Return one line about an error of a library, with its type where the text may need it."""
    whole = str(error)  # which may be as long as what somebody broke
    words = whole[:_MOST_READ].split()
    if len(whole) > _MOST_READ and len(words) > 1:
        words.pop()  # it may be half of a key
    said = redacted(" ".join(words))[:_LONGEST]
    is_plain = isinstance(error, OSError | ValueError | RuntimeError)
    speaks = said and (is_plain or type(error).__module__ != "builtins")
    return said if speaks else f"{type(error).__name__}: {said}".removesuffix(": ")


@contextmanager
def blame(**where: object) -> Generator[None]:
    """Add a note about the place of work to any error that passes through."""
    try:
        yield
    except Exception as error:
        error.add_note("while at " + ", ".join(f"{key} {value}" for key, value in where.items()))
        raise
