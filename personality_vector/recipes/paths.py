"""Paths and models in a recipe: resolved against the recipe's own folder, and shown resolved."""

import re
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator

from personality_vector.lab import BUILTIN, builtin
from personality_vector.recipes.reading import Given

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")


def located(value: Any, info: Any) -> Any:
    """Return the path that a text in a recipe means, absolute; anything else as it is."""
    if not isinstance(value, str):
        return value
    if value.startswith(BUILTIN):
        return builtin(value)
    folder = (info.context or {}).get("folder")
    if folder is None or isinstance(value, Given):
        return Path(value).expanduser().absolute()
    return (Path(folder) / Path(value).expanduser()).resolve()


def _model(value: Any, info: Any) -> Any:
    if not isinstance(value, str):
        return value
    path = Path(located(value, info))
    is_hub_id = _HUB_ID.fullmatch(value) is not None and not path.exists()
    return str(value) if is_hub_id else str(path)


LocalPath = Annotated[Path, BeforeValidator(located)]
"""A file or folder on this machine."""

ModelRef = Annotated[str, BeforeValidator(_model)]
"""A checkpoint directory, ``builtin:demo``, or a Hub id such as ``meta-llama/Llama-3.1-8B``."""
