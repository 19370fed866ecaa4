"""Converting a model of llama.cpp (GGUF) to a checkpoint, dequantised through transformers."""

import contextlib
import io
import re
import tempfile
import warnings
from collections.abc import Generator
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch

from personality_vector.checkpoint.gguf_file import GgufFile, gguf_package
from personality_vector.checkpoint.reader import Checkpoint
from personality_vector.checkpoint.tensors import FLOATS
from personality_vector.errors import CheckpointError, foreign, heard, some
from personality_vector.files import AtomicDirectory
from personality_vector.manifest import WEIGHTS, write_manifest

_NAME = "model.gguf"
_ROPE_TABLE = re.compile(r"(?:blk\.\d+\.)?rope_(?:freqs|factors_\w+)\.weight")
_LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
_LLAMA3_CONTEXT = 8192
_BEYOND = re.compile(r"blk\.(\d+)\..*")
_DIGITS_APART = ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b")
"""Pre-tokenizers of llama.cpp that cut text as GPT-2 does, after every digit is cut off."""
_LIKE_GPT2 = ("default", "gpt-2", "phi-2", "mpt", "olmo", "jais", "trillion")
"""Those that cut as GPT-2 does. ``default`` stands in old files, and tells nothing."""
_BEGUN = ("llama3", "llama-v3", "llama-bpe", "tekken")
"""Those with which llama.cpp keeps a word that is a token whole, whatever the merges give, and
begins a text with ``bos`` unless the file says otherwise."""
_IDS = {"bos_token_id": "bos", "eos_token_id": "eos", "pad_token_id": "padding"}
_ENDS = ("eos", "eot", "eom")
_GEMMA_27B = (("gemma2", 46), ("gemma3", 62))
"""The models whose attention llama.cpp scales by the width over the number of heads."""


def dequantise(
    source: GgufFile, out: str | Path, *, dtype: str = "float32", force: bool = False
) -> dict[str, Any]:
    """Write the model of a GGUF file as a checkpoint that transformers loads.

    Of the folder of the file, nothing else is read. What transformers does not read of a file is
    filled in from its fields: the width of a head, scaled rotary embeddings, how text is cut into
    pieces, and the other tokens at which a reply ends.

    Args:
        source: The file.
        out: Directory to write; it appears whole or not at all.
        dtype: ``float32`` holds exactly the numbers that llama.cpp computes with; ``bfloat16`` and
            ``float16`` are half as large and round them.
        force: Replace an output that this tool wrote.

    Returns:
        The manifest.

    Raises:
        CheckpointError: It is not a model, is damaged, or is one that transformers cannot read, or
            not completely.
        StorageError: The disk is full, read-only or failing.
    """
    source.require_model()
    size = sum(prod(one.shape) for one in source.tensors) * FLOATS[dtype].itemsize
    size += sum(one.size for one in source.tensors) if source.others else 0
    with AtomicDirectory(
        out, kind="convert", force=force, inputs=[source.path, *source.others], size=size
    ) as partial:
        with _quietly(source, partial) as folder:
            config = _config(source, folder)
            left_out = _left_out(source, config)
            tokenizer, model = _tokenizer(source, folder), _model(source, folder, config, dtype)
        model.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
        written = Checkpoint.written(partial)
        content = {
            **source.recorded,
            "architecture": source.architecture,
            "types": source.types,
            "dtype": dtype,
            "left_out": left_out,
            "tensors": len(written.names),
            WEIGHTS: written.fingerprint.digest,
        }
        return write_manifest(partial, "convert", content)


@contextlib.contextmanager
def _quietly(source: GgufFile, out: Path) -> Generator[str]:
    """Yield a folder that holds nothing but the file, while transformers says nothing."""
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    with (
        _alone(source, out) as folder,
        contextlib.redirect_stderr(io.StringIO()),
        heard(),
        warnings.catch_warnings(action="ignore"),
        foreign(CheckpointError, f"{source.path}: transformers cannot read this model"),
    ):
        yield folder


