"""The neurons of a pole and of its opposite: their record, where they are, and steering them."""

import re
from collections import defaultdict
from collections.abc import Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from personality_vector.checkpoint import Checkpoint
from personality_vector.errors import (
    BaseMismatchError,
    CheckpointError,
    DataError,
    ModelError,
    NonFiniteError,
    some,
)
from personality_vector.numeric.random import generator_for
from personality_vector.steering import Hook, Positions, Where, require_no_foreign_hooks
from personality_vector.steering.storage import Record
from personality_vector.subject.models import decoder_blocks, device_of, hidden_size
from personality_vector.traits import Pole

_SIDES = ("positive", "negative")
_COLUMNS = ("index", "difference", "a95")
_NAME = re.compile(rf"({'|'.join(_SIDES)})\.layer\.(\d+)\.({'|'.join(_COLUMNS)})")

# The names that transformers gives the activation module.
_NAMES = ("act_fn", "act", "activation_fn", "activation")


class NeuronRecord(Record):
    """The content of ``neurons.json``: a set of neurons with counts instead of numbers."""

    stem = "neurons"
    kind: Literal["neurons"] = "neurons"
    format: Literal[1] = 1
    neuron_convention: Literal[
        "output of the activation function in the MLP of a 0-based decoder block"
    ] = "output of the activation function in the MLP of a 0-based decoder block"
    sizes: tuple[int, int]


@dataclass(frozen=True, slots=True, eq=False)
class Neurons:
    """Some neurons of one block.

    Attributes:
        index: Numbers of the neurons, ascending; int64.
        difference: ``Pr(act > 0)`` over the responses of their own pole minus that over those of
            the other, in (0, 1]; float32.
        a95: 95th percentile of the activation over the responses of their own pole; float32.

    Raises:
        DataError: There is no neuron, the index is not ascending, or a number is out of range.
        NonFiniteError: A number is NaN or infinite.
    """

    index: Int[Tensor, " n"]
    difference: Float[Tensor, " n"]
    a95: Float[Tensor, " n"]

    def __post_init__(self) -> None:
        if not torch.isfinite(torch.stack([self.difference, self.a95])).all():
            raise NonFiniteError("neurons: a difference or an activation is NaN or infinite")
        if not len(self.index) or self.index[0] < 0 or (self.index.diff() <= 0).any():
            raise DataError("neurons: need at least one index from 0, in ascending order")
        if ((self.difference <= 0) | (self.difference > 1)).any() or (self.a95 < 0).any():
            raise DataError("neurons: a difference must be in (0, 1] and an activation at least 0")


@dataclass(frozen=True, slots=True, eq=False)
class NeuronSet:
    """The neurons that are active more often under one pole, and under the other.

    Attributes:
        positive: 0-based decoder block to the neurons of ``pole``.
        negative: The same for its opposite; no neuron is in both.
        model: Hex digest of the fingerprint of the model; "" where that is unknown.
        pole: The pole of the positive neurons, if any.
        label: Name in messages and reports.
        counts: Number of positive and of negative chats that were compared.
        made_with: What else the manifest says, as of a steering vector.

    Raises:
        DataError: A side has no neurons, or both name the same one.
    """

    positive: Mapping[int, Neurons]
    negative: Mapping[int, Neurons]
    model: str
    pole: Pole | None
    label: str
    counts: tuple[int, int]
    made_with: Mapping[str, Any] = field(default_factory=dict, compare=False)

    def __post_init__(self) -> None:
        for side in _SIDES:
            if not getattr(self, side):
                raise DataError(
                    f"{self.label}: the {side} side has no neurons; it needs at least one"
                )
        for layer in self.positive.keys() & self.negative.keys():
            if torch.isin(self.positive[layer].index, self.negative[layer].index).any():
                raise DataError(f"{self.label}: layer {layer} has a neuron on both sides")

    @property
    def sizes(self) -> tuple[int, int]:
        """Number of positive and of negative neurons."""
        return (
            sum(len(found.index) for found in self.positive.values()),
            sum(len(found.index) for found in self.negative.values()),
        )

    def save(self, directory: str | Path, *, force: bool = False) -> Path:
        """Write ``neurons.safetensors``, ``neurons.json`` and a manifest; it appears whole.

        Raises:
            OutputExistsError: The directory exists, without ``force`` or not written by this tool.
        """
        record = NeuronRecord(
            model=self.model,
            pole=self.pole,
            label=self.label,
            counts=self.counts,
            made_with=dict(self.made_with),
            sizes=self.sizes,
        )
        tensors = {
            f"{side}.layer.{layer}.{name}": getattr(found, name)
            for side in _SIDES
            for layer, found in getattr(self, side).items()
            for name in _COLUMNS
        }
        return record.write(Path(directory), tensors, force=force)

    @classmethod
    def load(cls, directory: str | Path) -> "NeuronSet":
        """Read saved neurons.

        Raises:
            CheckpointError: A file is missing or damaged, or the two disagree.
            DataError: The stored numbers do not describe neurons.
        """
        record, stored = NeuronRecord.read(Path(directory))
        found = cls(
            **_sides(stored),
            model=record.model,
            pole=record.pole,
            label=record.label,
            counts=record.counts,
            made_with=record.made_with,
        )
        if found.sizes != record.sizes:
            raise CheckpointError(
                f"{directory}: neurons.safetensors has {found.sizes} positive and negative "
                f"neurons, neurons.json says {record.sizes}; the two files do not belong together"
            )
        return found


