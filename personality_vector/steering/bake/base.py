"""The model that is baked into: its family, the exact ways to bake, and writing it edited.

A block that ends with ``h + mlp(norm(h))`` adds what its last linear map puts out, so a bias of
that map is an addition to the block's output. A block that normalises what it adds has no such
place. The name of an architecture does not tell which it is, so the families below were read from
the sources of transformers, and any other architecture is refused.
"""

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from personality_vector.checkpoint import Checkpoint, ShardWriter, TensorPlan
from personality_vector.checkpoint.writer import shard_names, write_index
from personality_vector.errors import (
    CheckpointError,
    ModelError,
    NonFiniteError,
    RecipeError,
    blame,
)

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
        raise ModelError(
            f"{kind}: no exact place for a vector is known in this architecture; one is known in "
            f"{', '.join(sorted(FAMILIES))}"
        )
    return FAMILIES[kind]


RouteName = Literal["bias", "convert", "adapter", "ablate"]

ROUTES: tuple[RouteName, ...] = get_args(RouteName)
"""First the routes that add a vector, in the order they are tried; then ``ablate``."""

# Rotary embeddings that Qwen2, Mistral and Llama compute by one shared function.
_ROPES = ("default", "linear", "dynamic", "yarn", "llama3")


def route_for(config: Any, wanted: str = "auto") -> RouteName:
    """Return the exact way to bake a model, by its configuration as transformers reads it.

    ``bias``: a bias that the architecture has or its config can switch on. ``convert``: the
    equivalent Llama with such a bias. ``adapter``: a PEFT adapter that is only a bias. ``ablate``:
    weights that write nothing along a direction.

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
    obstacles: dict[RouteName, str] = {
        "bias": ""
        if family.has_bias or family.flag
        else "the MLP's output projection has no bias, and the config cannot give it one",
        "convert": _convert_obstacle(family, config),
        "adapter": "its weights are transposed, and it has a bias of its own"
        if family.transposed
        else "",
        "ablate": "" if family.embeddings else "it normalises its embeddings",
    }
    for name in names:
        if not obstacles[name]:
            return name
    why = "; ".join(f"route {name}: {obstacles[name]}" for name in names)
    raise ModelError(f"{config.model_type}: {why}")


def _convert_obstacle(family: Family, config: Any) -> str:
    """Return why no Llama computes what a model does; "" if there is one."""
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    has_window = getattr(config, "sliding_window", None) is not None or kinds != {"full_attention"}
    rope = (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default")
    obstacles = {
        "only Qwen2 and Mistral have an equivalent Llama": not family.to_llama,
        "it has a sliding window, which Llama does not have": has_window,
        f"its rotary embedding {rope!r} may differ from that of Llama": rope not in _ROPES,
    }
    return next((why for why, applies in obstacles.items() if applies), "")


@dataclass(frozen=True, slots=True)
class Base:
    """A checkpoint, and where its family writes to the residual stream.

    Attributes:
        checkpoint: On disk.
        config: As transformers reads it, with every default filled in.
        family: The family of its architecture.
    """

    checkpoint: Checkpoint
    config: Any
    family: Family

    @property
    def multiplier(self) -> float:
        """The factor on whatever a block adds to the stream."""
        return float(getattr(self.config, self.family.multiplier, 1.0))

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights that write to the stream."""
        return self.checkpoint.entries[self.weight(0, self.family.mlp)].dtype

    def weight(self, layer: int, module: str) -> str:
        """Return the name on disk of a block's weight; see :meth:`stored`."""
        return self.stored(f"{self.family.blocks}.{layer}.{module}")

    def stored(self, module: str) -> str:
        """Return the name on disk of the weight of a module below the root.

        Names on disk begin with the family's root, unless none of the checkpoint does.

        Raises:
            CheckpointError: The checkpoint does not have this tensor.
        """
        root = f"{self.family.root}."
        has_root = any(name.startswith(root) for name in self.checkpoint.names)
        name = f"{root if has_root else ''}{module}.weight"
        if name not in self.checkpoint.entries:
            raise CheckpointError(
                f"{self.checkpoint.path}: has no tensor {name}, which every "
                f"{self.config.model_type} has; config.json and weights do not belong together"
            )
        return name


@dataclass(frozen=True, slots=True)
class Edit:
    """A tensor of the export that the base lacks or stores with other values.

    Attributes:
        plan: Its name, dtype and shape.
        exact: Makes it, not rounded, when it is written; so one exists at a time.
    """

    plan: TensorPlan
    exact: Callable[[], Tensor]

    def rounded(self) -> Tensor:
        """Return what is written: rounded once, to the planned dtype."""
        values = self.exact().to(self.plan.dtype)
        if not torch.isfinite(values).all():
            raise NonFiniteError(
                f"{self.plan.name}: is not finite in {values.dtype}; use a smaller coefficient"
            )
        return values


Edits = Mapping[str, Edit]


def size_of(checkpoint: Checkpoint, edits: Edits) -> int:
    """Return the bytes of the weights that :func:`write_checkpoint` writes."""
    return sum(
        [file.stat().st_size for file in _files(checkpoint)]
        + [edit.plan.size for name, edit in edits.items() if name not in checkpoint.entries]
    )


def write_checkpoint(
    checkpoint: Checkpoint, edits: Edits, config: Mapping[str, Any], directory: Path
) -> None:
    """Write the base with ``edits`` and another config.json; the rest is the base's, byte for byte.

    Files are copied as files and edited tensors overwritten in place; new tensors are one more
    shard, of any size. Memory: one edited tensor.

    Raises:
        NonFiniteError: An edited tensor is not finite in its dtype.
    """
    files, entries = _files(checkpoint), checkpoint.entries
    plans = [edit.plan for name, edit in edits.items() if name not in entries]
    names = shard_names(len(files) + bool(plans))
    copies = dict(zip(files, names, strict=False))
    for file, name in copies.items():
        shutil.copyfile(file, directory / name)
    for name in edits.keys() & entries.keys():
        with blame(tensor=name):
            values = edits[name].rounded().contiguous().reshape(-1).view(torch.uint8)
            with (directory / copies[entries[name].file]).open("r+b") as stream:
                stream.seek(entries[name].start)
                stream.write(values.numpy().data)
    if plans:
        with ShardWriter(directory, plans, 1 << 62, Path(names[-1]).stem) as writer:
            for plan in plans:
                writer.write(plan.name, edits[plan.name].rounded())
    if len(names) > 1:
        size = sum(tensor.size for tensor in (*entries.values(), *plans))
        shards = {name: copies[entry.file] for name, entry in entries.items()}
        shards |= {plan.name: names[-1] for plan in plans}
        write_index(directory, size, dict(sorted(shards.items())))
    (directory / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    checkpoint.copy_side_files(directory)


def _files(checkpoint: Checkpoint) -> list[Path]:
    return sorted({entry.file for entry in checkpoint.entries.values()})
