"""Which tokens are steered: a clause, a gate, and what they select in the chunk that is read.

A clause is read against the prompt, so it means the same tokens in a prefill, in a chunk, in a step
of decoding, in any beam and in a teacher-forced pass.
"""

import inspect
import math
import re
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from personality_vector.errors import DataError, ModelError, NonFiniteError, RecipeError
from personality_vector.steering.fit import require_fit
from personality_vector.subject.models import hidden_size, owner_of
from personality_vector.subject.prompts import (
    CURRENT,
    Prompts,
    strengths_of_rows,
    tracking_generate,
)

# Columns ``begin .. end - 1``; the end may be infinite.
Span = tuple[int, int | float]

# A mask; ``True`` selects the whole chunk and ``False`` none of it.
Selected = Bool[Tensor, "rows _ 1"] | bool


@dataclass(frozen=True, slots=True)
class Part:
    """One part of a clause.

    Attributes:
        kind: ``all``; ``prompt``; ``response``, every token after the prompt; ``last``, the last
            ``number`` tokens of the prompt; or ``after``, everything after the last token
            ``number`` of the prompt, including the response.
        number: How many tokens ``last`` means, or the id of the token that ``after`` names.
    """

    kind: str
    number: int = 0

    def span(self, prompts: Prompts, row: int) -> Span:
        """Return the columns that this means in one row.

        Raises:
            DataError: The token is not in the prompt, or the ids are not known.
        """
        begin, end = prompts.begins[row], prompts.ends[row]
        spans: dict[str, Span] = {
            "all": (begin, torch.inf),
            "prompt": (begin, end),
            "response": (end, torch.inf),
            "last": (max(begin, end - self.number), end),
        }
        return spans.get(self.kind) or (self._last_place(prompts, row) + 1, torch.inf)

    def __str__(self) -> str:
        return f"{self.kind} {self.number}" if self.kind in ("last", "after") else self.kind

    def _last_place(self, prompts: Prompts, row: int) -> int:
        if prompts.input_ids is None:
            raise DataError(f"positions after token {self.number}: the prompt has no token ids")
        ids = prompts.input_ids[row, : prompts.ends[row]]
        places = (ids == self.number).nonzero().flatten().tolist()
        if not places or places[-1] < prompts.begins[row]:
            raise DataError(
                f"positions after token {self.number}: the prompt of row {row} lacks it, "
                "so nothing would be steered"
            )
        return int(places[-1])


@dataclass(frozen=True, slots=True)
class Positions:
    """A clause such as ``all``, ``response``, ``last 1 + response`` or ``after 13``.

    >>> str(Positions.parse("last 1+response"))
    'last 1 + response'
    """

    parts: tuple[Part, ...]

    @classmethod
    def parse(
        cls, clause: "str | Positions", tokenizer: Callable[[], Any] = lambda: None
    ) -> "Positions":
        """Read a clause.

        Args:
            clause: Parts joined by ``+``; a token is an id, or text if there is a tokenizer.
            tokenizer: Fetches what turns the text of a token into its id; called only if the
                clause has a text in it.

        Raises:
            RecipeError: The clause cannot be read, or a text is not exactly one token.
        """
        # A token may hold a plus sign itself: what follows `after` goes to the end.
        head, after, tail = str(clause).partition("after ")
        words = [word for word in head.split("+") if word.strip() or not after]
        words += [after + tail] if after else []
        return cls(tuple(_part(word.strip(), tokenizer) for word in words))

    @property
    def kinds(self) -> set[str]:
        """The kinds of the parts; with ``all`` among them no prompt has to be known."""
        return {part.kind for part in self.parts}

    def spans(self, prompts: Prompts, row: int) -> tuple[Span, ...]:
        """Return the columns that are meant in one row.

        Raises:
            DataError: The prompt does not have what the clause asks for.
        """
        spans = tuple(part.span(prompts, row) for part in self.parts)
        if all(begin >= end for begin, end in spans):
            raise DataError(
                f"positions {self}: row {row} has an empty prompt, so none of it is steered"
            )
        return spans

    def mask(self, prompts: Prompts, columns: Int[Tensor, " seq"]) -> Bool[Tensor, "rows seq"]:
        """Return which of some columns are meant, in each row; raises like :meth:`spans`."""
        rows = (self.spans(prompts, row) for row in range(len(prompts.ends)))
        inside = [torch.stack([(columns >= a) & (columns < b) for a, b in row]) for row in rows]
        return torch.stack([spans.any(0) for spans in inside])

    def __str__(self) -> str:
        return " + ".join(map(str, self.parts))