def _sides(stored: Checkpoint) -> Any:
    """Return the saved neurons of both sides, by layer."""
    sides: dict[str, dict[int, Any]] = {side: defaultdict(dict) for side in _SIDES}
    for name in stored.names:
        match = _NAME.fullmatch(name)
        if match is None:
            raise CheckpointError(f"{stored.path}: {name} is not a column of neurons")
        sides[match[1]][int(match[2])][match[3]] = stored[name]
    for side, layers in sides.items():
        for layer, columns in layers.items():
            lengths = {tuple(column.shape) for column in columns.values()}
            if len(columns) < len(_COLUMNS) or len(lengths) > 1:
                raise CheckpointError(
                    f"{stored.path}: {side}.layer.{layer} needs {some(_COLUMNS)} of one length"
                )
            layers[layer] = Neurons(**columns)
    return sides


@dataclass(frozen=True, slots=True, eq=False)
class Site:
    """The neurons of one block.

    Attributes:
        activation: The module whose output is their activations ``(rows, seq, width)``: of the
            gate where the MLP has one, ``act(gate(x))``, else of its first layer.
        width: Number of neurons.
        device: Device of the block.
    """

    activation: nn.Module
    width: int
    device: torch.device


def neuron_sites(model: nn.Module) -> list[Site]:
    """Return the neurons of every decoder block.

    Raises:
        ModelError: A block does not have exactly one MLP with an activation module and a projection
            back to the residual stream (a mixture of experts has several), or blocks share one.
    """
    sites = [
        _site(block, layer, hidden_size(model)) for layer, block in enumerate(decoder_blocks(model))
    ]
    if len({id(site.activation) for site in sites}) < len(sites):
        raise ModelError(
            "blocks share one activation module, so their neurons cannot be told apart"
        )
    return sites


