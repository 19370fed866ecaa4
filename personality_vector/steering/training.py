"""Steering during training: what the deployed, unsteered model then need not, or cannot, learn."""

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from personality_vector.checkpoint import Checkpoint
from personality_vector.errors import ModelError, blame
from personality_vector.steering.apply import hidden_states, resolve_layers, steered
from personality_vector.steering.fit import (
    block_numbers,
    orthonormal,
    require_made_from,
    require_width,
)
from personality_vector.steering.vector import SteeringVector
from personality_vector.subject import identity_of
from personality_vector.subject.models import decoder_blocks, decoder_of

TrainingHow = Literal["add", "ablate", "regularise"]
Hidden = Float[Tensor, "rows seq hidden"]


@dataclass(frozen=True, slots=True, eq=False)
class TrainingSteering:
    """Steers a model at all tokens while it is trained, or penalises its shift along a vector.

    ``add``: ``h <- h + c v``. What the vector already gives, the weights need not learn.
    ``ablate``: ``h <- h - c (h . q) q``, with ``q = v / |v|``. Gradients flow through it, so at
    ``c = 1`` none pushes along ``q``. Of several vectors, all that they span is removed.
    ``regularise``: the loss gains ``c * mean(s^2)`` over layers and chats; ``s`` is the mean over
    the learned tokens of a chat of ``(h - h_base) . q``, and ``h_base`` comes from a second forward
    pass with the LoRA adapter turned off and without dropout.

    Coefficient 0 leaves the training as it is, bit for bit.

    Attributes:
        vectors: One, or several to ablate.
        layers: Decoder blocks, ``-1`` the last, at whose output it acts.
        how: One of the three.
        coefficient: The unit of ``add`` is that of the activation, the vector being as it was
            stored; a share in ``ablate``; nats per square of the activation in ``regularise``.

    Source:
        Preventative steering: persona vectors, Chen et al. 2025, arXiv:2507.21509; their layer
        ``l`` is our ``l - 1``. Ablation: CAFT, Casademunt et al. 2025, arXiv:2507.16795, who ablate
        principal components or SAE latents, not a mean difference. The form of the
        penalty is ours.
    """

    vectors: tuple[SteeringVector, ...]
    layers: tuple[int, ...]
    how: TrainingHow = "add"
    coefficient: float = 1.0

    @classmethod
    def open(
        cls, folders: Sequence[Path], layers: Sequence[int], how: TrainingHow, coefficient: float
    ) -> "TrainingSteering":
        """Read the vectors.

        Raises:
            CheckpointError: One is missing or damaged.
            DataError: One is zero.
        """
        return cls(tuple(map(SteeringVector.load, folders)), tuple(layers), how, coefficient)

    def identity(self) -> str:
        """Return the digest of its options and of the numbers of its vectors."""
        return identity_of(self)

    def check(self, base: Checkpoint) -> None:
        """Refuse a base that this cannot steer.

        Raises:
            BaseMismatchError: A vector is of another model or width.
            ModelError: The base does not have this layer.
            DataError: A layer is named twice.
            TensorMismatchError: A vector has no direction for a layer.
        """
        for vector in self.vectors:
            require_made_from(vector.label, vector.model, base)
            require_width(vector.label, vector.hidden, base)
            with blame(steer=vector.label):
                layers = block_numbers(self.layers, base)
                if layers:
                    vector.at(*layers)  # refuses a layer that it has no direction for

    @contextmanager
    def applied(self, model: nn.Module) -> Generator[Callable[[Mapping[str, Any]], Tensor | None]]:
        """Act on ``model`` inside the ``with`` block, and yield what to add to a batch's loss.

        Raises:
            ModelError: To regularise, the model has no adapter; and as :func:`steered`.
        """
        layers = resolve_layers(model, self.layers)
        with ExitStack() as stack:
            if self.coefficient == 0.0:
                yield _nothing
            elif self.how == "regularise":
                directions = {layer: self.vectors[0][layer] for layer in layers}
                yield stack.enter_context(_penalised(model, directions, self.coefficient))
            else:
                for directions in self._edits(layers):
                    edit = steered(model, directions, self.coefficient, how=self.how)
                    stack.enter_context(edit)
                yield _nothing

    def _edits(self, layers: Sequence[int]) -> list[dict[int, Tensor]]:
        """Return the directions of the edits that are made one after the other."""
        found = {layer: [vector[layer] for vector in self.vectors] for layer in layers}
        if len(self.vectors) > 1:
            found = {layer: orthonormal(directions) for layer, directions in found.items()}
        most = max(map(len, found.values()))
        return [
            {layer: one[k] for layer, one in found.items() if k < len(one)} for k in range(most)
        ]


