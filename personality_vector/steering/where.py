"""Which rows and columns of the chunk that a model is reading right now are steered."""

import inspect
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from personality_vector.errors import BaseMismatchError, DataError, ModelError, NonFiniteError
from personality_vector.models import hidden_size
from personality_vector.reading import Prompts, announcing, current_prompts
from personality_vector.steering.positions import Positions

Selected = Bool[Tensor, "rows _ 1"] | bool
"""``True`` everywhere in the chunk, ``False`` nowhere, or a mask."""


@dataclass(frozen=True, slots=True, eq=False)
class Gate:
    """Steers only rows whose prompt is similar, or dissimilar, to a direction.

    A row is open if the cosine between ``direction`` and the mean over its prompt of the output
    of block ``layer`` is beyond ``threshold``.

    Attributes:
        layer: 0-based decoder block; steered blocks are not before it.
        direction: ``(hidden,)``, of any length but 0.
        threshold: A cosine.
        side: On which side of it a row is open.

    Source:
        Conditional activation steering, Lee et al. 2024, arXiv:2409.05907. Deviations: a plain
        cosine instead of ``cos(h, tanh(P h))``, decided for each row by its whole prompt.
    """

    layer: int
    direction: Float[Tensor, " hidden"]
    threshold: float
    side: Literal["above", "below"] = "above"

    def opens(self, similarity: Float[Tensor, " rows"]) -> Bool[Tensor, " rows"]:
        """Return which rows are open at these cosines."""
        is_above = similarity > self.threshold
        return is_above if self.side == "above" else ~is_above

    def require_fit(self, model: nn.Module, blocks: int, first_steered: int) -> None:
        """Check the gate against a model.

        Raises:
            ModelError: There is no such block, or a steered block comes before it.
            BaseMismatchError: The direction has another width.
            NonFiniteError: A number is NaN or infinite, or the direction is zero.
        """
        if not 0 <= self.layer < blocks or first_steered < self.layer:
            raise ModelError(
                f"gate at layer {self.layer}: must be one of the {blocks} blocks, and no later "
                f"than the first steered one, {first_steered}"
            )
        if self.direction.shape != (hidden_size(model),):
            raise BaseMismatchError(
                f"gate at layer {self.layer}: the direction has shape "
                f"{list(self.direction.shape)}, the residual stream is {hidden_size(model)} wide"
            )
        norm = float(self.direction.double().norm())
        if not (0 < norm < torch.inf and -torch.inf < self.threshold < torch.inf):
            raise NonFiniteError(f"gate at layer {self.layer}: needs finite numbers, not all zero")


