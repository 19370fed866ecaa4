"""Evidence about every layer from one forward and backward pass, before anything is generated."""

import math
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from personality_vector.errors import DataError, NonFiniteError
from personality_vector.numeric.statistics import Z95
from personality_vector.progress import progress
from personality_vector.steering import Hook, Positions, SteeringVector, hidden_states
from personality_vector.subject import Chat, batched
from personality_vector.subject.encoding import encode_chats, mean_log_probs
from personality_vector.subject.models import decoder_blocks, device_of
from personality_vector.subject.subject import Subject

# A layer is a candidate if its d' is at least this share of the best one.
_CANDIDATE_SHARE = 0.5


@dataclass(frozen=True, slots=True)
class Separation:
    """How far a measured number lies higher in one group than in another.

    Attributes:
        d_prime: Difference of the means in units of the pooled standard deviation.
        auc: Chance that a member of the first group lies higher than one of the second; 0.5
            means no separation.
        auc_low: Lower end of its 95 % confidence interval.
        auc_high: Upper end.
    """

    d_prime: float
    auc: float
    auc_low: float
    auc_high: float


@dataclass(frozen=True, slots=True)
class Evidence:
    """The evidence about one layer.

    Attributes:
        layer: 0-based decoder block.
        separation: How well the projection on the vector separates statements of the two poles.
            It is that of the mean activation over their tokens.
        residual_norm: Median over these tokens of the norm of the block's output.
        vector_norm: Norm of the direction, in the same unit.
        slope: First-order effect: how far the likelihood would move towards the pole, in nats per
            token, if the vector were added at the length of a whole residual norm.
    """

    layer: int
    separation: Separation
    residual_norm: float
    vector_norm: float
    slope: float

    @property
    def unit(self) -> float:
        """The coefficient that adds a vector as long as the residual stream."""
        return self.residual_norm / self.vector_norm


