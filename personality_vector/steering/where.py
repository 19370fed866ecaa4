"""Which rows and columns are steered in the chunk that a model is reading."""

import inspect
import math
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from personality_vector.errors import DataError, ModelError, NonFiniteError, RecipeError
from personality_vector.steering.fit import require_fit
from personality_vector.steering.positions import Positions
from personality_vector.subject.models import hidden_size, owner_of
from personality_vector.subject.prompts import CURRENT, Prompts, tracking_generate

Selected = Bool[Tensor, "rows _ 1"] | bool
"""A mask; ``True`` selects the whole chunk and ``False`` none of it."""


@dataclass(frozen=True, slots=True, eq=False)
class Gate:
    """Steers only rows whose prompt is similar, or dissimilar, to a direction.

    A row is open if the cosine between ``direction`` and the mean over its prompt of the output
    of block ``layer`` is beyond ``threshold``.

    Attributes:
        layer: 0-based decoder block; no steered block comes before it.
        direction: ``(hidden,)``, of any length but 0.
        threshold: The cosine at which the gate turns.
        side: Whether a row is open above or below it.

    Source:
        Conditional activation steering, Lee et al. 2024, arXiv:2409.05907. Deviations: a plain
        cosine instead of ``cos(h, tanh(P h))``, decided for each row by its whole prompt.
    """

    layer: int
    direction: Float[Tensor, " hidden"]
    threshold: float
    side: Literal["above", "below"] = "above"

    def __post_init__(self) -> None:
        if self.side not in ("above", "below"):
            raise RecipeError(f"gate: side must be above or below, got {self.side!r}")

    def require_fit(self, model: nn.Module, blocks: int, first_steered: int) -> None:
        """Check the gate against a model.

        Raises:
            ModelError: The model does not have this block, or a steered block comes before it.
            BaseMismatchError: The direction has another width.
            NonFiniteError: A number is NaN or infinite.
            DataError: The direction is zero.
        """
        if not 0 <= self.layer < blocks or first_steered < self.layer:
            raise ModelError(
                f"gate at layer {self.layer}: must be one of the {blocks} blocks, and no later "
                f"than the first steered one, {first_steered}"
            )
        require_fit(f"gate at layer {self.layer}", self.direction, hidden_size(model))
        if not math.isfinite(self.threshold):
            raise NonFiniteError(
                f"gate at layer {self.layer}: the threshold must be a finite number, "
                f"got {self.threshold}"
            )


