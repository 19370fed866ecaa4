"""Converting a LoRA adapter of llama.cpp (GGUF) to one of PEFT."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from personality_vector.checkpoint import FLOATS, Checkpoint, ShardWriter, TensorPlan, is_hub_id
from personality_vector.checkpoint.gguf_file import GgufFile, GgufTensor, gguf_package
from personality_vector.delta.lora import CONFIG
from personality_vector.errors import CheckpointError, TensorMismatchError, some
from personality_vector.files import AtomicDirectory
from personality_vector.manifest import WEIGHTS, write_manifest

_AS_THEY_ARE = ("qwen2", "qwen3", "gemma", "gemma2", "gemma3", "phi3", "starcoder2")
"""Architectures of which llama.cpp stores the matrices as transformers does."""
_ROTATED = {"attn_q": "num_attention_heads", "attn_k": "num_key_value_heads"}
"""Matrices of Llama whose rows it stores in another order, and the number of their heads."""
_HALVES = {".lora_a": "A", ".lora_b": "B"}


def convert_adapter(
    source: GgufFile,
    base: Checkpoint,
    out: str | Path,
    *,
    dtype: str = "float32",
    force: bool = False,
) -> dict[str, Any]:
    """Write a LoRA adapter in GGUF as a folder that PEFT and ``pvec merge`` take.

    llama.cpp adds ``alpha / r * B A`` to a matrix, with the file's alpha and the rank ``r`` of that
    matrix, and ``B A`` where alpha is 0. PEFT's config says the same here.

    Args:
        source: The file.
        base: The model that it adapts; its names and heads are needed, and are not in the file.
        out: Directory to write; it appears whole or not at all.
        dtype: How to store the factors.
        force: Replace an output that this tool wrote.

    Returns:
        The manifest.

    Raises:
        CheckpointError: It is not LoRA on matrices, or of an architecture that is not known here.
        TensorMismatchError: The base lacks a matrix, or has it in another shape.
        StorageError: The disk is full, read-only or failing.

    Source:
        llama.cpp, ``convert_lora_to_gguf.py`` and ``src/llama-adapter.h`` (``get_scale``).
    """
    kind, architecture = source.fields.get("adapter.type"), source.architecture
    if kind != "lora" or architecture not in ("llama", *_AS_THEY_ARE):
        raise CheckpointError(
            f"{source.path}: is an adapter of type {kind!r:.40} for {architecture!r:.40}; LoRA for "
            f"llama, {some(_AS_THEY_ARE, 9)} can be converted"
        )
    factors = _by_module(source, base)
    ranks = {module: found["A"].shape[0] for module, found in factors.items()}
    size = 4 * sum(one.shape[0] * one.shape[1] for one in source.tensors)
    with AtomicDirectory(
        out, kind="convert", force=force, inputs=[source.path, *source.others, base.path], size=size
    ) as partial:
        plans, tensors = [], dict[str, Tensor]()
        for module, halves in sorted(factors.items()):
            for half, stored in sorted(halves.items()):
                name = f"base_model.model.{module}.lora_{half}.weight"
                tensors[name] = _numbers(source, stored, base).to(FLOATS[dtype])
                plans.append(TensorPlan(name, FLOATS[dtype], stored.shape))
        with ShardWriter(partial, plans, 2**63, "adapter_model") as writer:
            for name, tensor in tensors.items():
                writer.write(name, tensor)
        config = _config(source, base, ranks)
        (partial / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        content = {
            **source.recorded,
            "architecture": architecture,
            "types": source.types,
            "dtype": dtype,
            "base": base.fingerprint.digest,
            "left_out": [],
            "tensors": len(tensors),
            WEIGHTS: Checkpoint.written(partial).fingerprint.digest,
        }
        return write_manifest(partial, "convert", content)


def _by_module(source: GgufFile, base: Checkpoint) -> dict[str, dict[str, GgufTensor]]:
    """Return both factors of every module, by its name in the base, checked against it."""
    gguf = gguf_package("a GGUF file")
    kind = next(k for k, name in gguf.MODEL_ARCH_NAMES.items() if name == source.architecture)
    places = gguf.get_tensor_name_map(kind, base.config.get("num_hidden_layers", 0))
    ours = {places.get_name(name, (".weight",)): name for name in base.names}
    found: dict[str, dict[str, GgufTensor]] = {}
    for one in source.tensors:
        half = next((half for end, half in _HALVES.items() if one.name.endswith(end)), None)
        weight = one.name.rpartition(".")[0]
        if half is None or len(one.shape) != 2 or weight == "token_embd.weight":
            raise CheckpointError(
                f"{source.path}: {one.name} is not a factor of a matrix, and only those can be "
                "converted"
            )
        if weight not in ours:
            raise TensorMismatchError(
                f"{source.path}: adapts {weight}, which the base {base.path} does not have"
            )
        found.setdefault(ours[weight].removesuffix(".weight"), {})[half] = one
    for module, halves in found.items():
        shape = base.entries[f"{module}.weight"].shape
        if len(halves) < 2:
            raise CheckpointError(f"{source.path}: has one factor of {module}, not both")
        up, down = halves["B"].shape, halves["A"].shape
        if (up[0], down[1]) != shape or up[1] != down[0]:
            raise TensorMismatchError(
                f"{source.path}: {module}: factors {list(up)} x {list(down)} do not make "
                f"{list(shape)}, the shape in the base {base.path}"
            )
    return found


def _numbers(source: GgufFile, stored: GgufTensor, base: Checkpoint) -> Tensor:
    """Return a factor, with its rows in the order of transformers."""
    numbers = torch.from_numpy(source.numbers(stored).copy())
    matrix = stored.name.split(".")[-3]
    if source.architecture != "llama" or not stored.name.endswith("lora_b"):
        return numbers
    if matrix not in _ROTATED:
        return numbers
    heads = base.config.get(_ROTATED[matrix]) or base.config["num_attention_heads"]
    pairs = numbers.reshape(heads, len(numbers) // heads // 2, 2, -1)
    return pairs.transpose(1, 2).reshape(numbers.shape).contiguous()


def _config(source: GgufFile, base: Checkpoint, ranks: Mapping[str, int]) -> dict[str, Any]:
    alpha, rank = source.fields.get("adapter.lora.alpha", 0.0), max(ranks.values())
    named = is_hub_id(base.reference)
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base.reference if named else str(base.path),
        "inference_mode": True,
        "bias": "none",
        "lora_dropout": 0.0,
        "r": rank,
        "lora_alpha": alpha or float(rank),
        "target_modules": sorted(ranks),
        "rank_pattern": {module: r for module, r in sorted(ranks.items()) if r != rank},
        "alpha_pattern": {
            module: float(r) for module, r in sorted(ranks.items()) if r != rank and not alpha
        },
    }
