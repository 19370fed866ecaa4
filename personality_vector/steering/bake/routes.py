"""The exact ways to write a constant steering vector into a checkpoint.

A block that ends with ``h + mlp(norm(h))`` adds what its last linear map puts out, so a bias of
that map is an addition to the block's output. A block that normalises what it adds has no such
place. The name of an architecture does not tell which it is, so the families below were read from
the sources of transformers, and any other architecture is refused.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from personality_vector.errors import ModelError, RecipeError

ATTENTION = tuple(f"self_attn.{one}_proj" for one in "qkvo")
GATED = ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")


@dataclass(frozen=True, slots=True)
class Family:
    """The linear maps that write to the residual stream.

    Attributes:
        root: First word of the tensors' names; some old checkpoints leave it out.
        blocks: The list of blocks, below the root.
        mlp: The last linear map of a block's MLP, below the block.
        attention: That of its attention.
        embeddings: What starts the stream, below the root; empty where it is followed by a norm.
        has_bias: The last map of its MLP always has a bias.
        flag: Name of the config's switch for a bias there; "" if there is none.
        flagged: Maps of a block that the switch gives a bias.
        multiplier: Config's name of a factor on what a block adds; "" for 1.
        transposed: Its weights are ``(in, out)``.
        to_llama: Without a sliding window it computes what a Llama with more biases does.
    """

    root: str = "model"
    blocks: str = "layers"
    mlp: str = "mlp.down_proj"
    attention: str = "self_attn.o_proj"
    embeddings: tuple[str, ...] = ("embed_tokens",)
    has_bias: bool = False
    flag: str = ""
    flagged: tuple[str, ...] = ()
    multiplier: str = ""
    transposed: bool = False
    to_llama: bool = False

    def module(self, layer: int, name: str) -> str:
        """Return the full name of a module of a block in memory."""
        return f"{self.root}.{self.blocks}.{layer}.{name}"


FAMILIES: Mapping[str, Family] = {
    **dict.fromkeys(
        ("llama", "smollm3", "helium", "seed_oss"), Family(flag="mlp_bias", flagged=GATED)
    ),
    **dict.fromkeys(("nemotron", "arcee"), Family(flag="mlp_bias", flagged=GATED[1:])),
    "granite": Family(flag="mlp_bias", flagged=GATED, multiplier="residual_multiplier"),
    "ernie4_5": Family(flag="use_bias", flagged=(*ATTENTION, *GATED)),
    "starcoder2": Family(
        mlp="mlp.c_proj", flag="use_bias", flagged=(*ATTENTION, "mlp.c_fc", "mlp.c_proj")
    ),
    **dict.fromkeys(("qwen2", "mistral"), Family(to_llama=True)),
    **dict.fromkeys(("qwen3", "phi3", "gemma", "olmo", "cohere", "stablelm"), Family()),
    "gpt2": Family(
        root="transformer",
        blocks="h",
        mlp="mlp.c_proj",
        attention="attn.c_proj",
        embeddings=("wte", "wpe"),
        has_bias=True,
        transposed=True,
    ),
    "gpt_neo": Family(
        root="transformer",
        blocks="h",
        mlp="mlp.c_proj",
        attention="attn.attention.out_proj",
        embeddings=("wte", "wpe"),
        has_bias=True,
    ),
    "gptj": Family(
        root="transformer",
        blocks="h",
        mlp="mlp.fc_out",
        attention="attn.out_proj",
        embeddings=("wte",),
        has_bias=True,
    ),
    "bloom": Family(
        root="transformer",
        blocks="h",
        mlp="mlp.dense_4h_to_h",
        attention="self_attention.dense",
        embeddings=(),
        has_bias=True,
    ),
    "gpt_neox": Family(
        root="gpt_neox",
        mlp="mlp.dense_4h_to_h",
        attention="attention.dense",
        embeddings=("embed_in",),
        has_bias=True,
    ),
    "phi": Family(mlp="mlp.fc2", attention="self_attn.dense", has_bias=True),
}

_EXPERTS = "its MLP is a mixture of experts, so no single output projection can hold a vector"
_REFUSED: Mapping[str, str] = {
    **dict.fromkeys(
        ("gemma2", "gemma3_text", "gemma3n_text", "olmo2", "olmo3", "glm4", "exaone4"),
        "its blocks normalise what the MLP puts out before they add it, so no weight adds a vector",
    ),
    **dict.fromkeys(("mixtral", "qwen2_moe", "qwen3_moe", "olmoe", "phimoe"), _EXPERTS),
    **dict.fromkeys(("granitemoe", "gpt_oss", "deepseek_v3", "jetmoe"), _EXPERTS),
}


def family_of(config: Any) -> Family:
    """Return the family of a model by its configuration, as transformers reads it.

    Raises:
        ModelError: No weight of this architecture can hold a steering vector, or none is known.
    """
    kind = config.model_type
    if config.get_text_config() is not config:
        raise ModelError(
            f"{kind}: a vision-language model cannot be baked; bake its text model on its own"
        )
    if getattr(config, "quantization_config", None) is not None:
        raise ModelError(f"{kind}: a quantised checkpoint cannot be baked; bake the original one")
    if kind in _REFUSED:
        raise ModelError(f"{kind}: {_REFUSED[kind]}; steer it with a hook")
    if kind not in FAMILIES:
        known = ", ".join(sorted(FAMILIES))
        raise ModelError(f"{kind}: no exact place for a vector is known; it is known for {known}")
    return FAMILIES[kind]


RouteName = Literal["bias", "convert", "adapter", "ablate"]

ROUTES: tuple[RouteName, ...] = get_args(RouteName)
"""First the routes that add a vector, in the order they are tried; then ``ablate``."""

# Rotary embeddings that Qwen2, Mistral and Llama compute by one shared function.
_ROPES = ("default", "linear", "dynamic", "yarn", "llama3")


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
        RecipeError: No route has that name.
    """
    if wanted not in ("auto", *ROUTES):
        raise RecipeError(f"route {wanted!r} is unknown; use auto, {', '.join(ROUTES[:-1])}")
    family = family_of(config)
    names = ROUTES[:-1] if wanted == "auto" else [name for name in ROUTES if name == wanted]
    obstacles = _obstacles(family, config)
    for name in names:
        if not obstacles[name]:
            return Route(name, family)
    why = "; ".join(f"route {name}: {obstacles[name]}" for name in names)
    raise ModelError(f"{config.model_type}: {why}")


def _obstacles(family: Family, config: Any) -> dict[RouteName, str]:
    """Return the obstacle to each route for a model; "" if there is none."""
    no_bias = "the MLP's output projection has no bias, and the config cannot give it one"
    turned = "its weights are transposed, and it has a bias of its own"
    return {
        "bias": "" if family.has_bias or family.flag else no_bias,
        "convert": _convert_obstacle(family, config),
        "adapter": turned if family.transposed else "",
        "ablate": "" if family.embeddings else "it normalises its embeddings",
    }


def _convert_obstacle(family: Family, config: Any) -> str:
    if not family.to_llama:
        return "only Qwen2 and Mistral have an equivalent Llama"
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    if getattr(config, "sliding_window", None) is not None or kinds != {"full_attention"}:
        return "it has a sliding window, which Llama does not have"
    rope = (config.rope_parameters or {}).get("rope_type", "default")
    if rope not in _ROPES:
        return f"its rotary embedding {rope!r} may differ from that of Llama"
    return ""
