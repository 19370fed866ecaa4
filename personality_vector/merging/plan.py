"""The plan of a merge: what would be done, checked before any weight is written."""

import math
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, cast, get_args

import torch

from personality_vector.checkpoint import Checkpoint, TensorPlan, parse_size
from personality_vector.checkpoint.names import canonical
from personality_vector.delta import Delta, open_delta
from personality_vector.delta.sources import Restricted
from personality_vector.delta.transfer import Transfer, transferred
from personality_vector.errors import CheckpointError, ModelError, NonFiniteError, RecipeError
from personality_vector.merging.depth import Alpha, alpha_by_tensor, chosen, selected
from personality_vector.merging.loop import LOOPS, Loop
from personality_vector.merging.methods import METHODS, Combine, OptionValue, find_method
from personality_vector.merging.recipe import MergeRecipe
from personality_vector.merging.rounding import Rounding, require_stochastic
from personality_vector.merging.terms import (
    BATCH,
    CHUNK,
    LONGEST_ROW,
    Acting,
    Term,
    acting_on,
    columns_of,
    runs,
)
from personality_vector.numeric.parallel import cores
from personality_vector.subject.models import DTYPES

_PROCESS_BYTES = 300_000_000
"""Of Python, torch and the compiled loops; the rest of a merge's memory are its chunks."""


@dataclass(frozen=True, slots=True)
class Output:
    """How merged tensors are written: dtype (``same`` as the base), rounding, shard size."""

    dtype: str = "same"
    rounding: Rounding = "nearest"
    shard_size: str = "5GB"

    def __post_init__(self) -> None:
        if self.dtype not in ("same", *DTYPES):
            known = ", ".join(("same", *DTYPES))
            raise RecipeError(f"output.dtype must be one of {known}, got {self.dtype!r}")
        if self.rounding not in get_args(Rounding):
            raise RecipeError(f"output.rounding must be nearest or stochastic: {self.rounding!r}")
        parse_size(self.shard_size)


@dataclass(frozen=True, slots=True)
class Summand:
    """A term as it is asked for.

    Attributes:
        where: A delta, or where a saved delta, fine-tuned checkpoint or LoRA adapter lies.
        alpha: A number, numbers over depth, or numbers by pattern.
        of: The base that the delta was taken from, where it is not the base of the merge.
        label: In messages and reports; by default that of the delta.
    """

    where: Delta | str | Path
    alpha: Alpha
    of: str | Path | Checkpoint | None = None
    label: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "alpha", _finite_alpha(self.alpha, self.where))


@dataclass(frozen=True)
class MergePlan:
    """A merge that has been checked and not yet begun."""

    base: Checkpoint
    terms: tuple[Term, ...]
    method: str
    source: str
    combine: Combine
    options: Mapping[str, OptionValue]
    seed: int = 0
    output: Output = field(default_factory=Output)
    device: str = "cpu"
    loop: Loop | None = None
    """The compiled form of ``combine``, if it has one and the device is the CPU."""
    notes: tuple[str, ...] = ()
    recipe: Mapping[str, Any] = field(default_factory=dict)
    """As it was read, for the manifest; empty for a merge by Python."""

    @cached_property
    def active(self) -> list[Term]:
        """The terms that act, in an order that does not depend on how they were given."""
        acting = [term for term in self.terms if term.alpha != 0.0]
        return sorted(acting, key=lambda term: (term.delta.identity, str(term.alpha)))

    @property
    def inputs(self) -> list[Path]:
        """Every directory that is read."""
        paths = [(*term.delta.source.inputs, *term.inputs) for term in self.terms]
        return [self.base.path, *(path for of_term in paths for path in of_term)]

    def require_unchanged(self) -> None:
        """Raise :class:`CheckpointError` if an input changed since it was opened."""
        self.base.require_unchanged()
        for term in self.terms:
            term.delta.source.require_unchanged()

    @cached_property
    def tensors(self) -> list[TensorPlan]:
        """What will be written, in the order of the base's files."""
        found = self.base.in_file_order
        return [TensorPlan(e.name, self._dtype(e.dtype), e.shape) for e in found]

    @property
    def size(self) -> int:
        """Bytes that will be written."""
        return sum(tensor.size for tensor in self.tensors)

    @property
    def peak_memory(self) -> int:
        """Estimate of the bytes of memory in use, beyond the page cache."""
        rows = [runs(tensor.shape, CHUNK)[:1] for tensor in self.tensors]
        chunk = max((part.stop for parts in rows for part in parts), default=0)
        # A chunk of each term is held up to three times, the base and the sums a few times more.
        return _PROCESS_BYTES + cores() * chunk * 8 * (3 * len(self.terms) + 8)

    def acting_on(self, name: str) -> tuple[Acting, ...]:
        """Return the active terms that change a tensor."""
        return acting_on(self.active, self.seed, name)

    def _dtype(self, stored: torch.dtype) -> torch.dtype:
        fixed = self.output.dtype == "same" or not stored.is_floating_point
        return stored if fixed else DTYPES[self.output.dtype]

    def describe(self) -> dict[str, Any]:
        """Return the plan as JSON-like data: every option with its value, every term."""
        return {
            "base": described_base(self.base),
            "method": self.method,
            "source": self.source,
            "options": dict(self.options),
            "seed": self.seed,
            "terms": [_described(term, self) for term in self.terms],
            "output": {
                "dtype": self.output.dtype,
                "rounding": self.output.rounding,
                "shard_size": self.output.shard_size,
            },
            "bytes": self.size,
            **({"notes": list(self.notes)} if self.notes else {}),
            **({"recipe": dict(self.recipe)} if self.recipe else {}),
        }


