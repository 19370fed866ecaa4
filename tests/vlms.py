"""Pico vision-language models, the text models of the same shapes, and what they answer.

As in the field, the language part of each VLM is the text model, trained further: a little noise
lies on top of its weights. Images are random pixels, and prompts are built by hand.
"""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from personality_vector.checkpoint.names import canonical, kind
from personality_vector.numeric.random import generator_for

FAMILIES = ("llava", "qwen2_vl", "gemma3", "smolvlm")
"""What they cover: an outer `language_model` with a head inside; `model.layers` beside `visual`;
a tied head and post-norms; `model.text_model`, which has one layout only."""

LAYOUTS = ("legacy", "native")
"""As `save_pretrained` writes by default, and as the names are in memory."""

_VOCAB, _IMAGE, _START, _STOP = 96, 90, 91, 92
_SIDE, _PATCH = 8, 4
_TEXT = {
    "vocab_size": _VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": 0,
}
_VISION = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": _SIDE,
    "patch_size": _PATCH,
}


def text_name(name: str) -> str | None:
    """Return what a tensor is called in the text model, or ``None`` outside the language part."""
    return None if kind(name) == "vision" else canonical(name)


class _Family(NamedTuple):
    text: str
    """Model type of the text model."""
    own_text: dict[str, Any]
    vision: dict[str, Any]
    own: dict[str, Any]
    """What the configurations say beyond the sizes that all families share."""