@contextlib.contextmanager
def _alone(source: GgufFile, out: Path) -> Generator[str]:
    """Yield a folder in ``out`` that holds nothing but the file, joined if it is in parts."""
    with tempfile.TemporaryDirectory(dir=out) as folder:
        if source.others:
            source.join(Path(folder) / _NAME)
        else:
            (Path(folder) / _NAME).symlink_to(source.path.resolve())
        yield folder


def _model(source: GgufFile, folder: str, config: Any, dtype: str) -> Any:
    from transformers import AutoModelForCausalLM, GgufConfig

    # Otherwise kernels for blocks of codes may be fetched from the Hub, and run.
    plain = GgufConfig(dequantize=True)
    model, report = AutoModelForCausalLM.from_pretrained(
        folder,
        gguf_file=_NAME,
        config=config,
        dtype=FLOATS[dtype],
        quantization_config=plain,
        output_loading_info=True,
        trust_remote_code=False,
    )
    absent = report["missing_keys"]
    if absent:
        raise CheckpointError(
            f"{source.path}: lacks {some(absent)}; the model would be partly random"
        )
    for name, tensor in model.named_parameters():
        if not torch.isfinite(tensor).all():
            raise CheckpointError(
                f"{source.path}: {name} has NaN or infinity in {dtype}; the file is damaged, or "
                "its numbers need --dtype float32 or bfloat16"
            )
    ends = {source.fields.get(f"tokenizer.ggml.{end}_token_id") for end in _ENDS} - {None}
    if len(ends) > 1:
        model.generation_config.eos_token_id = sorted(ends)
    model.generation_config._from_model_config = False
    return model


def _config(source: GgufFile, folder: str) -> Any:
    """Return the config, with what the file says or llama.cpp does and transformers does not read.

    Raises:
        CheckpointError: The config has no place for it.
    """
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder, gguf_file=_NAME, trust_remote_code=False)
    config.__dict__.pop("_model_name_or_path", None)
    for key, value in vars(config).items():
        if isinstance(value, float):  # 1e-05 is stored as the float32 that is nearest
            setattr(config, key, float(str(np.float32(value))))
    width = source.of_architecture("attention.key_length")
    if width and getattr(config, "head_dim", None) and not config.model_type.startswith("gemma4"):
        config.head_dim = width
    if hasattr(config, "query_pre_attn_scalar"):
        is_large = (source.architecture, config.num_hidden_layers) in _GEMMA_27B
        share = config.hidden_size // config.num_attention_heads
        config.query_pre_attn_scalar = share if is_large else config.head_dim
    if source.fields.get("tokenizer.ggml.model") == "gpt2":
        for key, name in _IDS.items():  # otherwise the class's own, such as 1 for Llama
            setattr(config, key, source.fields.get(f"tokenizer.ggml.{name}_token_id"))
    _scale_rope(source, config)
    return config


def _scale_rope(source: GgufFile, config: Any) -> None:
    """Put the scaling of rotary embeddings that a file states into the config.

    Raises:
        CheckpointError: It is a kind that cannot be put there.
    """
    kind, factor = (source.of_architecture(f"rope.scaling.{key}") for key in ("type", "factor"))
    tables = [one for one in source.tensors if _ROPE_TABLE.fullmatch(one.name)]
    rope = getattr(config, "rope_parameters", None) or {}
    rope = rope.get("full_attention", rope)
    if kind in (None, "none") and not tables:
        return
    found: dict[str, Any] | None = None
    if [one.name for one in tables] == ["rope_freqs.weight"]:
        found = _like_llama3(source.numbers(tables[0]), rope)
    elif kind in ("linear", "yarn") and factor and not tables:
        found = {"rope_type": kind, "factor": factor}
        context = source.of_architecture("rope.scaling.original_context_length")
        if kind == "yarn" and context:
            found["original_max_position_embeddings"] = context
    if found is None or rope.get("rope_theta") is None:
        raise CheckpointError(
            f"{source.path}: scales its rotary embeddings in a way ({kind or 'table'}) that cannot "
            "be put into config.json; take the checkpoint that it was made from"
        )
    rope.update(found)