def described_base(base: Checkpoint) -> dict[str, str]:
    """Return which model a merge begins with, as JSON-like data."""
    return {
        "path": str(base.path),
        "reference": base.reference,
        "fingerprint": base.fingerprint.digest,
    }


def _described(term: Term, plan: MergePlan) -> dict[str, Any]:
    alpha = dict(term.alpha) if isinstance(term.alpha, Mapping) else term.alpha
    row = {
        "label": term.delta.label,
        "alpha": list(alpha) if isinstance(alpha, tuple) else alpha,
        "identity": term.delta.identity,
        "pole": str(term.delta.pole) if term.delta.pole else None,
        "tensors": sum(term.alpha_at(name) != 0.0 for name in term.delta.names),
        "of_tensors": len(plan.base.entries),
    }
    return row | ({"transfer": term.transfer.describe()} if term.transfer else {})


def foresight(plan: MergePlan, out: Path) -> dict[str, Any]:
    """Return what a dry run adds to the plan: norms, disk and memory; reads every term once."""
    parent = next(path for path in out.absolute().parents if path.exists())
    return {
        "norms": [float(f"{term.delta.norm():.6g}") for term in plan.terms],
        "free_disk": shutil.disk_usage(parent).free,
        "peak_memory": plan.peak_memory,
        "threads": cores(),
        "device": plan.device,
        "out": str(out),
    }


def plan_merge(  # noqa: PLR0913  (the whole of a merge recipe, by name)
    base: str | Path | Checkpoint,
    terms: Sequence[Summand],
    *,
    method: str = "task_arithmetic",
    options: Mapping[str, OptionValue] | None = None,
    seed: int = 0,
    output: Output | None = None,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    device: str = "auto",
) -> MergePlan:
    """Check everything that can be checked before weights are written; return what would be done.

    Raises:
        PersonalityVectorError: The base, a term, an option or the output is refused.
    """
    combine, values = find_method(method).bind(options or {})
    if not terms:
        raise RecipeError("a merge needs at least one term")
    start, output = Checkpoint.open(base), output or Output()
    _require_whole_rows(method, start)
    bases = [None if one.of is None else Checkpoint.open(one.of) for one in terms]
    choice = Choice.among([start, *filter(None, bases)], include, exclude)
    opened = tuple(
        _open(summand, of, position, start, choice)
        for position, (summand, of) in enumerate(zip(terms, bases, strict=True))
    )
    if output.dtype != "same":
        _ = start.config  # which will be rewritten, so it has to be there
    if output.rounding == "stochastic":
        dtypes = {e.dtype for e in start.entries.values() if e.dtype.is_floating_point}
        for dtype in {DTYPES[output.dtype]} if output.dtype != "same" else dtypes:
            require_stochastic(dtype)
    return MergePlan(
        start,
        opened,
        method,
        METHODS[method].source,
        combine,
        values,
        seed,
        output,
        where := resolve_device(device),
        LOOPS[method](values) if where == "cpu" and method in LOOPS else None,
    )


def plan_recipe(recipe: MergeRecipe) -> MergePlan:
    """Return the checked plan of a recipe."""
    plan = plan_merge(
        recipe.base,
        [Summand(term.source, term.alpha, term.of, term.label) for term in recipe.terms],
        method=recipe.method,
        options=recipe.options,
        seed=recipe.seed,
        output=Output(recipe.output.dtype, recipe.output.rounding, recipe.output.shard_size),
        include=recipe.include,
        exclude=recipe.exclude,
        device=recipe.device,
    )
    return replace(plan, recipe=recipe.model_dump(mode="json", exclude_defaults=True))