def examine(  # noqa: PLR0913  (a model, a vector, two sides, and how they are read)
    subject: Subject,
    vector: SteeringVector,
    layers: Sequence[int],
    towards: Sequence[Chat],
    away: Sequence[Chat],
    positions: Positions,
    batch_size: int = 16,
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
        towards: Each ends with a statement of the pole.
        away: The same of the opposite pole.
        positions: Where the vector would act in them.
        batch_size: Chats per pass; it changes speed and memory only.

    Raises:
        DataError: A side has fewer than two chats.
        TensorMismatchError: There is no direction for a layer.
        NonFiniteError: The model predicts NaN or infinity.
    """
    blocks, device = decoder_blocks(subject.model), device_of(subject.model)
    probes = [
        _Probe(layer, vector[layer].to(device), torch.zeros((), device=device, requires_grad=True))
        for layer in layers
    ]
    sides = [(chat, 1.0 / len(towards)) for chat in towards]
    sides += [(chat, -1.0 / len(away)) for chat in away]
    for batch in progress(list(batched(sides, batch_size)), "rank layers"):
        encoded = encode_chats(subject.tokenizer, [chat for chat, _ in batch]).to(device)
        weights = torch.tensor([weight for _, weight in batch], device=device)
        # Padding has no effect, wherever it is.
        steered = positions.mask(
            encoded.prompts, torch.arange(encoded.input_ids.shape[1], device=device)
        )
        with torch.enable_grad(), ExitStack() as undo:
            for probe in probes:
                hook = probe.hook(encoded.response_mask, steered)
                undo.callback(blocks[probe.layer].register_forward_hook(hook).remove)
            objective = (weights * mean_log_probs(subject.model, encoded)).sum()
        slopes = torch.autograd.grad(objective, [probe.coefficient for probe in probes])
        if not torch.isfinite(torch.stack(slopes)).all():
            raise NonFiniteError("the model predicts NaN or infinity on a statement")
        for probe, slope in zip(probes, slopes, strict=True):
            probe.slope += float(slope)
    return [probe.evidence(len(towards)) for probe in probes]


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
        if evidence.separation.d_prime >= _CANDIDATE_SHARE * best > 0 and evidence.slope > 0
    ]
    if not candidates:
        raise DataError(
            f"none of the layers {[evidence.layer for evidence in found]} both separates the "
            f"statements of the two poles (best d' {best:.2f}) and moves the trait to the pole; "
            "check that the pole is the one of this vector"
        )
    return sorted(candidates, key=lambda evidence: (-evidence.slope, evidence.layer))


@dataclass(slots=True, eq=False)
class _Probe:
    """What the chats show about one layer: projections and norms by chat, and the slope.

    Zero times the direction is added to the output of the block, for the sake of its gradient.
    """

    layer: int
    direction: Float[Tensor, " hidden"]
    coefficient: Float[Tensor, ""]
    projections: list[float] = field(default_factory=list)
    norms: list[Float[Tensor, " tokens"]] = field(default_factory=list)
    slope: float = 0.0

    def hook(self, responses: Bool[Tensor, "rows seq"], steered: Bool[Tensor, "rows seq"]) -> Hook:
        """Return the hook that reads the block's output over the responses of a batch."""
        unit = self.direction.double() / self.direction.double().norm()

        def record(_block: Any, _args: tuple[Any, ...], output: Any) -> Any:
            hidden = hidden_states(output)
            for row, is_response in zip(hidden.detach(), responses, strict=True):
                tokens = row[is_response].double()
                self.projections.append(float(tokens.mean(0) @ unit))
                self.norms.append(tokens.norm(dim=-1).cpu())
            push = self.coefficient * self.direction * steered[..., None]
            moved = hidden + push.to(hidden.dtype)
            return (moved, *output[1:]) if isinstance(output, tuple) else moved

        return record

    def evidence(self, towards: int) -> Evidence:
        """Return what was found; the first ``towards`` chats are of the pole."""
        residual = float(torch.cat(self.norms).median())
        norm = float(self.direction.double().norm())
        return Evidence(
            self.layer,
            separation(self.projections[:towards], self.projections[towards:]),
            residual,
            norm,
            self.slope * residual / norm,
        )


def separation(higher: Sequence[float], lower: Sequence[float]) -> Separation:
    """Return how far ``higher`` lies above ``lower``; negative and below 0.5 if it lies below.

    ``d' = (mean_1 - mean_2) / sqrt((s_1^2 + s_2^2) / 2)``, infinite where neither group varies.

    Raises:
        DataError: A group has fewer than two members.

    Source:
        Variance of the area: DeLong, DeLong and Clarke-Pearson 1988, Biometrics 44:837. The
        interval is normal on the scale of ``log(auc / (1 - auc))``, which keeps it inside (0, 1).
        Where the groups do not overlap at all there is no variance, and it has no width.
    """
    if min(len(higher), len(lower)) < 2:
        raise DataError(
            f"separation needs at least two of each, got {len(higher)} and {len(lower)}"
        )
    above, below = np.asarray(higher, np.float64), np.asarray(lower, np.float64)
    wins = (above[:, None] > below) + 0.5 * (above[:, None] == below)
    auc = float(wins.mean())
    variance = sum(wins.mean(axis).var(ddof=1) / wins.shape[1 - axis] for axis in (0, 1))
    difference = float(above.mean() - below.mean())
    spread = math.sqrt((above.var(ddof=1) + below.var(ddof=1)) / 2.0)
    d_prime = difference / spread if spread else math.copysign(math.inf, difference)
    low = high = auc
    if 0.0 < auc < 1.0:
        odds = auc / (1.0 - auc)
        width = math.exp(Z95 * math.sqrt(variance) / (auc * (1.0 - auc)))
        low, high = odds / (odds + width), odds / (odds + 1.0 / width)
    return Separation(d_prime, auc, low, high)
