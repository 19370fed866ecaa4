"""What one forward and backward pass says of every layer, before anything is generated."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from personality_vector.errors import DataError, NonFiniteError
from personality_vector.progress import progress
from personality_vector.steering import Positions, SteeringVector
from personality_vector.steering.apply import Hook, hidden_states
from personality_vector.study.choose.separation import Separation, separation
from personality_vector.subject.chat import (
    Chat,
    EncodedChats,
    batched,
    encode_chats,
    response_log_probs,
)
from personality_vector.subject.models import decoder_blocks, device_of
from personality_vector.subject.subject import Subject

_NEAR = 0.5
"""A layer is a candidate if its d' is at least this share of the best one."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """What is known of one layer.

    Attributes:
        layer: 0-based decoder block.
        separation: Of statements of the pole and of the opposite one, by the projection of the
            mean activation over their tokens on the vector.
        residual_norm: Median over these tokens of the norm of the block's output.
        vector_norm: Of the direction, in the same unit.
        slope: First-order effect: by how many nats per token the probe would move to the pole if
            the vector were added at the length of a whole residual norm.
    """

    layer: int
    separation: Separation
    residual_norm: float
    vector_norm: float
    slope: float

    @property
    def unit(self) -> float:
        """The coefficient that adds as much as the residual stream is long."""
        return self.residual_norm / self.vector_norm


@dataclass(frozen=True, slots=True, eq=False)
class Contrast:
    """Chats of the two poles, and where the vector would act in them.

    Attributes:
        towards: Each ends with a statement of the pole.
        away: The same of the opposite pole.
        positions: Where the vector would act.
        batch_size: Chats per pass; it changes speed and memory only.
    """

    towards: Sequence[Chat]
    away: Sequence[Chat]
    positions: Positions
    batch_size: int = 16


def examine(
    subject: Subject, vector: SteeringVector, layers: Sequence[int], contrast: Contrast
) -> list[Evidence]:
    """Return the evidence of each of ``layers``, from one pass over the chats.

    Every block's output gets ``c_l * v_l`` with ``c_l = 0``, which changes nothing and whose
    gradient is the effect of each layer, all of them from one backward pass:
    ``slope_l = |h_l| / |v_l| * dJ/dc_l``, with ``J`` the mean over statements of their mean
    log-likelihood per token, the pole's minus the opposite one's.

    Args:
        subject: The unedited model; not changed.
        vector: Has a direction for each of ``layers``.
        layers: 0-based decoder blocks.
        contrast: What is read.

    Raises:
        DataError: A side has fewer than two chats.
        TensorMismatchError: There is no direction for a layer.
        NonFiniteError: The model predicts NaN or infinity.
    """
    hooks = _LayerHooks(vector, layers, contrast.positions, device_of(subject.model))
    sides = [(chat, 1.0 / len(contrast.towards)) for chat in contrast.towards]
    sides += [(chat, -1.0 / len(contrast.away)) for chat in contrast.away]
    with torch.enable_grad(), ExitStack() as undo:
        blocks = decoder_blocks(subject.model)
        for index, layer in enumerate(layers):
            undo.callback(blocks[layer].register_forward_hook(hooks.hook(index)).remove)
        for batch in progress(list(batched(sides, contrast.batch_size)), "rank layers"):
            hooks.read(subject, batch)
    return [hooks.evidence(index, len(contrast.towards)) for index in range(len(layers))]


def ranked(found: Sequence[Evidence]) -> list[Evidence]:
    """Return the candidates among layers, best first.

    A candidate separates the poles at least half as well as the best layer (by d'), and its slope
    leads to the pole. Candidates are ranked by slope; among equals the earlier layer comes first.

    Raises:
        DataError: No layer is a candidate.
    """
    best = max(evidence.separation.d_prime for evidence in found)
    candidates = [
        evidence
        for evidence in found
        if evidence.separation.d_prime >= _NEAR * best > 0 and evidence.slope > 0
    ]
    if not candidates:
        raise DataError(
            f"none of the layers {[evidence.layer for evidence in found]} both separates the "
            f"statements of the two poles (best d' {best:.2f}) and moves the probe to the pole; "
            "the vector does not point there, or the pole is the wrong one"
        )
    return sorted(candidates, key=lambda evidence: (-evidence.slope, evidence.layer))


@dataclass(slots=True, eq=False)
class _Seen:
    """Of one layer: projections and norms of what passed, chat by chat."""

    projections: list[float] = field(default_factory=list)
    norms: list[Float[Tensor, " tokens"]] = field(default_factory=list)


class _LayerHooks:
    """Hooks that record what blocks put out, and add zero times a direction to it.

    The zeros change nothing; their gradients are the effects of the layers.
    """

    def __init__(
        self,
        vector: SteeringVector,
        layers: Sequence[int],
        positions: Positions,
        device: torch.device,
    ) -> None:
        self._layers = tuple(layers)
        self._directions = [vector[layer].to(device) for layer in layers]
        self._positions = positions
        self._coefficients = torch.zeros(len(layers), device=device, requires_grad=True)
        self._slopes = torch.zeros(len(layers), dtype=torch.float64)
        self._seen = [_Seen() for _ in layers]
        self._responses: Bool[Tensor, "rows seq"] = torch.empty(0, 0, dtype=torch.bool)
        self._steered: Bool[Tensor, "rows seq"] = torch.empty(0, 0, dtype=torch.bool)

    def read(self, subject: Subject, batch: Sequence[tuple[Chat, float]]) -> None:
        """Run the model over a batch of chats and weights, and add up what it shows."""
        encoded = encode_chats(subject.tokenizer, [chat for chat, _ in batch])
        encoded = encoded.to(self._coefficients.device)
        self._responses = encoded.response_mask
        self._steered = selected(self._positions, encoded)
        weights = torch.tensor([weight for _, weight in batch], device=self._responses.device)
        objective = (weights * _mean_log_likelihood(subject.model, encoded)).sum()
        (slopes,) = torch.autograd.grad(objective, self._coefficients)
        if not torch.isfinite(slopes).all():
            raise NonFiniteError("the model predicts NaN or infinity on a statement")
        self._slopes += slopes.double().cpu()

    def hook(self, index: int) -> Hook:
        """Return the hook of one layer."""
        direction, seen = self._directions[index], self._seen[index]

        def record(_block: Any, _args: tuple[Any, ...], output: Any) -> Any:
            hidden = hidden_states(output)
            self._note(hidden.detach(), direction, seen)
            push = self._coefficients[index] * direction * self._steered[..., None]
            moved = hidden + push.to(hidden.dtype)
            return (moved, *output[1:]) if isinstance(output, tuple) else moved

        return record

    def _note(
        self, hidden: Float[Tensor, "rows seq hidden"], direction: Tensor, seen: _Seen
    ) -> None:
        for row, is_response in zip(hidden, self._responses, strict=True):
            tokens = row[is_response].double()
            unit = direction.double() / direction.double().norm()
            seen.projections.append(float(tokens.mean(0) @ unit))
            seen.norms.append(tokens.norm(dim=-1).cpu())

    def evidence(self, index: int, towards: int) -> Evidence:
        """Return what was found of one layer; the first ``towards`` chats are of the pole."""
        seen, norm = self._seen[index], float(self._directions[index].double().norm())
        residual = float(torch.cat(seen.norms).median())
        return Evidence(
            layer=self._layers[index],
            separation=separation(seen.projections[:towards], seen.projections[towards:]),
            residual_norm=residual,
            vector_norm=norm,
            slope=float(self._slopes[index]) * residual / norm,
        )


def selected(positions: Positions, encoded: EncodedChats) -> Bool[Tensor, "rows seq"]:
    """Return which tokens of each chat are steered; what stands at padding has no effect."""
    columns, prompts = torch.arange(encoded.input_ids.shape[1]), encoded.prompts
    rows = []
    for row in range(len(encoded.input_ids)):
        spans = positions.spans(prompts, row)
        rows.append(torch.stack([(columns >= a) & (columns < b) for a, b in spans]).any(0))
    return torch.stack(rows).to(encoded.input_ids.device)


def _mean_log_likelihood(model: Any, encoded: EncodedChats) -> Float[Tensor, " rows"]:
    """Return the mean log-likelihood of each response's tokens, with its gradient."""
    tokens = encoded.input_ids[:, 1:, None]
    found = response_log_probs(model, encoded).gather(2, tokens)[..., 0]
    mask = encoded.response_mask[:, 1:]
    return (found * mask).sum(1) / mask.sum(1)