def _part(text: str, tokenizer: Callable[[], Any]) -> Part:
    found = re.fullmatch(r"(all|prompt|response)|last\s+(\d*[1-9]\d*)|after\s+(\S.*)", text)
    if found is None:
        raise RecipeError(
            f"positions {text!r} cannot be read; a clause is all, prompt, response, last N or "
            "after TOKEN, joined by +"
        )
    kind, last, token = found.groups()
    if token:
        return Part("after", _token(token, tokenizer))
    return Part("last", int(last)) if last else Part(kind)


def _token(text: str, tokenizer: Callable[[], Any]) -> int:
    if text.isdigit():
        return int(text)
    found = tokenizer()
    if found is None:
        raise RecipeError(
            f"positions after {text!r}: without a tokenizer, give the token's id; "
            "in a clause of several parts, after TOKEN comes last"
        )
    ids = found(text, add_special_tokens=False)["input_ids"]
    if len(ids) != 1:
        raise RecipeError(
            f"positions after {text!r}: this tokenizer makes {len(ids)} tokens of it; "
            "give one token, such as the last mark before the reply"
        )
    return int(ids[0])


ALL = Positions((Part("all"),))
"""Every token: of the prompt and of the response."""


@dataclass(frozen=True, slots=True, eq=False)
class Gate:
    """Steers only rows whose prompt is similar, or dissimilar, to a direction.

    A row is open if the cosine between ``direction`` and the mean over its prompt of the output
    of block ``layer`` is beyond ``threshold``.

    Attributes:
        layer: 0-based decoder block; no steered block comes before it.
        direction: ``(hidden,)``, of any length but 0.
        threshold: The cosine at which the gate switches.
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
        self, positions: Positions, amounts: float | Tensor | None, gate: Gate | None = None
    ) -> None:
        self._positions = positions
        self._amounts = amounts
        self._gate = gate
        self._is_everywhere = "all" in positions.kinds and gate is None
        self._arguments: tuple[str, ...] = ()
        self._start = 0
        self._known: tuple[Any, Selected] = (None, False)
        self._shape: torch.Size | None = None
        self._prompt_sum = torch.zeros(1, 1)
        if gate is not None and positions.kinds != {"response"}:
            raise DataError(
                f"a gate depends on the whole prompt, so positions must be response, "
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
            gated = blocks[self._gate.layer]
            hooks.callback(gated.register_forward_hook(self._sum_prompts).remove)

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
        is_open = (cosine > self._gate.threshold) == (self._gate.side == "above")
        return is_open[:, None, None].to(hidden.device) & chosen

    def strength(self, hidden: Float[Tensor, "rows seq width"]) -> float | Tensor:
        """Return the coefficient: a number, or float32 ``(rows, 1, 1)``."""
        if isinstance(self._amounts, float):
            return self._amounts
        amounts = strengths_of_rows() if self._amounts is None else self._amounts
        rows = _expanded(amounts, len(hidden), "strengths")
        return rows.to(hidden.device, torch.float32)[:, None, None]

    def _begin(self, _owner: nn.Module, args: tuple[Any, ...], given: dict[str, Any]) -> None:
        """Find the column at which the next chunk starts."""
        cache = (dict(zip(self._arguments, args, strict=False)) | given).get("past_key_values")
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
        if self._start and prompts.continues is not None:
            self._prompt_sum = self._prompt_sum[prompts.continues.to(self._prompt_sum.device)]
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
    adapters = getattr(model, "peft_config", {}).values()
    obstacles = {
        "its prompt goes to an encoder": getattr(model.config, "is_encoder_decoder", False),
        "its forward pass takes no past_key_values, so a step of decoding looks like a prompt": (
            "past_key_values" not in arguments
        ),
        "its adapter puts virtual tokens in front of the prompt": any(
            adapter.is_prompt_learning for adapter in adapters
        ),
    }
    for why, applies in obstacles.items():
        if applies:
            raise ModelError(f"{type(model).__name__} can be steered at positions all only: {why}")


def _expanded(values: Tensor, rows: int, what: str) -> Tensor:
    """Return a value for each row of the batch; beams and samples share that of their row."""
    times, rest = divmod(rows, len(values))
    if rest or not times:
        raise DataError(
            f"{len(values)} {what} were given for a batch of {rows} rows; give one for each row"
        )
    return values if times == 1 else values.repeat_interleave(times, dim=0)