def _like_llama3(table: Any, rope: Any) -> dict[str, Any] | None:
    """Return the settings of Llama 3 if they are what divides the frequencies by this table."""
    factor, half = float(table.max()), len(table)
    inverse = rope.get("rope_theta", 1.0) ** -(torch.arange(half, dtype=torch.float64) / half)
    turns = _LLAMA3_CONTEXT * inverse / (2 * torch.pi)
    low, high = _LLAMA3["low_freq_factor"], _LLAMA3["high_freq_factor"]
    share = ((turns - low) / (high - low)).clamp(0, 1)
    expected = 1 / ((1 - share) / factor + share)
    if not torch.allclose(expected, torch.from_numpy(table.copy()).double(), rtol=1e-4):
        return None
    return {
        "rope_type": "llama3",
        "factor": factor,
        "original_max_position_embeddings": _LLAMA3_CONTEXT,
        **_LLAMA3,
    }


def _tokenizer(source: GgufFile, folder: str) -> Any:
    """Return the tokenizer of a file, which cuts text as llama.cpp does."""
    from tokenizers import pre_tokenizers
    from transformers import AutoTokenizer

    fields = source.fields
    if "tokenizer.ggml.tokens" not in fields:
        raise CheckpointError(f"{source.path}: holds no tokenizer (tokenizer.ggml.tokens)")
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=_NAME, trust_remote_code=False)
    for key in ("is_local", "local_files_only"):
        tokenizer.init_kwargs.pop(key, None)
    cut = fields.get("tokenizer.ggml.pre", "default")
    backend = tokenizer.backend_tokenizer
    if fields.get("tokenizer.ggml.model") != "gpt2":
        return tokenizer
    if cut in _DIGITS_APART:
        backend.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Digits(individual_digits=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False),
            ]
        )
    elif cut not in _LIKE_GPT2 and isinstance(backend.pre_tokenizer, pre_tokenizers.ByteLevel):
        raise CheckpointError(
            f"{source.path}: its tokenizer cuts text in a way ({cut!r:.40}) that transformers does "
            "not know; take the checkpoint that it was made from"
        )
    if cut in _BEGUN:
        backend.model.ignore_merges = True
        tokenizer.add_bos_token = fields.get("tokenizer.ggml.add_bos_token", True)
    return tokenizer


def _left_out(source: GgufFile, config: Any) -> list[str]:
    """Return the tensors that transformers rightly has no place for, before it loads any.

    Those are tables of rotary embeddings, blocks that predict further tokens, and a tied head.

    Raises:
        CheckpointError: The model that the fields describe has more or fewer numbers than the file,
            so that it would be another one.
    """
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    blocks = config.get_text_config().num_hidden_layers

    def is_needed(name: str) -> bool:
        block = _BEYOND.fullmatch(name)
        is_extra = _ROPE_TABLE.fullmatch(name) or (block and int(block[1]) >= blocks)
        return not (is_extra or (name == "output.weight" and config.tie_word_embeddings))

    needed = {one.name: prod(one.shape) for one in source.tensors if is_needed(one.name)}
    given, taken = sum(needed.values()), sum(one.numel() for one in model.parameters())
    if given != taken:
        gguf = gguf_package("a GGUF file")
        kind = next(k for k, v in gguf.MODEL_ARCH_NAMES.items() if v == source.architecture)
        places = gguf.get_tensor_name_map(kind, blocks)
        names = (name for name, _ in model.named_parameters())
        placed = {places.get_name(name, (".weight", ".bias")) or name for name in names}
        dropped, absent = some(needed.keys() - placed), some(placed - needed.keys())
        raise CheckpointError(
            f"{source.path}: holds {given:,} numbers, and the model that transformers reads has "
            f"{taken:,}, so it would be another one"
            f"{f'; it has no place for {dropped}' if dropped else ''}"
            f"{f'; absent are {absent}' if absent else ''}"
        )
    return [one.name for one in source.tensors if one.name not in needed]
