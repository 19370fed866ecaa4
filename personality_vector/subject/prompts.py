"""Where the prompts of a batch begin and end, which a running model cannot know by itself.

A forward pass sees tokens, not roles. :func:`reading` states which columns are the prompt;
:func:`tracking_generate` makes ``generate`` state it.
"""

import inspect
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import wraps
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from personality_vector.errors import DataError


@dataclass(frozen=True, slots=True, eq=False)
class Prompts:
    """The prompt of each row of a batch, in columns; a later column is the response.

    Attributes:
        begins: First column of each row that is not padding.
        ends: First column of each row after the prompt.
        input_ids: ``(rows, columns)``, where they are known; columns beyond may be missing.
        strengths: Of the intervention in each row, where the rows of a batch differ in it.
        continues: The row of the pass before that each row continues, where these are others.

    Raises:
        DataError: A prompt ends before it begins, or the rows do not agree.
    """

    begins: tuple[int, ...]
    ends: tuple[int, ...]
    input_ids: Int[Tensor, "rows columns"] | None = None
    strengths: Float[Tensor, " rows"] | None = None
    continues: Int[Tensor, " rows"] | None = None

    def __post_init__(self) -> None:
        rows = {len(self.begins), len(self.ends)}
        rows |= {len(one) for one in (self.input_ids, self.strengths) if one is not None}
        if len(rows) > 1 or rows == {0}:
            raise DataError(f"prompts of {sorted(rows)} rows: every row needs a begin and an end")
        for row, (begin, end) in enumerate(zip(self.begins, self.ends, strict=True)):
            if not 0 <= begin <= end:
                raise DataError(f"row {row}: a prompt cannot reach from column {begin} to {end}")

    @classmethod
    def of(
        cls,
        input_ids: Int[Tensor, "rows columns"],
        attention_mask: Int[Tensor, "rows columns"] | None = None,
        ends: Sequence[int] | None = None,
        strengths: Float[Tensor, " rows"] | None = None,
    ) -> "Prompts":
        """Return the prompts of a batch.

        Args:
            input_ids: Tokens, padded on either side.
            attention_mask: 1 on tokens, 0 on padding; without it there is none.
            ends: First column of each response; by default all columns are prompt.
            strengths: Of the intervention in each row, if they differ.
        """
        rows, columns = input_ids.shape
        found = tuple(ends) if ends is not None else (columns,) * rows
        return cls(_begins(rows, attention_mask), found, input_ids, strengths)


CURRENT: ContextVar[Prompts | None] = ContextVar("prompts", default=None)
"""The prompts of the forward passes that run now; set by :func:`reading`."""


@contextmanager
def reading(prompts: Prompts) -> Generator[None]:
    """State the prompts of every forward pass inside the ``with`` block.

    Passes that continue a cache count from its end, so one block serves a whole generation.
    """
    token = CURRENT.set(prompts)
    try:
        yield
    finally:
        CURRENT.reset(token)


def strengths_of_rows() -> Float[Tensor, " rows"]:
    """Return the strength of each row of the forward pass that runs now.

    Raises:
        DataError: They are not stated: something other than a :class:`Subject` runs the model.
    """
    prompts = CURRENT.get()
    if prompts is None or prompts.strengths is None:
        raise DataError(
            "the rows of this batch have strengths of their own, which only a Subject states; "
            "do not run its model directly"
        )
    return prompts.strengths


@contextmanager
def tracking_generate(model: Any) -> Generator[None]:
    """Let ``model.generate`` state its prompts, unless the caller did."""
    if not hasattr(model, "generate"):
        yield
        return
    generate, earlier = model.generate, model.__dict__.get("generate")

    @wraps(generate)
    def announced(*args: Any, **given: Any) -> Any:
        arguments = {**inspect.signature(generate).bind(*args, **given).arguments, **given}
        _require_no_guidance(model, arguments)
        if CURRENT.get() is not None:
            return generate(*args, **given)
        with reading(_prompts_of(arguments)):
            return generate(*args, **given)

    model.generate = announced
    try:
        yield
    finally:
        model.__dict__.pop("generate", None)
        if earlier is not None:
            model.generate = earlier


def _require_no_guidance(model: Any, given: Mapping[str, Any]) -> None:
    """Refuse guidance, whose second pass reads columns other than those of the prompt."""
    name = "guidance_scale"
    configs = (given.get("generation_config"), model.generation_config)
    found = [given[name]] if name in given else [getattr(each, name, None) for each in configs]
    scale = next((value for value in found if value is not None), None)
    if scale not in (None, 1):
        raise DataError(
            f"guidance_scale {scale} reads every text a second time without its prompt, where "
            "positions have no meaning; steer all positions, or leave guidance out"
        )


def _prompts_of(given: Mapping[str, Any]) -> Prompts:
    ids = next((given[name] for name in ("inputs", "input_ids") if _is_ids(given.get(name))), None)
    mask = given.get("attention_mask")
    if ids is not None:
        return Prompts.of(ids, mask)
    embeddings = given.get("inputs_embeds")
    if not isinstance(embeddings, Tensor):
        raise DataError("generate() got neither input_ids nor inputs_embeds: its prompt is unknown")
    rows, columns = embeddings.shape[:2]
    return Prompts(_begins(rows, mask), (columns,) * rows)


def _is_ids(value: Any) -> bool:
    return (
        isinstance(value, Tensor) and value.ndim == 2 and value.dtype in (torch.int32, torch.int64)
    )


def _begins(rows: int, mask: Tensor | None) -> tuple[int, ...]:
    return (0,) * rows if mask is None else tuple(mask.ne(0).int().argmax(dim=1).tolist())