class Where:
    """Follows the chunks that a model reads and selects what is steered in them."""

    def __init__(
        self, positions: Positions, amounts: float | Tensor, gate: Gate | None = None
    ) -> None:
        self._positions = positions
        self._amounts = amounts
        self._gate = gate
        self._is_everywhere = positions.everywhere and gate is None
        self._arguments: tuple[str, ...] = ()
        self._start = 0
        self._known: tuple[Any, Selected] = (None, False)
        self._shape: torch.Size | None = None
        self._prompt_sum = torch.zeros(1, 1)
        if gate is not None and not positions.response_only:
            raise DataError(
                f"a gate is decided by the whole prompt, so positions must be response, "
                f"not {positions}"
            )

    def watch(
        self, model: nn.Module, blocks: nn.ModuleList, hooks: ExitStack, first_steered: int
    ) -> None:
        """Register what is needed to follow ``model``; ``hooks`` removes it again.

        Raises:
            ModelError: The columns of a chunk cannot be known in this model.
        """
        if self._is_everywhere:
            return
        owner = owner_of(model, blocks)
        self._arguments = tuple(inspect.signature(owner.forward).parameters)
        _require_columns(model, self._arguments)
        hooks.callback(owner.register_forward_pre_hook(self._begin, with_kwargs=True).remove)
        hooks.enter_context(tracking_generate(model))
        if self._gate is not None:
            self._gate.require_fit(model, len(blocks), first_steered)
            listening = blocks[self._gate.layer].register_forward_hook(self._sum_prompts)
            hooks.callback(listening.remove)

    def selected(self, hidden: Float[Tensor, "rows seq width"]) -> Selected:
        """Return what of this chunk is steered.

        Raises:
            DataError: The prompts are needed but unknown, or their rows do not match the batch.
        """
        if self._is_everywhere:
            return True
        if hidden.shape != self._shape:
            self._locate_chunk(hidden)
        chosen = self._known[1]
        if self._gate is None or chosen is False:
            return chosen
        direction = self._gate.direction.to(self._prompt_sum.device).float()
        cosine = torch.cosine_similarity(self._prompt_sum, direction[None], dim=-1)
        is_above = cosine > self._gate.threshold
        is_open = is_above if self._gate.side == "above" else ~is_above
        is_open = is_open[:, None, None].to(hidden.device)
        return is_open if chosen is True else is_open & chosen

    def strength(self, hidden: Float[Tensor, "rows seq width"]) -> float | Tensor:
        """Return the coefficient: a number, or float32 ``(rows, 1, 1)``."""
        if isinstance(self._amounts, float):
            return self._amounts
        rows = _expanded(self._amounts, len(hidden), "strengths")
        return rows.to(hidden.device, torch.float32)[:, None, None]

    def _begin(self, _owner: nn.Module, args: tuple[Any, ...], given: dict[str, Any]) -> None:
        """Find the column at which the next chunk starts."""
        named = dict(zip(self._arguments, args, strict=False)) | given
        cache = named.get("past_key_values")
        self._start = 0 if cache is None else int(cache.get_seq_length())
        self._shape = None

    def _locate_chunk(self, hidden: Tensor) -> None:
        """Find what is steered in the chunk, once for all blocks that it passes."""
        rows, length = hidden.shape[:2]
        prompts = _require_prompts(self._positions)
        # After every prompt nothing changes any more, so one answer serves each token.
        key = (prompts, rows, length, min(self._start, max(prompts.ends)))
        if self._known[0] != key:
            with torch.inference_mode(mode=False):  # it may serve a pass with gradients later
                columns = torch.arange(self._start, self._start + length)
                mask = _expanded(self._positions.mask(prompts, columns), rows, "prompts")
                some = mask[..., None].to(hidden.device) if mask.any() else False
            self._known = (key, True if mask.all() else some)
        self._shape = hidden.shape

    def _sum_prompts(self, _block: nn.Module, _args: tuple[Any, ...], output: Any) -> None:
        """Add a chunk to the sum over each row's prompt, which points where the mean does.

        float32; a chunk that starts at column 0 begins a new sum.
        """
        hidden = output[0] if isinstance(output, tuple) else output
        prompts = _require_prompts(self._positions)
        columns = torch.arange(self._start, self._start + hidden.shape[1])
        begins, ends = torch.tensor(prompts.begins)[:, None], torch.tensor(prompts.ends)[:, None]
        inside = _expanded((columns >= begins) & (columns < ends), len(hidden), "prompts")
        if self._start and not inside.any():
            return
        # Padding may be NaN, so it is left out rather than multiplied by 0.
        part = torch.where(inside[..., None].to(hidden.device), hidden.float(), 0.0).sum(1)
        self._prompt_sum = self._prompt_sum + part if self._start else part


def _require_prompts(positions: Positions) -> Prompts:
    prompts = CURRENT.get()
    if prompts is None:
        raise DataError(
            f"positions {positions}: where the prompt ends is unknown in a plain forward pass; "
            "call generate(), or run the model inside subject.prompts.reading(...)"
        )
    return prompts


def _require_columns(model: Any, arguments: Sequence[str]) -> None:
    """Refuse a model in which it is unknown at which column a chunk starts."""
    why = ""
    if getattr(model.config, "is_encoder_decoder", False):
        why = "its prompt goes to an encoder"
    elif "past_key_values" not in arguments:
        why = "its forward pass takes no past_key_values, so a step of decoding looks like a prompt"
    elif any(config.is_prompt_learning for config in getattr(model, "peft_config", {}).values()):
        why = "its adapter puts virtual tokens in front of the prompt"
    if why:
        raise ModelError(f"{type(model).__name__} can be steered at positions all only: {why}")


def _expanded(values: Tensor, rows: int, what: str) -> Tensor:
    """Return a value for each row of the batch; beams and samples share that of their row."""
    times, rest = divmod(rows, len(values))
    if rest or not times:
        raise DataError(
            f"{len(values)} {what} were given for a batch of {rows} rows; give one for each row"
        )
    return values if times == 1 else values.repeat_interleave(times, dim=0)