def activations(output: Any, width: int) -> Float[Tensor, "rows seq width"]:
    """Return the output of an activation module, checked to be one vector for each token.

    Raises:
        ModelError: It has another shape.
    """
    if not isinstance(output, Tensor) or output.ndim != 3 or output.shape[-1] != width:
        shape = list(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise ModelError(f"an activation module returns {shape}, not [rows, tokens, {width}]")
    return output


def _site(block: nn.Module, layer: int, hidden: int) -> Site:
    found = [
        (child, widths)
        for parent in block.modules()
        for name, child in parent.named_children()
        if name in _NAMES and (widths := _inner_widths(parent, hidden))
    ]
    if len(found) != 1 or len(found[0][1]) != 1:
        raise ModelError(
            f"block {layer} is a {type(block).__name__}, in which {len(found)} MLPs with a module "
            f"named {', '.join(_NAMES[:-1])} or {_NAMES[-1]} were found; there must be exactly "
            "one, and a mixture of experts has several"
        )
    activation, (width,) = found[0]
    return Site(activation, width, device_of(block))


def _inner_widths(parent: nn.Module, hidden: int) -> Sequence[int]:
    """Return the input widths of the layers directly in ``parent`` that lead to the residual."""
    sizes = {
        (getattr(child, "in_features", None), getattr(child, "out_features", None))
        if hasattr(child, "in_features")
        else (getattr(child, "nx", None), getattr(child, "nf", None))  # Conv1D of GPT-2
        for child in parent.children()
    }
    return [inner for inner, outer in sizes if outer == hidden and isinstance(inner, int)]


@contextmanager
def steered_neurons(
    model: nn.Module,
    neurons: NeuronSet,
    gamma: float,
    positions: Positions,
    *,
    keep: float = 1.0,
    seed: int = 0,
) -> Generator[None]:
    """Steer by forward hooks on the activation modules; gamma 0 registers none.

    Below 1, ``keep`` is the probability that a neuron is raised, drawn again in every forward
    pass.

    Cost: that of the chosen neurons, and one copy of the activations of steered passes.

    Raises:
        ModelError: The model's neurons cannot be found, or another tool left a hook on it.
        BaseMismatchError: It does not have these neurons.
    """
    sites = neuron_sites(model)
    require_no_foreign_hooks(model)
    _require_fit(neurons, sites)
    sides = neurons.positive, neurons.negative
    raised, silenced = sides[::-1] if gamma < 0 else sides
    with ExitStack() as hooks:
        if gamma != 0:
            where = Where(positions, 1.0)
            where.watch(model, decoder_blocks(model), hooks, 0)
            for layer in sorted({*raised, *silenced}):
                up, down = raised.get(layer), silenced.get(layer)
                index = torch.cat([side.index for side in (up, down) if side is not None])
                boost = (
                    abs(gamma) * up.a95 * torch.sigmoid(10.0 * (up.difference - 0.15))
                    if up is not None
                    else torch.zeros(0)
                )
                site, draws = sites[layer], generator_for(seed, f"neurons of layer {layer}")
                edit = _hook(site.width, where, index, boost, keep, draws)
                hooks.callback(site.activation.register_forward_hook(edit).remove)
        yield


def _require_fit(neurons: NeuronSet, sites: Sequence[Site]) -> None:
    for layer, found in (*neurons.positive.items(), *neurons.negative.items()):
        largest = int(found.index[-1])
        if not 0 <= layer < len(sites) or largest >= sites[layer].width:
            raise BaseMismatchError(
                f"{neurons.label}: neuron {largest} of layer {layer} does not exist in this "
                f"model of {len(sites)} blocks; use neurons that were found in it"
            )


def _hook(
    width: int,
    where: Where,
    index: Tensor,
    boost: Tensor,
    keep: float,
    generator: torch.Generator,
) -> Hook:
    """Return the hook on the activation module of one block.

    Args:
        width: Number of all neurons of the block.
        where: Which tokens are edited.
        index: The neurons to edit; those to raise come first.
        boost: What is added to each of the raised.
        keep: Probability that one is raised in a pass.
        generator: Draws which neurons are raised.
    """

    def edit(_module: nn.Module, _args: tuple[Any, ...], output: Any) -> Tensor | None:
        nonlocal index, boost
        act = activations(output, width)
        chosen = where.selected(act)
        if chosen is False:
            return None
        if boost.dtype != act.dtype or boost.device != act.device:
            boost, index = boost.to(act.device, act.dtype), index.to(act.device)
        raised = len(boost)
        is_drawn = torch.rand(raised, generator=generator) < keep if keep < 1.0 else None
        added = boost if is_drawn is None else boost * is_drawn.to(boost.device)
        part = act.index_select(-1, index)
        moved = torch.cat([part[..., :raised] + added, part[..., raised:].clamp(max=0.0)], dim=-1)
        if chosen is not True:
            moved = torch.where(chosen, moved, part)
        return act.index_copy(-1, index, moved)

    return edit
