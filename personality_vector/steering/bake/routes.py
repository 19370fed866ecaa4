"""Which exact way there is to write a constant steering vector into a checkpoint."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from personality_vector.errors import ModelError, RecipeError
from personality_vector.steering.bake.families import Family, family_of

RouteName = Literal["bias", "convert", "adapter", "ablate"]

_ADDING: tuple[RouteName, ...] = ("bias", "convert", "adapter")
"""Routes that add a vector, in the order in which they are tried; ``ablate`` takes one out."""

_ROPES = ("default", "linear", "dynamic", "yarn", "llama3")
"""Rotary embeddings that Qwen2, Mistral and Llama take from one shared function."""


@dataclass(frozen=True, slots=True)
class Route:
    """One exact way to bake.

    Attributes:
        name: ``bias``, a bias that the architecture has or its config can switch on; ``convert``,
            the equivalent Llama with such a bias; ``adapter``, a PEFT adapter that is only a bias;
            ``ablate``, weights that write nothing along a direction.
        family: Where the vector goes.
    """

    name: RouteName
    family: Family


def route_for(config: Any, wanted: str = "auto") -> Route:
    """Return the route for a model by its configuration, as transformers reads it.

    Args:
        config: A ``PreTrainedConfig``.
        wanted: A route by name; or ``auto``, the first that is possible of ``bias``, ``convert``
            and ``adapter``.

    Raises:
        ModelError: No route, or not the wanted one, is exact for this model; it says why.
        RecipeError: There is no route of that name.
    """
    if wanted != "auto" and wanted not in ROUTES:
        raise RecipeError(f"route {wanted!r} is unknown; there are auto, {', '.join(_ADDING)}")
    family = family_of(config)
    names = _ADDING if wanted == "auto" else tuple(name for name in ROUTES if name == wanted)
    obstacles = {name: ROUTES[name](family, config) for name in names}
    for name, obstacle in obstacles.items():
        if not obstacle:
            return Route(name, family)
    why = "; ".join(f"route {name}: {obstacle}" for name, obstacle in obstacles.items())
    raise ModelError(f"{config.model_type}: {why}")


def _against_bias(family: Family, _config: Any) -> str:
    if not (family.has_bias or family.flag):
        return "the MLP's output projection has no bias, and the config cannot give it one"
    return ""


def _against_convert(family: Family, config: Any) -> str:
    if not family.to_llama:
        return "only Qwen2 and Mistral have an equivalent Llama"
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    if getattr(config, "sliding_window", None) is not None or kinds != {"full_attention"}:
        return "it has a sliding window, which Llama has not"
    rope = (config.rope_parameters or {}).get("rope_type", "default")
    if rope not in _ROPES:
        return f"its rotary embedding {rope!r} is not known to be that of Llama"
    return ""


def _against_adapter(family: Family, _config: Any) -> str:
    return "its weights are transposed, and it has a bias of its own" if family.transposed else ""


def _against_ablate(family: Family, _config: Any) -> str:
    return "" if family.embeddings else "it normalises its embeddings"


ROUTES: Mapping[RouteName, Callable[[Family, Any], str]] = {
    "bias": _against_bias,
    "convert": _against_convert,
    "adapter": _against_adapter,
    "ablate": _against_ablate,
}
"""What speaks against each route for a model; "" if nothing does."""
