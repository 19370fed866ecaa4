"""Pico models: real architectures, random weights, no download."""

import os

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["MPLBACKEND"] = "Agg"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import nn

from personality_vector.rng import generator_for

torch.set_num_threads(1)

FAMILIES = ("llama", "qwen2", "gemma2", "gpt_neox", "phi")
"""What they cover: no bias anywhere; tied embeddings and biases in attention; post-norms, tied,
soft-capped and windowed; parallel residual with LayerNorm biases; a bias on everything."""

PAD, END = "<|endoftext|>", "<|end|>"
_SPECIAL = [PAD, "<|system|>", "<|user|>", "<|assistant|>", END]
_VOCAB = 300

CHAT_TEMPLATE = """\
{%- for message in messages -%}
{{- '<|' + message['role'] + '|>' -}}
{%- if message['role'] == 'assistant' -%}
{%- generation -%}{{- message['content'] + '<|end|>' -}}{%- endgeneration -%}
{%- else -%}
{{- message['content'] + '<|end|>' -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}
"""

_SIZES = {
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
}
_GROUPED = {"num_key_value_heads": 2}
_CONFIGS: dict[str, dict[str, Any]] = {
    "llama": {**_SIZES, **_GROUPED, "tie_word_embeddings": False},
    "qwen2": {**_SIZES, **_GROUPED, "tie_word_embeddings": True},
    "gemma2": {
        **_SIZES,
        **_GROUPED,
        "num_hidden_layers": 2,
        "head_dim": 16,
        "query_pre_attn_scalar": 16,
        "sliding_window": 16,
        "tie_word_embeddings": True,
    },
    "gpt_neox": {**_SIZES, "tie_word_embeddings": False},
    "phi": {**_SIZES, "num_hidden_layers": 2, "tie_word_embeddings": False},
}

Pico = Callable[..., Path]


@pytest.fixture(scope="session")
def pico(tmp_path_factory: pytest.TempPathFactory) -> Pico:
    """Return ``pico(family, dtype="float32")``: the directory of a checkpoint, made once."""

    @cache
    def make(family: str, dtype: str = "float32") -> Path:
        path = tmp_path_factory.mktemp("pico") / f"{family}-{dtype}"
        return _save(_model(family, dtype), path)

    return make


@pytest.fixture(scope="session")
def pico_tuned(tmp_path_factory: pytest.TempPathFactory) -> Pico:
    """Return ``pico_tuned(family, dtype="float32", seed=0)``: pico plus a small random change."""

    @cache
    def make(family: str, dtype: str = "float32", seed: int = 0) -> Path:
        model = _model(family, dtype)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                generator = generator_for(seed, f"tuned {name}")
                change = torch.randn(parameter.shape, generator=generator)
                size = 0.05 * parameter.float().square().mean().sqrt()
                parameter.copy_(parameter.float() + size * change)
        path = tmp_path_factory.mktemp("pico") / f"{family}-{dtype}-tuned-{seed}"
        return _save(model, path)

    return make


@pytest.fixture(scope="session")
def shared() -> Path:
    """Return the folder beside the repository with public data and a small real model."""
    path = Path(__file__).parents[2] / "shared"
    if not path.is_dir():
        pytest.skip(f"{path} is absent: it is not part of the repository")
    return path


def _model(family: str, dtype: str) -> Any:
    """Return a model whose every parameter is random: norms and biases too, so none hides."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(
        family,
        vocab_size=_VOCAB,
        max_position_embeddings=256,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=4,
        **_CONFIGS[family],
    )
    with torch.random.fork_rng(devices=[]):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    _randomise(family, model)
    model.generation_config.eos_token_id = 4
    model.generation_config.pad_token_id = 0
    return model.to(getattr(torch, dtype)).eval()


@torch.no_grad()
def _randomise(family: str, model: nn.Module) -> None:
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator_for(0, f"{family} {name}"))
        if parameter.ndim == 1:
            parameter.add_(0.2 * noise)  # a norm stays about its neutral value, a bias about 0
        else:
            # Embeddings and head are twice as large: logits then spread by about 2 nats. Blocks
            # are not, since that would amplify rounding until no law could be checked to 1e-5.
            gain = 2.0 if parameter.shape[0] == _VOCAB else 1.0
            parameter.copy_(gain * noise * parameter.shape[1] ** -0.5)


def _save(model: Any, path: Path) -> Path:
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    model.save_pretrained(path)
    _tokenizer().save_pretrained(path)
    return path


@cache
def _tokenizer() -> Any:
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=_VOCAB,
        special_tokens=_SPECIAL,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    text = "I love meeting new people and I am the one who talks at every party. I am quiet."
    tokenizer.train_from_iterator([text] * 4, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END,
        pad_token=PAD,
        padding_side="left",
        chat_template=CHAT_TEMPLATE,
    )
