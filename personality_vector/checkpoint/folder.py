"""What lies in the folder of a checkpoint beside its weights."""

import contextlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from personality_vector.checkpoint.tensors import TensorEntry
from personality_vector.errors import CheckpointError
from personality_vector.files.header import UNQUANTISED
from personality_vector.files.owned import MANIFEST, RESULTS
from personality_vector.files.reading import is_stray, parse_json, read_text

_TEMPLATES = "additional_chat_templates"
_SIDE_FILES = {
    # what it is, and how it generates
    *("config.json", "generation_config.json", "params.json", "configuration.json"),
    # tokenizers, by the names that transformers and mistral-common know
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "vocab.txt", "merges.txt", "vocab.bpe", "encoder.json", "tekken.json"),
    *("tokenizer.model", "spiece.model", "spm.model", "sentencepiece.model", "bpe.codes"),
    *("sentencepiece.bpe.model", "tokenizer.model.v3", "normalizer.json", "dict.txt"),
    # processors of images, video and sound
    *("preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json"),
    *("image_processor_config.json", "audio_tokenizer_config.json"),
    # chat templates
    *("chat_template.json", "chat_template.jinja"),
    # what has to stay with the weights
    *("LICENSE", "LICENSE.txt", "LICENSE.md", "NOTICE", "NOTICE.txt", "NOTICE.md"),
    *("USE_POLICY.md", "Notice.txt", "Notice"),
}
"""The side files of a checkpoint, together with the endings of names below. A list, because by
extension ``.env.json`` or ``wandb-key.txt`` would go into every output, and from there to the Hub.
"""
_SIDE_ENDINGS = (".tiktoken",)
_QUANTISED_NAME = re.compile(
    r".*\.(?:qweight|qzeros|g_idx|weight_scale|weight_scale_inv|weight_packed|absmax|quant_map|SCB"
    r"|quant_state\..*)"
)
_QUANTISED_KEYS = ("quantization_config", "compression_config", "quantization")


def read_json(file: Path) -> dict[str, Any]:
    """Return the object in a JSON file.

    Raises:
        CheckpointError: The file is missing or is not a JSON object.
    """
    try:
        if is_stray(file):
            raise CheckpointError(f"{file}: is a link out of its folder; put the file itself there")
        table = parse_json(read_text(file))
    except FileNotFoundError as error:
        raise CheckpointError(f"{file}: is missing") from error
    except OSError as error:
        raise CheckpointError(f"{file}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise CheckpointError(f"{file}: is not JSON: {error}") from error
    if not isinstance(table, dict):
        raise CheckpointError(f"{file}: should hold one JSON object")
    return table


def read_manifest(directory: Path) -> dict[str, Any]:
    """Return what our manifest says about a directory; nothing where there is none."""
    file = directory / MANIFEST
    return read_json(file) if file.is_file() else {}


def has_code(path: Path) -> bool:
    """Return whether a config names Python files of the folder, which are never run here."""
    files = [path / name for name in ("config.json", "tokenizer_config.json")]
    return any("auto_map" in read_json(file) for file in files if file.is_file())


def side_files(path: Path) -> list[Path]:
    """Return config, tokenizer, template and processor files, and code that a config names.

    Raises:
        CheckpointError: One is a link out of the folder, or is not a file.
    """
    with_code = has_code(path)

    def belongs(file: Path) -> bool:
        is_known = file.name in _SIDE_FILES or file.name.endswith(_SIDE_ENDINGS)
        return is_known or (with_code and file.suffix == ".py")

    found = [*(path / _TEMPLATES).glob("*.jinja"), *filter(belongs, path.iterdir())]
    for file in found:
        if is_stray(file, path) or not file.is_file():
            raise CheckpointError(
                f"{file}: is a link out of its folder, or not a file; put the file itself there"
            )
    return sorted(found)


def require_unquantised_config(path: Path) -> None:
    """Refuse a config that says that the weights are quantised; a damaged one is refused later.

    Raises:
        CheckpointError: It says so.
    """
    file, found, how = path / "config.json", [], None
    with contextlib.suppress(CheckpointError):
        config = read_json(file)
        parts = [config, *(part for part in config.values() if isinstance(part, dict))]
        found = [part[key] for part in parts for key in _QUANTISED_KEYS if part.get(key)]
        how = found[0].get("quant_method") if found and isinstance(found[0], dict) else None
    if found:
        raise CheckpointError(
            f"{file}: says that this checkpoint is quantised ({how or 'see there'!s:.40}); "
            f"{UNQUANTISED}"
        )


def require_unquantised(path: Path, entries: Mapping[str, TensorEntry]) -> None:
    """Refuse weights that are codes of integers, whatever the config says.

    Raises:
        CheckpointError: There are some.
    """
    for name, entry in entries.items():
        is_code = entry.dtype in (torch.int8, torch.uint8) and len(entry.shape) > 1
        if _QUANTISED_NAME.fullmatch(name) or (is_code and name.endswith(".weight")):
            raise CheckpointError(f"{path}: is quantised (it has a tensor {name}); {UNQUANTISED}")


def why_unreadable(path: Path, why: str) -> str:
    """Say what a directory without weights is, and what to do with it.

    Args:
        path: The directory.
        why: What to say of one that is nothing that this tool knows.
    """
    steps = sorted(path.glob("checkpoint-*"), key=lambda one: (len(one.name), one.name))
    pickles, of_llama = (sorted(f.name for f in path.glob(end)) for end in ("*.bin", "*.gguf"))
    if (path / "adapter_config.json").is_file():
        why = (
            "is a LoRA adapter, not a whole model; merge it into its base first, with "
            f"`pvec merge --base BASE --term {path}=1 --out DIR`"
        )
    elif (path / RESULTS).is_file():
        why = f"is a run, not a model; see `pvec report {path}`"
    elif steps:
        why = f"is a training with its checkpoints; give one of them, such as {steps[-1].name}"
    elif pickles:
        path /= pickles[0]
        why = (
            "pickled weights can run code and are not opened; convert them once with "
            f"`pvec convert {path.parent} --out DIR`"
        )
    elif of_llama:
        why = (
            "holds files of llama.cpp; make a checkpoint of one first, with "
            f"`pvec convert {path / of_llama[0]} --out DIR`"
        )
    return f"{path}: {why}"
