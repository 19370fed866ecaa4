"""Pico models: real architectures, random weights, no download; and the rounding of an oracle."""

import atexit
import gc
import os
import shutil
import tempfile

os.environ.setdefault("PVEC_USERS_CACHE", os.environ.get("PVEC_CACHE", ""))  # for real models
os.environ["PVEC_CACHE"] = tempfile.mkdtemp(prefix="pvec-cache-")
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["MPLBACKEND"] = "Agg"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["PVEC_THREADS"] = "1"  # threads cost more than they save here; law 8 sets its own

from collections.abc import Callable
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from _pytest.doctest import DoctestModule
from safetensors.torch import load_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn

import tests.typechecks  # noqa: F401 - before anything of the package is imported

# isort: split
from personality_vector.numeric.random import generator_for
from tests import vlms

torch.set_num_threads(1)
atexit.register(shutil.rmtree, os.environ["PVEC_CACHE"], ignore_errors=True)

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
_SMALL = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    **_GROUPED,
}
_GEMMA = {"head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 16}
_CONFIGS: dict[str, dict[str, Any]] = {
    # no bias anywhere
    "llama": {**_SIZES, **_GROUPED, "tie_word_embeddings": False},
    # tied embeddings, biases in attention
    "qwen2": {**_SIZES, **_GROUPED, "tie_word_embeddings": True},
    # post-norms, tied, soft-capped and windowed
    "gemma2": {
        **_SIZES,
        **_GROUPED,
        **_GEMMA,
        "num_hidden_layers": 2,
        "tie_word_embeddings": True,
    },
    # parallel residual, LayerNorm biases, queries, keys and values in one tensor
    "gpt_neox": {**_SIZES, "tie_word_embeddings": False},
    # a bias on everything
    "phi": {**_SIZES, "num_hidden_layers": 2, "tie_word_embeddings": False},
    # learned positions, transposed weights, a bias on everything
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256},
    # norms of queries and keys
    "qwen3": {**_SMALL, "head_dim": 16, "tie_word_embeddings": True},
    "gemma3_text": {
        **_SMALL,
        **_GEMMA,
        "layer_types": ["sliding_attention", "full_attention"],
        "tie_word_embeddings": True,
    },
    "mistral": {**_SMALL, "sliding_window": 16, "tie_word_embeddings": False},
    # queries, keys and values in one tensor, gate and up in another
    "phi3": {**_SMALL, "tie_word_embeddings": False},
    # experts: on disk one tensor for each, in memory one for all
    "mixtral": {**_SMALL, "num_local_experts": 4, "tie_word_embeddings": False},
    # norms after, not before
    "olmo2": {**_SMALL, "tie_word_embeddings": False},
}

Pico = Callable[..., Path]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the slow tests, so that no worker is left alone with one at the end."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


@pytest.hookimpl(wrapper=True)
def pytest_collect_file() -> Any:
    """Look for doctests in what is not a test file: it is imported, if only for that."""
    found = yield
    return [one for one in found if len(found) == 1 or not isinstance(one, DoctestModule)]


