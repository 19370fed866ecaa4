"""What each route that adds a vector writes: a bias of the map that writes to the stream."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from personality_vector.checkpoint import TensorPlan
from personality_vector.errors import CheckpointError
from personality_vector.lab import BUILTIN
from personality_vector.steering.apply import steered
from personality_vector.steering.bake.base import Base, Edit, Shifts, size_of, write_checkpoint
from personality_vector.steering.bake.proof import Export
from personality_vector.steering.bake.routes import ATTENTION, GATED

_SHARED = (  # what Qwen2, Mistral and Llama are built from
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "hidden_act",
    "max_position_embeddings",
    "initializer_range",
    "rms_norm_eps",
    "use_cache",
    "pad_token_id",
    "bos_token_id",
    "eos_token_id",
    "tie_word_embeddings",
    "rope_parameters",
    "attention_dropout",
)


def bias_export(base: Base, shifts: Shifts) -> Export:
    """Write the base with a bias that its config supports; the config's switch for it is on."""
    family = base.family
    config = base.checkpoint.config | ({family.flag: True} if family.flag else {})
    return _with_biases(base, shifts, family.flagged or (family.mlp,), config)


def convert_export(base: Base, shifts: Shifts) -> Export:
    """Write the equivalent Llama, with a bias."""
    modules = (*ATTENTION, *GATED) if _has_attention_bias(base) else GATED
    return _with_biases(base, shifts, modules, _llama_config(base))


def adapter_export(base: Base, shifts: Shifts) -> Export:
    """Write a PEFT adapter that holds nothing but a bias; its float32 numbers are not rounded."""
    asked = partial(steered, directions=shifts)
    return Export(partial(_write_adapter, base, shifts), asked, asked)


EXPORTS: Mapping[str, Callable[[Base, Shifts], Export]] = {
    "bias": bias_export,
    "convert": convert_export,
    "adapter": adapter_export,
}
"""The routes of a vector and its coefficient."""


def _with_biases(
    base: Base, shifts: Shifts, modules: Sequence[str], config: Mapping[str, Any]
) -> Export:
    """Write biases that add ``shifts`` to the outputs of blocks; all others are as before.

    A bias that exists is added to, with one rounding to its dtype; one that does not is 0, in the
    dtype of its weight. ``modules`` of every block have a bias in the export.
    """
    edits, realised = {}, {}
    for layer in range(base.layers):
        for module in modules:
            shift = shifts.get(layer) if module == base.family.mlp else None
            edit = _bias(base, base.weight(layer, module), shift)
            if shift is not None:
                realised[layer] = _realised(base, edit)
            if shift is not None or edit.plan.name not in base.checkpoint.entries:
                edits[edit.plan.name] = edit
    return Export(
        partial(write_checkpoint, base.checkpoint, edits, config),
        asked=partial(steered, directions=shifts),
        realised=partial(steered, directions=realised),
        size=size_of(base.checkpoint, edits),
    )


def _bias(base: Base, weight: str, shift: Tensor | None) -> Edit:
    """Return ``b + shift / multiplier``; float64, where ``b`` is 0 unless the base has one.

    The shift is divided, since the block multiplies it again.
    """
    entries, name = base.checkpoint.entries, weight.removesuffix("weight") + "bias"
    if not entries[weight].dtype.is_floating_point:
        dtype = entries[weight].dtype
        raise CheckpointError(f"{base.checkpoint.path}: {weight} is {dtype}, so it is quantised")
    width = entries[weight].shape[1 if base.family.transposed else 0]

    def exact() -> Tensor:
        bias = torch.zeros(width, dtype=torch.float64)
        if name in entries:
            bias = base.checkpoint[name].double()
        return bias if shift is None else bias + shift.double() / base.multiplier

    return Edit(TensorPlan(name, entries.get(name, entries[weight]).dtype, (width,)), exact)


def _realised(base: Base, edit: Edit) -> Tensor:
    """Return what a written bias adds to the output of its block, after rounding; float32."""
    written = edit.values().double()
    if edit.plan.name in base.checkpoint.entries:
        written -= base.checkpoint[edit.plan.name].double()
    return (base.multiplier * written).float()


def _llama_config(base: Base) -> dict[str, Any]:
    """Return the config.json of the Llama that computes what a Qwen2 or Mistral does.

    It starts from the configuration as transformers reads it, since the defaults of the two
    classes differ: every number that a Llama is built from is written down.
    """
    from transformers import LlamaConfig

    source = base.config
    head_dim = getattr(source, "head_dim", None)
    config = LlamaConfig(
        **{name: getattr(source, name) for name in _SHARED},
        head_dim=head_dim or source.hidden_size // source.num_attention_heads,
        attention_bias=_has_attention_bias(base),
        mlp_bias=True,
    )
    config.architectures = ["LlamaForCausalLM"]
    config.dtype = source.dtype
    return {**config.to_dict(), **_old_rope(source.rope_parameters)}


def _old_rope(rope: dict[str, Any]) -> dict[str, Any]:
    """Return the rotary embedding as transformers 4 reads it; it would take theta for 10000."""
    scaling = {name: value for name, value in rope.items() if name != "rope_theta"}
    found: dict[str, Any] = {"rope_theta": rope["rope_theta"]}
    return found if scaling.get("rope_type") == "default" else found | {"rope_scaling": scaling}


def _has_attention_bias(base: Base) -> bool:
    """Return whether queries, keys and values have a bias: in Qwen2 all, in Mistral none."""
    return bool(base.config.model_type == "qwen2")


def _write_adapter(base: Base, shifts: Shifts, directory: Path) -> None:
    """Write LoRA matrices of rank 1 that are 0, and a bias of ``shift / multiplier``; float32.

    PEFT computes ``W x + b + B A x + bias`` with ``A = B = 0``; the scale is 1.
    """
    from peft import LoraConfig

    modules = {layer: base.family.module(layer, base.family.mlp) for layer in shifts}
    config = LoraConfig(
        r=1,
        lora_alpha=1,
        lora_bias=True,
        target_modules=sorted(modules.values()),
        base_model_name_or_path=_reference(base),
        task_type="CAUSAL_LM",
        inference_mode=True,
    )
    config.save_pretrained(str(directory))
    tensors = {}
    for layer, shift in shifts.items():
        wide = base.checkpoint.entries[base.weight(layer, base.family.mlp)].shape[1]
        name = f"base_model.model.{modules[layer]}"
        tensors[f"{name}.lora_A.weight"] = torch.zeros(1, wide)
        tensors[f"{name}.lora_B.weight"] = torch.zeros(len(shift), 1)
        tensors[f"{name}.lora_B.bias"] = (shift.double() / base.multiplier).float()
    save_file(tensors, directory / "adapter_model.safetensors", {"format": "pt"})


def _reference(base: Base) -> str:
    """Return how the adapter names its base: the id on the Hub, or else the path."""
    name = base.checkpoint.reference
    is_local = name == base.checkpoint.path.name or name.startswith(BUILTIN)
    return str(base.checkpoint.path) if is_local else name
