"""The vector as a PEFT adapter that holds nothing but a bias; the base stays as it is."""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from personality_vector.lab import BUILTIN
from personality_vector.steering.bake.base import Base, Shifts

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"


def write_adapter(base: Base, shifts: Shifts, directory: Path) -> None:
    """Write LoRA matrices of rank 1 that are 0, and a bias of ``shift / multiplier``; float32.

    PEFT computes ``W x + b + B A x + bias`` with ``A = B = 0``; the scale is 1.
    """
    from peft import LoraConfig

    config = LoraConfig(
        r=1,
        lora_alpha=1,
        lora_bias=True,
        target_modules=sorted(_module(base, layer) for layer in shifts),
        base_model_name_or_path=reference(base),
        task_type="CAUSAL_LM",
        inference_mode=True,
    )
    config.save_pretrained(str(directory))
    save_file(dict(adapter_tensors(base, shifts)), directory / WEIGHTS, {"format": "pt"})


def adapter_tensors(base: Base, shifts: Shifts) -> Mapping[str, Tensor]:
    """Return the tensors of the adapter by PEFT's names; float32."""
    found = {}
    for layer, shift in shifts.items():
        wide = base.checkpoint.entries[base.weight(layer, base.family.mlp)].shape[1]
        name = f"base_model.model.{_module(base, layer)}"
        found[f"{name}.lora_A.weight"] = torch.zeros(1, wide)
        found[f"{name}.lora_B.weight"] = torch.zeros(len(shift), 1)
        found[f"{name}.lora_B.bias"] = (shift.double() / base.multiplier).float()
    return found


def reference(base: Base) -> str:
    """Return how the adapter names its base: the id on the Hub, or else the path."""
    name = base.checkpoint.reference
    is_local = name == base.checkpoint.path.name or name.startswith(BUILTIN)
    return str(base.checkpoint.path) if is_local else name


def _module(base: Base, layer: int) -> str:
    return base.family.module(layer, base.family.mlp)