class Where:
    """Follows the chunks that a model reads, and says what of them is steered."""

    def __init__(
        self, positions: Positions, amounts: float | Tensor, gate: Gate | None = None
    ) -> None:
        self._positions = positions
        self._amounts = amounts
        self._gate = gate
        self._is_trivial = positions.everywhere and gate is None and isinstance(amounts, float)
        self._start = 0
        self._known: tuple[Any, Selected] = (None, False)
        self._shape: torch.Size | None = None
        self._similarity = _PromptMean()
        if gate is not None and not positions.response_only:
            raise DataError(
                f"a gate is decided by the whole prompt, so positions must be response, "
                f"not {positions}"
            )

    def watch(
        self, model: nn.Module, blocks: nn.ModuleList, hooks: ExitStack, first_steered: int
    ) -> None:
        """Register what is needed to follow ``model``; ``hooks`` takes it away again."""
        if self._is_trivial:
            return
        owner = next(m for m in model.modules() if any(c is blocks for c in m.children()))
        note = noting_start(owner, self._begin)
        hooks.callback(owner.register_forward_pre_hook(note, with_kwargs=True).remove)
        hooks.enter_context(announcing(model))
        if self._gate is not None:
            self._gate.require_fit(model, len(blocks), first_steered)
            listening = blocks[self._gate.layer].register_forward_hook(self._listen)
            hooks.callback(listening.remove)

    def selected(self, hidden: Float[Tensor, "rows seq width"]) -> Selected:
        """Return what of this chunk is steered.

        Raises:
            DataError: The prompts are needed and nobody told them, or their rows do not fit.
        """
        if self._is_trivial:
            return True
        if hidden.shape != self._shape:
            self._in_chunk(hidden)
        chosen = self._known[1]
        if self._gate is None or chosen is False:
            return chosen
        return self._open(hidden) if chosen is True else self._open(hidden) & chosen

    def strength(self, hidden: Float[Tensor, "rows seq width"]) -> float | Tensor:
        """Return the coefficient: a number, or ``(rows, 1, 1)`` in the dtype of the chunk."""
        if isinstance(self._amounts, float):
            return self._amounts
        rows = _expanded(self._amounts, len(hidden), "strengths")
        return rows.to(hidden.device, hidden.dtype)[:, None, None]

    def _begin(self, start: int) -> None:
        self._start = start
        self._shape = None

    def _in_chunk(self, hidden: Tensor) -> None:
        """Find out what of the chunk is steered: once for all blocks that it passes."""
        rows, length = hidden.shape[:2]
        prompts = None if self._positions.everywhere else _require_prompts(self._positions)
        # Behind every prompt nothing changes any more, so one answer serves each token.
        settled = max(prompts.ends) if prompts is not None else 0
        key = (prompts, rows, length, min(self._start, settled))
        if self._known[0] != key:
            chosen = self._compute(prompts, rows, length)
            self._known = (key, chosen if isinstance(chosen, bool) else chosen.to(hidden.device))
        self._shape = hidden.shape

    def _compute(self, prompts: Prompts | None, rows: int, length: int) -> Selected:
        mask = torch.ones(rows, length, dtype=torch.bool)
        if prompts is not None:
            mask = self._columns(prompts, length)
            mask = _expanded(mask, rows, "prompts")
        if isinstance(self._amounts, Tensor):
            mask = mask & _expanded(self._amounts != 0, rows, "strengths")[:, None]
        if mask.all():
            return True
        return mask[..., None] if mask.any() else False

    def _columns(self, prompts: Prompts, length: int) -> Bool[Tensor, "rows seq"]:
        columns = torch.arange(self._start, self._start + length)
        rows = []
        for row in range(len(prompts.ends)):
            spans = self._positions.spans(prompts, row)
            inside = [(columns >= begin) & (columns < end) for begin, end in spans]
            rows.append(torch.stack(inside).any(0))
        return torch.stack(rows)

    def _listen(self, _block: nn.Module, _args: tuple[Any, ...], output: Any) -> None:
        hidden = output[0] if isinstance(output, tuple) else output
        prompts = _require_prompts(self._positions)
        self._similarity.add(prompts, self._start, hidden)

    def _open(self, hidden: Tensor) -> Bool[Tensor, "rows 1 1"]:
        gate = self._gate
        if gate is None:
            raise AssertionError("there is no gate to be open")
        mean = self._similarity.mean()
        direction = gate.direction.to(mean.device).float()
        cosine = torch.cosine_similarity(mean, direction[None], dim=-1)
        return gate.opens(cosine).to(hidden.device)[:, None, None]


class _PromptMean:
    """The mean over each row's prompt of what a block puts out, chunk by chunk; float32."""

    def __init__(self) -> None:
        self._sum, self._count = torch.zeros(1, 1), torch.ones(1, 1)

    def add(self, prompts: Prompts, start: int, hidden: Tensor) -> None:
        """Add a chunk; one that starts at 0 starts anew."""
        columns = torch.arange(start, start + hidden.shape[1])
        begins, ends = torch.tensor(prompts.begins)[:, None], torch.tensor(prompts.ends)[:, None]
        inside = _expanded((columns >= begins) & (columns < ends), len(hidden), "prompts")
        if start and not inside.any():
            return
        inside = inside.to(hidden.device)
        # Padding may be NaN, so it is left out rather than multiplied by 0.
        part = torch.where(inside[..., None], hidden.float(), 0.0).sum(1)
        count = inside.sum(1, keepdim=True)
        if start == 0:
            self._sum, self._count = part, count
        else:
            self._sum, self._count = self._sum + part, self._count + count

    def mean(self) -> Float[Tensor, "rows hidden"]:
        return self._sum / self._count


def _require_prompts(positions: Positions) -> Prompts:
    prompts = current_prompts()
    if prompts is None:
        raise DataError(
            f"positions {positions}: where the prompt ends is unknown in a plain forward pass; "
            "call generate(), or run the model inside personality_vector.reading.reading(...)"
        )
    return prompts


def _expanded(values: Tensor, rows: int, what: str) -> Tensor:
    """Return one value for each row of the batch: beams and samples share that of their row."""
    times, rest = divmod(rows, len(values))
    if rest or not times:
        raise DataError(f"{len(values)} {what} were given for a batch of {rows} rows")
    return values if times == 1 else values.repeat_interleave(times, dim=0)


def noting_start(
    owner: nn.Module, note: Callable[[int], None]
) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]:
    """Return a pre-hook that says at which column the coming chunk starts."""
    names: Sequence[str] = list(inspect.signature(owner.forward).parameters)

    def before(_owner: nn.Module, args: tuple[Any, ...], given: dict[str, Any]) -> None:
        cache = dict(zip(names, args, strict=False)).get("past_key_values")
        cache = given.get("past_key_values", cache)
        note(int(cache.get_seq_length()) if cache is not None else 0)

    return before
