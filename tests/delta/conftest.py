"""Toy checkpoints, two fine-tunes of one base, and LoRA adapters with random factors."""

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from personality_vector.delta import Delta
from personality_vector.numeric.random import generator_for


@pytest.fixture
def toy(tmp_path: Path) -> Callable[..., Path]:
    """Return ``toy(name, **tensors)``: a checkpoint directory with these tensors."""

    def write(name: str, **tensors: Tensor) -> Path:
        path = tmp_path / name
        path.mkdir()
        owned = {
            key: tensor.clone(memory_format=torch.contiguous_format)
            for key, tensor in tensors.items()
        }
        save_file(owned, path / "model.safetensors")
        return path

    return write


@pytest.fixture
def pair(pico, pico_tuned) -> tuple[Delta, Delta]:
    """Two deltas of pico llama."""
    base = pico("llama")
    return (
        Delta.between(base, pico_tuned("llama"), pole="openness:high"),
        Delta.between(base, pico_tuned("llama", seed=1), label="b"),
    )


@pytest.fixture
def dense() -> Callable[[Delta], Tensor]:
    """Return a delta as one flat float64 vector over the tensors of its base, sorted by name."""

    def flatten(delta: Delta) -> Tensor:
        return torch.cat([delta[name].double().reshape(-1) for name in delta.names])

    return flatten


@pytest.fixture
def adapter(tmp_path: Path, pico) -> Callable[..., Path]:
    """Return ``adapter(**options)``: a PEFT adapter on pico llama with random A and B.

    ``config`` changes keys of ``adapter_config.json`` afterwards, ``weights`` the saved factors.
    ``made`` is a config of PEFT for another kind of adapter.
    """

    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    def make(
        family: str = "llama",
        config: Any = None,
        weights: Any = None,
        base: Any = None,
        made: Any = None,
        **options: Any,
    ) -> Path:
        defaults = {"r": 4, "lora_alpha": 6, "target_modules": "all-linear"}
        lora = made or LoraConfig(**defaults | options)
        with warnings.catch_warnings(action="ignore"):  # PEFT reads a property that is deprecated
            model = get_peft_model(AutoModelForCausalLM.from_pretrained(base or pico(family)), lora)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                noise = 0.1 * torch.randn(parameter.shape, generator=generator_for(0, name))
                if "lora_" in name and "magnitude" not in name:
                    parameter.copy_(noise)
                elif parameter.requires_grad:
                    parameter.add_(noise)
        path = tmp_path / f"adapter-{len(list(tmp_path.iterdir()))}"
        with warnings.catch_warnings(action="ignore"):
            model.save_pretrained(path)
        if config:
            file = path / "adapter_config.json"
            file.write_text(json.dumps(json.loads(file.read_text()) | config))
        if weights:
            file = path / "adapter_model.safetensors"
            save_file(weights(load_file(file)), file)
        return path

    return make