def resolve_device(device: str) -> str:
    """Return the device to compute on: ``auto`` is CUDA where there is one.

    Raises:
        ModelError: It is not there, or has no float64.
    """
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device == "mps":
        raise ModelError("device mps has no float64, which a merge computes in; use cpu")
    if not re.fullmatch(r"cpu|cuda(:\d+)?", device):
        raise ModelError(f"device {device!r}: a merge runs on cpu, cuda or cuda:N")
    number = int(device.partition(":")[2] or 0)
    if device != "cpu" and number >= torch.cuda.device_count():
        raise ModelError(
            f"device {device}: torch sees {torch.cuda.device_count()} CUDA devices; use cpu or auto"
        )
    return device


def _require_whole_rows(method: str, base: Checkpoint) -> None:
    if not find_method(method).ranks_rows:
        return
    for entry in base.entries.values():
        if columns_of(entry.shape) > LONGEST_ROW:
            raise RecipeError(
                f"{method} ranks the entries of a row, and those of {entry.name} have "
                f"{columns_of(entry.shape)}, more than {LONGEST_ROW}; take another method"
            )


def _open(
    summand: Summand, of: Checkpoint | None, position: int, base: Checkpoint, choice: "Choice"
) -> Term:
    """Return a term whose delta was taken from ``of``, or else from the base of the merge."""
    transfer: Transfer | None = None
    inputs: tuple[Path, ...] = ()
    delta = open_delta(summand.where, of or base, label=summand.label)
    if of is not None:
        inputs = (of.path,)
        delta, transfer = transferred(delta, of, base, choice.left_out.__contains__)
    kept = tuple(name for name in delta.names if name in choice.kept)
    if not kept:
        raise RecipeError(f"{delta.label}: include and exclude leave none of its tensors")
    if len(kept) < len(delta.names):
        delta = replace(delta, source=Restricted(delta.source, kept))
    require_nonzero(delta)
    if isinstance(summand.where, str | Path):
        inputs = (*inputs, Path(summand.where).expanduser())
    elif summand.where.directory is not None:
        inputs = (*inputs, summand.where.directory)
    at = alpha_by_tensor(summand.alpha, kept, base.names)
    return Term(delta, summand.alpha, at, position, transfer, inputs)


@dataclass(frozen=True)
class Choice:
    """Which tensors are to be changed.

    Attributes:
        names: Of all tensors that a word or pattern may mean: those of the base, and of the other
            bases that terms were taken from, as on disk and canonical.
        include: Words or patterns; all tensors if there are none.
        exclude: Words or patterns.
    """

    names: Sequence[str]
    include: Sequence[str]
    exclude: Sequence[str]

    @classmethod
    def among(
        cls, models: Sequence[Checkpoint], include: Sequence[str], exclude: Sequence[str]
    ) -> "Choice":
        """Return the choice among the tensors of some models."""
        names = {name for model in models for name in model.names}
        return cls(sorted(names | set(map(canonical, names))), include, exclude)

    @cached_property
    def kept(self) -> set[str]:
        """Names that terms may change.

        Raises:
            RecipeError: A pattern matches no tensor, or nothing is left.
        """
        return selected(self.names, self.include, self.exclude)

    @cached_property
    def left_out(self) -> set[str]:
        """Names that are excluded."""
        return set[str]().union(*(chosen(self.names, pattern) for pattern in self.exclude))


def require_nonzero(delta: Delta) -> None:
    """Refuse a delta that changes nothing; reads until the first entry that is not zero.

    Raises:
        CheckpointError: Every entry is zero.
    """
    for name in delta.names:
        for part in runs(delta.shape(name), BATCH):
            if bool(delta.source.part(name, part).any()):
                return
    raise CheckpointError(
        f"{delta.label}: is zero in every tensor: the fine-tuned model and the base are the same"
    )


def _finite_alpha(alpha: Any, where: Any) -> Alpha:
    """Return alpha as floats.

    Raises:
        NonFiniteError: A number is NaN or infinite.
        RecipeError: It is no number, or there is none.
    """
    if isinstance(alpha, Mapping | list | tuple) and not alpha:
        raise RecipeError(f"{where}: alpha is empty; give at least one number")
    if isinstance(alpha, Mapping):
        return {str(key): cast("float", _finite_alpha(each, where)) for key, each in alpha.items()}
    if isinstance(alpha, list | tuple):
        return tuple(cast("float", _finite_alpha(each, where)) for each in alpha)
    if isinstance(alpha, str | bool) or not hasattr(alpha, "__float__"):
        raise RecipeError(f"{where}: alpha must be a number, got {alpha!r}")
    value = float(alpha)
    if not math.isfinite(value):
        raise NonFiniteError(f"{where}: alpha must be a finite number, got {value}")
    return value
