"""The vector as a bias of the map that writes to the stream: route ``bias`` and ``convert``."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from personality_vector.errors import CheckpointError
from personality_vector.steering.bake.base import Base, Shifts
from personality_vector.steering.bake.families import ATTENTION, GATED
from personality_vector.steering.bake.weights import Edit, Edits, edit

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


def bias_edits(base: Base, shifts: Shifts, modules: Sequence[str]) -> dict[str, Edit]:
    """Return the biases that add ``shifts`` to the outputs of blocks; all others are as before.

    A bias that exists is added to, with one rounding to its dtype; one that does not is 0, in the
    dtype of its weight.

    Args:
        base: The model.
        shifts: Divided by the family's multiplier, since the block multiplies them again.
        modules: Of every block, those that have a bias in the export.
    """
    edits = {}
    for layer in range(base.layers):
        for module in modules:
            shift = shifts.get(layer) if module == base.family.mlp else None
            name = base.weight(layer, module).removesuffix("weight") + "bias"
            if shift is not None or name not in base.checkpoint.entries:
                edits[name] = _bias(base, base.weight(layer, module), name, shift)
    return edits


def realised_shifts(base: Base, shifts: Shifts, edits: Edits) -> dict[int, Tensor]:
    """Return what the written biases add to the outputs of blocks, after rounding; float32."""
    found = {}
    for layer in shifts:
        name = base.weight(layer, base.family.mlp).removesuffix("weight") + "bias"
        written = edits[name].values().double()
        if name in base.checkpoint.entries:
            written -= base.checkpoint[name].double()
        found[layer] = (base.multiplier * written).float()
    return found


def biased_modules(base: Base) -> tuple[str, ...]:
    """Return the maps of a block that have a bias in the export of route ``bias``."""
    return base.family.flagged if base.family.flag else (base.family.mlp,)


def biased_config(base: Base) -> dict[str, Any]:
    """Return the base's config.json with the switch for biases on."""
    flag = base.family.flag
    return {**base.checkpoint.config, flag: True} if flag else dict(base.checkpoint.config)


def llama_modules(base: Base) -> tuple[str, ...]:
    """Return the maps of a block that have a bias in the equivalent Llama."""
    return (*ATTENTION, *GATED) if _attention_bias(base) else GATED


def llama_config(base: Base) -> dict[str, Any]:
    """Return the config.json of the Llama that computes what a Qwen2 or Mistral does.

    It starts from the configuration as transformers reads it, since the defaults of the two
    classes differ: every number that a Llama is built from is written down.
    """
    from transformers import LlamaConfig

    source = base.config
    config = LlamaConfig(
        **{name: getattr(source, name) for name in _SHARED},
        head_dim=getattr(source, "head_dim", None) or _head_dim(source),
        attention_bias=_attention_bias(base),
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


def _head_dim(config: Any) -> int:
    return int(config.hidden_size // config.num_attention_heads)


def _attention_bias(base: Base) -> bool:
    """Return whether queries, keys and values have a bias: in Qwen2 all, in Mistral none."""
    return bool(base.config.model_type == "qwen2")


def _bias(base: Base, weight: str, name: str, shift: Tensor | None) -> Edit:
    stored, dtype = name in base.checkpoint.entries, base.checkpoint.entries[weight].dtype
    if not dtype.is_floating_point:
        raise CheckpointError(f"{base.checkpoint.path}: {weight} is {dtype}, so it is quantised")
    dtype = base.checkpoint.entries[name].dtype if stored else dtype
    shape = (base.width_out(weight),)
    return edit(name, dtype, shape, partial(_values, base, name, shape, shift))


def _values(base: Base, name: str, shape: tuple[int, ...], shift: Tensor | None) -> Tensor:
    """Return ``b + shift / multiplier``; float64, where ``b`` is 0 unless the base has one."""
    stored = name in base.checkpoint.entries
    bias = base.checkpoint[name].double() if stored else torch.zeros(shape, dtype=torch.float64)
    return bias if shift is None else bias + shift.double() / base.multiplier
