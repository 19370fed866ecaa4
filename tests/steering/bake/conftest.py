"""Models of every family that can be baked, and vectors for them."""

import io
import json
import subprocess
from collections.abc import Callable
from contextlib import ExitStack, contextmanager, redirect_stderr
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from personality_vector.checkpoint import Checkpoint
from personality_vector.numeric.random import generator_for
from personality_vector.steering import SteeringVector
from personality_vector.steering.bake import proof
from personality_vector.subject.config import read_config
from personality_vector.subject.models import decoder_blocks

SMALL = {
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": 4,
}
_OLD = {"n_embd": 32, "n_layer": 2, "n_head": 4}
OTHERS: dict[str, dict[str, Any]] = {
    "granite": {"residual_multiplier": 0.22, "embedding_multiplier": 3.0, "logits_scaling": 2.0},
    "gptj": {"n_positions": 256, "rotary_dim": 4, **_OLD},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "num_heads": 4, "num_layers": 2},
    "bloom": {"n_layer": 2, "n_head": 4},
    "gemma": {"head_dim": 8},
    "helium": {"head_dim": 8},
    "stablelm": {"use_parallel_residual": False},
}
"""Settings of families that tests/conftest.py does not have; the rest are :data:`SMALL` alone."""


@pytest.fixture(scope="session")
def small(tmp_path_factory) -> Callable[..., Path]:
    """Return ``small(family, **settings)``: a checkpoint of float32, every parameter random."""
    from transformers import AutoConfig, AutoModelForCausalLM

    @cache
    def make(family: str, settings: str) -> Path:
        given = {**SMALL, **OTHERS.get(family, {}), **json.loads(settings)}
        config = AutoConfig.for_model(family, **given)
        with torch.random.fork_rng(devices=[]):
            model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                noise = torch.randn(parameter.shape, generator=generator_for(0, name))
                parameter.add_(0.15 * noise)
        path = tmp_path_factory.mktemp("small") / family
        model.save_pretrained(path)
        return path

    return lambda family, **settings: make(family, json.dumps(settings, sort_keys=True))


@pytest.fixture(scope="session")
def vector_of() -> Callable[..., SteeringVector]:
    """Return ``vector_of(path, *layers)``: random directions for that model."""

    def make(path: Path, *layers: int) -> SteeringVector:
        checkpoint = Checkpoint.open(path)
        hidden = read_config(checkpoint.path).hidden_size
        directions = {
            layer: torch.randn(hidden, generator=generator_for(0, f"layer {layer}"))
            for layer in layers
        }
        digest = checkpoint.fingerprint.digest
        return SteeringVector(directions, digest, None, "warm", "response_mean", (1, 1))

    return make


@pytest.fixture(scope="session")
def hooked() -> Callable[..., Any]:
    """Return ``hooked(model, {layer: change})``: plain hooks on block outputs, by PyTorch alone."""

    @contextmanager
    def on(model, changes):
        def hook(change):
            def after(_block, _args, output):
                if isinstance(output, tuple):
                    return (change(output[0]), *output[1:])
                return change(output)

            return after

        with ExitStack() as hooks:
            for layer, change in changes.items():
                block = decoder_blocks(model)[layer]
                hooks.callback(block.register_forward_hook(hook(change)).remove)
            yield

    return on


@pytest.fixture
def in_process(monkeypatch):
    """Let a proof call what its new interpreter would run, which need not import torch again.

    Tests without this fixture start that interpreter, as ``bake`` does.
    """

    def run(command, **_):
        with redirect_stderr(io.StringIO()) as errors:
            code = proof.main(*command[command.index("-m") + 2 :])
        return subprocess.CompletedProcess(command, code, "", errors.getvalue())

    monkeypatch.setattr(proof.subprocess, "run", run)