def _nothing(_batch: Mapping[str, Any]) -> None:
    """Return no penalty."""


@contextmanager
def _penalised(
    model: Any, directions: Mapping[int, Tensor], weight: float
) -> Generator[Callable[[Mapping[str, Any]], Tensor]]:
    """Keep the outputs of some blocks while the model reads, and yield the penalty of a batch."""
    if not hasattr(model, "disable_adapter"):
        raise ModelError(
            "regularise compares activations with those of the base, which is only there below "
            "an adapter; add sft.lora or sft.adapter"
        )
    kept: dict[int, Hidden] = {}
    blocks = decoder_blocks(model)

    def keep(layer: int, _block: nn.Module, _args: tuple[Any, ...], output: Any) -> None:
        kept[layer] = hidden_states(output)

    def penalty(batch: Mapping[str, Any]) -> Tensor:
        tuned = dict(kept)
        read = {key: batch[key] for key in batch if key != "labels"}
        with _base_of(model):
            decoder_of(model)(**{**read, "use_cache": False})  # a cache would join packed chats
        found = [
            shifts(tuned[layer] - kept[layer], direction, batch)
            for layer, direction in directions.items()
        ]
        return weight * torch.cat(found).square().mean()

    with ExitStack() as hooks:
        for layer in directions:
            hook = blocks[layer].register_forward_hook(partial(keep, layer))
            hooks.callback(hook.remove)
        yield penalty


@contextmanager
def _base_of(model: Any) -> Generator[None]:
    """Turn off the adapter, dropout and gradients."""
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad(), model.disable_adapter():
            yield
    finally:
        model.train(was_training)


def shifts(
    moved: Hidden, direction: Float[Tensor, " hidden"], batch: Mapping[str, Any]
) -> Float[Tensor, " chats"]:
    """Return the mean of ``moved . q`` over the learned tokens of each chat; float32.

    Args:
        moved: What to project, at every token of a batch.
        direction: ``v``, and ``q = v / |v|``.
        batch: ``labels``, -100 on what is not learned, and ``position_ids`` where it is packed.
    """
    learned = batch["labels"] != -100
    unit = (direction / direction.norm()).to(moved.device)
    along = (moved.float() * unit).sum(-1)[learned]
    chats = _numbers(batch)[learned]
    count = int(chats.max()) + 1 if len(chats) else 0
    sums = along.new_zeros(count).index_add(0, chats, along)
    tokens = torch.bincount(chats, minlength=count)
    means: Tensor = sums[tokens > 0] / tokens[tokens > 0]
    return means


def _numbers(batch: Mapping[str, Any]) -> Int[Tensor, "rows seq"]:
    """Return which chat each token of a batch is of; packed chats begin at position 0."""
    labels, positions = batch["labels"], batch.get("position_ids")
    if positions is None:
        rows = torch.arange(len(labels), device=labels.device)
        return rows[:, None].expand_as(labels)
    starts = positions == 0
    starts[:, 0] = True
    numbers: Tensor = starts.flatten().cumsum(0).view_as(labels) - 1
    return numbers