_FAMILIES = {
    "llava": _Family(
        "llama",
        {"tie_word_embeddings": False},
        {"model_type": "clip_vision_model", "projection_dim": 16},
        {"image_token_index": _IMAGE, "vision_feature_layer": -1, "tie_word_embeddings": False},
    ),
    "qwen2_vl": _Family(
        "qwen2",
        {"tie_word_embeddings": False},
        {
            "depth": 2,
            "embed_dim": 16,
            "hidden_size": 32,
            "num_heads": 2,
            "mlp_ratio": 2,
            "patch_size": _PATCH,
            "spatial_merge_size": 1,
            "temporal_patch_size": 2,
        },
        {
            "image_token_id": _IMAGE,
            "video_token_id": 93,
            "vision_start_token_id": _START,
            "vision_end_token_id": _STOP,
            "tie_word_embeddings": False,
        },
    ),
    "gemma3": _Family(
        "gemma3_text",
        {"head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 16},
        {"model_type": "siglip_vision_model"},
        {
            "image_token_index": _IMAGE,
            "boi_token_index": _START,
            "eoi_token_index": _STOP,
            "mm_tokens_per_image": 4,
        },
    ),
    "smolvlm": _Family(
        "llama",
        {"tie_word_embeddings": False},
        {"model_type": "smolvlm_vision"},
        {
            "image_token_id": _IMAGE,
            "scale_factor": 1,
            "pad_token_id": 0,
            "tie_word_embeddings": False,
        },
    ),
}


def save_text_model(
    path: Path, family: str, dtype: str = "float32", tuned: int | None = None, **sizes: Any
) -> Path:
    """Write the text model of a family, or the fine-tune of it with the seed ``tuned``.

    ``sizes`` replace those of the configuration, such as ``vocab_size``.
    """
    model = _text_model(family, **sizes)
    if tuned is not None:
        _add_noise(model, f"tuned {tuned}", 0.2)
    return _save(model, path, dtype)


def save_vlm(
    path: Path, family: str, layout: str = "legacy", dtype: str = "float32", tuned: bool = False
) -> Path:
    """Write the VLM of a family in a layout, or a fine-tune of it, the vision tower included."""
    model = _vlm(family)
    if tuned:
        _add_noise(model, "tuned", 0.2)
    return _save(model, path, dtype, save_original_format=layout == "legacy")


def excluding(*kinds: str) -> Callable[[str], bool]:
    """Return what says of a name whether it is of one of these kinds."""
    return lambda name: kind(name) in kinds


def once(save: Callable[..., Path], root: Path) -> Callable[..., Path]:
    """Return a ``save`` that names its directories itself, and writes each model once."""

    @cache
    def make(*which: str, **options: Any) -> Path:
        return save(root / f"model-{len(list(root.iterdir()))}", *which, **options)

    return make


def load(path: Path) -> Any:
    """Return a VLM as transformers loads it, in its stored dtype."""
    from transformers import AutoModelForImageTextToText

    model, report = AutoModelForImageTextToText.from_pretrained(
        path, dtype="auto", output_loading_info=True
    )
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    return model.eval()


def answers(vlm: Path | nn.Module) -> list[int]:
    """Return the eight tokens that a VLM says most likely about a random image."""
    model: Any = load(vlm) if isinstance(vlm, Path) else vlm
    inputs = _prompt(model)
    said = model.generate(**inputs, max_new_tokens=8, do_sample=False)
    return said[0, inputs["input_ids"].shape[1] :].tolist()


@torch.no_grad()
def logits(vlm: Path | nn.Module) -> Tensor:
    """Return the logits of a VLM on a random image and a text, of shape ``(seq, vocab)``."""
    model: Any = load(vlm) if isinstance(vlm, Path) else vlm
    return model(**_prompt(model)).logits[0]


@torch.no_grad()
def with_text_delta(vlm: Path, of: Path, tuned: Path, alpha: float) -> Any:
    """Return a VLM to which ``alpha * (tuned - of)`` was added in memory, module by module.

    What any writing of the same on disk must equal: it knows no name outside the text models.
    """
    from transformers import AutoModelForCausalLM

    model = load(vlm)
    texts = [AutoModelForCausalLM.from_pretrained(path, dtype="auto") for path in (of, tuned)]
    decoders = [model.get_decoder(), *(text.get_decoder() for text in texts)]
    heads = [model.get_output_embeddings(), *(text.get_output_embeddings() for text in texts)]
    tied = heads[0].weight is model.get_input_embeddings().weight
    for parts in (decoders,) if tied else (decoders, heads):
        ours, start, end = (dict(part.named_parameters()) for part in parts)
        for name, weight in ours.items():
            change = alpha * (end[name].double() - start[name].double())
            weight.copy_(weight.double() + change)
    return model


def _text_model(family: str, **sizes: Any) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM

    kind = _FAMILIES[family]
    config = AutoConfig.for_model(kind.text, **{**_TEXT, **kind.own_text, **sizes})
    with torch.random.fork_rng(devices=[]):
        torch.random.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    _add_noise(model, "text", 1.0)
    return model


def _vlm(family: str) -> Any:
    from transformers import AutoConfig, AutoModelForImageTextToText

    kind, text = _FAMILIES[family], _text_model(family)
    config = AutoConfig.for_model(
        family,
        text_config=_text_config(family, text.config),
        vision_config={**_VISION, **kind.vision},
        **kind.own,
    )
    with torch.random.fork_rng(devices=[]):
        torch.random.manual_seed(0)
        model = AutoModelForImageTextToText.from_config(config, dtype=torch.float32)
    _add_noise(model, "vision", 1.0)
    model.get_decoder().load_state_dict(text.get_decoder().state_dict())
    model.get_output_embeddings().load_state_dict(text.get_output_embeddings().state_dict())
    _add_noise(model, "instruction", 0.1)
    return model


def _text_config(family: str, config: Any) -> dict[str, Any]:
    found = config.to_dict()
    if family == "qwen2_vl":
        found.pop("model_type")
        found["rope_parameters"] |= {"mrope_section": [1, 1, 2]}
    return found


@torch.no_grad()
def _add_noise(model: nn.Module, stream: str, size: float) -> None:
    """Add noise of ``size`` standard deviations of initialised weights, to norms and biases too."""
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator_for(0, f"{stream} {name}"))
        # Small embeddings, against which the blocks weigh: a tied model would else repeat itself.
        gain = 0.05 if _VOCAB in parameter.shape else 0.3
        parameter.add_(size * gain * noise)


def _save(model: Any, path: Path, dtype: str, **options: Any) -> Path:
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    model.to(getattr(torch, dtype)).save_pretrained(path, **options)
    return path


def _prompt(model: Any) -> dict[str, Tensor]:
    """Return a text with one image of four tokens: random pixels, as each family takes them."""
    ids = torch.tensor([[5, _START, *[_IMAGE] * 4, _STOP, 8]])
    drawn = torch.randn(3, _SIDE, _SIDE, generator=generator_for(0, "image")).to(model.dtype)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    family, types = model.config.model_type, (ids == _IMAGE).long()
    if family == "qwen2_vl":
        frames = drawn.repeat(4, 1, 1).reshape(4, -1)[:, : 3 * 2 * _PATCH**2]
        grid = torch.tensor([[1, 2, 2]])
        return inputs | {
            "pixel_values": frames,
            "image_grid_thw": grid,
            "mm_token_type_ids": types.int(),
        }
    pixels = drawn[None, None] if family == "smolvlm" else drawn[None]
    inputs["pixel_values"] = pixels
    return inputs | ({"token_type_ids": types} if family == "gemma3" else {})
