"""Configurations of models: transformers reads a config.json that may come from anywhere."""

import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from personality_vector.checkpoint import read_json
from personality_vector.checkpoint.folder import require_unquantised_config, side_files
from personality_vector.errors import CheckpointError, ModelError, foreign, heard
from personality_vector.files.reading import MOST_BYTES, is_stray

_COUNTS = re.compile(r"(?:layers?|labels)$")
_MOST = 10_000


def read_config(path: str | Path, to: str = "read config.json") -> Any:
    """Return the configuration of a checkpoint as transformers reads it, defaults filled in.

    Nothing that the folder holds or names is run.

    Args:
        path: The folder.
        to: What transformers is to do, for messages.

    Raises:
        ModelError: transformers does not know the architecture, or the config wants code to run.
        CheckpointError: A file is not what it should be.
    """
    from transformers import AutoConfig

    _require_inert(Path(path))
    with foreign(ModelError, f"{path}: transformers cannot {to}"), heard():
        return AutoConfig.from_pretrained(str(path), trust_remote_code=False)


def _require_inert(path: Path) -> None:
    """Refuse a folder in which a library would run code, fetch kernels or read without bounds.

    Raises:
        ModelError: Its config wants code or kernels, or it is an adapter.
        CheckpointError: A file is a link out of the folder, a pipe, or too large.
    """
    from transformers import CONFIG_MAPPING

    if not path.is_dir():
        return
    if (path / "adapter_config.json").is_file():
        raise ModelError(
            f"{path}: holds an adapter (adapter_config.json), which transformers would put on the "
            "model that it names; merge it first, with `pvec merge`"
        )
    require_bounded(path)
    require_unquantised_config(path)
    config = read_json(path / "config.json")
    _require_plausible_counts(path, config)
    kind = config.get("model_type")
    if "auto_map" in config and kind not in CONFIG_MAPPING:
        raise ModelError(
            f"{path}: this model (model_type {kind!r:.60}) needs code of its own, which is never "
            "run; it can be merged, since that needs no code, but not loaded"
        )
    for key, value in _implementations(config):
        is_fetched = value.startswith("flash") and importlib.util.find_spec("flash_attn") is None
        if "/" in value or is_fetched:
            raise ModelError(
                f"{path / 'config.json'}: {key} names the kernel {value!r:.80}, which would be "
                "fetched and run; remove the key"
            )


def require_bounded(path: Path) -> None:
    """Refuse weights that are links, and other files that are larger than what is read whole.

    Raises:
        CheckpointError: A file is one of these.
    """
    for file in path.glob("*.safetensors*"):
        if is_stray(file):
            raise CheckpointError(f"{file}: is a link out of its folder; put the file itself there")
    for file in side_files(path):
        if file.stat().st_size > MOST_BYTES:
            raise CheckpointError(f"{file}: has more than {MOST_BYTES:,} bytes")


def _implementations(config: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Yield every text below a key such as ``attn_implementation``, however deep it lies."""
    if isinstance(config, dict):
        for name, value in config.items():
            yield from _implementations(value, key if "_implementation" in key else str(name))
    elif isinstance(config, list):
        for value in config:
            yield from _implementations(value, key)
    elif isinstance(config, str) and "_implementation" in key:
        yield key, config


def _require_plausible_counts(path: Path, config: Any) -> None:
    """Refuse a count so large that transformers would fill a huge list before it reads a weight.

    Raises:
        ModelError: A number of layers or of labels is larger than any model's.
    """
    for key, value in config.items():
        if isinstance(value, dict):
            _require_plausible_counts(path, value)
        elif isinstance(value, int) and value > _MOST and _COUNTS.search(key):
            raise ModelError(
                f"{path / 'config.json'}: {key} is more than {_MOST:,}, which no model has"
            )