def pytest_collection_finish() -> None:
    """Take modules and tests, which stay, out of the work of each garbage collection."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def pico(tmp_path_factory: pytest.TempPathFactory) -> Pico:
    """Return ``pico(family, dtype="float32")``: the directory of a checkpoint, made once.

    ``tied`` overrides whether embeddings and head are one tensor; ``sharded`` writes many files.
    """

    @cache
    def make(family: str, dtype: str = "float32", **how: Any) -> Path:
        return save_pico(
            tmp_path_factory.mktemp("pico") / f"{family}-{dtype}", family, dtype, **how
        )

    return make


@pytest.fixture(scope="session")
def pico_tuned(tmp_path_factory: pytest.TempPathFactory) -> Pico:
    """Return ``pico_tuned(family, dtype="float32", seed=0)``: pico plus a small random change.

    ``tied`` and ``sharded`` are as in ``pico``.
    """

    @cache
    def make(family: str, dtype: str = "float32", seed: int = 0, **how: Any) -> Path:
        path = tmp_path_factory.mktemp("pico") / f"{family}-{dtype}-tuned-{seed}"
        return save_pico(path, family, dtype, seed, **how)

    return make


def save_pico(
    path: Path,
    family: str,
    dtype: str = "float32",
    seed: int | None = None,
    *,
    tied: bool | None = None,
    sharded: bool = False,
) -> Path:
    """Save a model of random weights; with a seed, plus a small random change."""
    model = _model(family, dtype, tied)
    with torch.no_grad():
        for name, parameter in model.named_parameters() if seed is not None else ():
            generator = generator_for(seed, f"tuned {name}")
            change = torch.randn(parameter.shape, generator=generator)
            size = 0.05 * parameter.float().square().mean().sqrt()
            parameter.copy_(parameter.float() + size * change)
    return _save(model, path, sharded)


@pytest.fixture(scope="session")
def weights() -> Callable[[Path], dict[str, Tensor]]:
    """Return ``weights(path)``: every tensor of a checkpoint directory, by name."""

    def read(path: Path) -> dict[str, Tensor]:
        files = sorted(path.glob("*.safetensors"))
        return {name: tensor for file in files for name, tensor in load_file(file).items()}

    return read


@pytest.fixture(scope="session")
def require_same_bytes() -> Callable[[dict[str, Tensor], dict[str, Tensor]], None]:
    """Return a check that two models have the same names, dtypes, shapes and bits."""

    def check(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
        assert set(found) == set(expected)
        for name, tensor in expected.items():
            assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape), name
            bits = (one.reshape(-1).view(torch.uint8) for one in (found[name], tensor))
            assert torch.equal(*bits), name

    return check


@pytest.fixture(scope="session")
def rounded_once() -> Callable[[np.ndarray, torch.dtype], Tensor]:
    """Return ``rounded_once(values, dtype)``: float64 to ``dtype`` as one conversion of torch.

    Which goes by way of float32. Stated by what a floating-point format is: whole multiples of a
    step, which is a power of two that depends on the magnitude, ties to even.
    """
    digits = {torch.bfloat16: 8, torch.float16: 11, torch.float32: 24}
    lowest = {torch.bfloat16: -126, torch.float16: -14, torch.float32: -126}

    def nearest(values: np.ndarray, dtype: torch.dtype) -> np.ndarray:
        exponent = np.frexp(values)[1] - 1
        step = np.ldexp(1.0, np.maximum(exponent, lowest[dtype]) - (digits[dtype] - 1))
        return np.rint(values / step) * step

    def by_way_of_float32(values: np.ndarray, dtype: torch.dtype) -> Tensor:
        found = nearest(nearest(values, torch.float32), dtype)
        return torch.from_numpy(found).to(dtype)  # the cast is exact

    return by_way_of_float32


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> Callable[..., Path]:
    """Return ``text(family, **options)``: the directory of a text model, made once."""
    return vlms.once(vlms.save_text_model, tmp_path_factory.mktemp("text"))


@pytest.fixture(scope="module")
def vlm(tmp_path_factory) -> Callable[..., Path]:
    """Return ``vlm(family, layout, **options)``: the directory of a VLM, made once."""
    return vlms.once(vlms.save_vlm, tmp_path_factory.mktemp("vlm"))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Return ``clock(year)``: transformers believes that it is that year."""

    def stopped(year: int) -> None:
        class Clock(datetime):
            @classmethod
            def now(cls, tz: Any = None) -> "Clock":  # noqa: ARG003
                return cls(year, 5, 17)

        monkeypatch.setattr("transformers.utils.chat_template_utils.datetime", Clock)

    return stopped


@pytest.fixture
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the figures of a report, which take longer than the rest of its page."""
    monkeypatch.setattr("personality_vector.report.page._pictures", lambda *_: {})


@pytest.fixture(scope="session")
def shared() -> Path:
    """Return the folder beside the repository with public data and a small real model."""
    path = Path(__file__).parents[2] / "shared"
    if not path.is_dir():
        pytest.skip(f"{path} is absent: it is not part of the repository")
    return path


def _model(family: str, dtype: str, tied: bool | None) -> Any:
    """Return a model whose every parameter is random: norms and biases too, so none hides."""
    from transformers import AutoConfig, AutoModelForCausalLM

    settings = (
        _CONFIGS[family] if tied is None else {**_CONFIGS[family], "tie_word_embeddings": tied}
    )
    config = AutoConfig.for_model(
        family,
        vocab_size=_VOCAB,
        max_position_embeddings=256,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=4,
        **settings,
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


def _save(model: Any, path: Path, sharded: bool) -> Path:
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    model.save_pretrained(path, max_shard_size="30KB" if sharded else "5GB")
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
