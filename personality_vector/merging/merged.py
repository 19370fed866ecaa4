"""A merge as a delta: lazy, and added to live weights or written to a checkpoint like any other."""

import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float64
from torch import Tensor

from personality_vector.checkpoint import Checkpoint
from personality_vector.delta import Delta, TensorSource, digest
from personality_vector.delta.vocabulary import Embeddings
from personality_vector.errors import RecipeError, blame
from personality_vector.merging.formula import Combine, Formula, OptionValue
from personality_vector.merging.loop import changed, is_one_delta
from personality_vector.merging.methods import find_method
from personality_vector.merging.summands import Asked, open_terms
from personality_vector.merging.terms import LONGEST_ROW, Slice, Term, columns_of, runs_over
from personality_vector.numeric.random import key_for


def merged(  # noqa: PLR0913  (the whole of a merge recipe, by name)
    base: str | Path | Checkpoint,
    terms: Sequence[Asked],
    *,
    method: str = "task_arithmetic",
    options: Mapping[str, OptionValue] | None = None,
    seed: int = 0,
    label: str = "",
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    embeddings: Embeddings = "strict",
) -> Delta:
    """Return ``method(alpha_1 * delta_1, ...)`` as a delta; nothing is computed yet.

    Its entries are those of float64 arithmetic on the runs of whole rows that a merge computes at
    once, whichever part of a tensor is asked for. The order of the terms changes neither a bit nor
    the identity. A term with ``alpha = 0`` has no influence.

    Args:
        base: Directory, Hub id or ``builtin:demo``.
        terms: Pairs of a delta (or a saved delta, fine-tuned checkpoint or LoRA adapter) and
            alpha; for a delta of another base, that base is the third element.
        method: A name in :data:`personality_vector.merging.methods.METHODS`.
        options: Options of the method, such as ``{"density": 0.2}``.
        seed: Seed of random masks.
        label: By default what is done, such as ``ties(0.5 * a, -1 * b)``.
        include: Tensors to change, by word (``embeddings``, ``head``, ``norms``) or by pattern.
        exclude: Tensors to leave as they are, by word or by pattern as well.
        embeddings: What becomes of embeddings and head where vocabularies differ: ``strict``
            refuses, ``skip`` leaves them alone, ``match`` carries rows by token.

    Raises:
        PersonalityVectorError: The base, a term or an option is refused.
    """
    row = find_method(method)
    combine, start = row.bind(options or {}), Checkpoint.open(base)
    for entry in start.entries.values() if row.sparsify.ranks_rows else ():
        if columns_of(entry.shape) > LONGEST_ROW:
            raise RecipeError(
                f"{method} ranks the entries of a row, and those of {entry.name} have "
                f"{columns_of(entry.shape)}, more than {LONGEST_ROW}; take another method"
            )
    opened = open_terms(start, terms, include, exclude, embeddings)
    return Merged(opened, combine, seed).delta(start, label)


def merged_by(recipe: Any, base: Checkpoint, label: str = "") -> Delta:
    """Return the merge that a recipe with the keys of a :class:`MergeRecipe` describes."""
    return merged(
        base,
        [(term.source, term.alpha, term.of, term.label) for term in recipe.terms],
        method=recipe.method,
        options=recipe.options,
        seed=recipe.seed,
        label=label,
        include=recipe.include,
        exclude=recipe.exclude,
        embeddings=recipe.embeddings,
    )


@dataclass(frozen=True, eq=False)
class Merged(TensorSource):
    """The source of a merge: it computes the tensors of the delta that the merge is.

    Attributes:
        terms: The terms, in the order given.
        combine: The method, with its options fixed.
        seed: Seed of random masks.
    """

    terms: tuple[Term, ...]
    combine: Combine
    seed: int = 0
    _last: threading.local = field(default_factory=threading.local, repr=False)
    """The run that each thread computed last: a part may be asked for piece by piece."""

    def __reduce__(self) -> tuple[Any, ...]:
        """Leave out what threads computed last, which no other process needs."""
        return type(self), (self.terms, self.combine, self.seed)

    @classmethod
    def of(cls, delta: Delta, alpha: float = 1.0) -> "Merged":
        """Return ``alpha * delta`` as a merge; a delta that is a merge gets its lambda scaled.

        The result is what ``merge(base, [(delta, alpha)])`` writes, or that merge with
        ``lambda = alpha``.
        """
        source = delta.source
        if isinstance(source, Merged) and isinstance(source.combine, Formula):
            factor = alpha * source.combine.lambda_
            options = {**source.combine.options, "lambda": factor}
            combine = replace(source.combine, options=options, lambda_=factor)
            return cls(source.terms, combine, source.seed)
        term = Term(delta, alpha, lambda _: alpha, 0)
        return cls((term,), find_method("task_arithmetic").bind({}))

    def delta(self, base: Checkpoint, label: str = "") -> Delta:
        """Return the merge as a delta of a base; its label is by default what is done."""
        terms = [(term.delta.identity, str(term.alpha), *term.delta.names) for term in self.active]
        how = (self.combine.name, repr(sorted(self.combine.options.items())), repr(self.seed))
        identity = digest("merged", *how, *(digest(*term) for term in terms))
        weighted = (
            f"{term.alpha:g} * {term.delta.label}"
            if isinstance(term.alpha, float)
            else f"alpha_{number} * {term.delta.label}"
            for number, term in enumerate(self.terms, 1)
        )
        done = f"{self.combine.name}({', '.join(weighted)})"
        return Delta(self, base.fingerprint, identity, label or done)

    @cached_property
    def active(self) -> tuple[Term, ...]:
        """The terms whose alpha is not 0, in an order that does not depend on the one given."""
        ordered = sorted(self.terms, key=lambda term: (term.delta.identity, str(term.alpha)))
        return tuple(term for term in ordered if term.alpha != 0.0)

    @cached_property
    def _acting(self) -> dict[str, list[tuple[Term, int]]]:
        """The terms that change each tensor, and the keys of their random streams there.

        A delta that is given twice gets a second stream of random numbers.
        """
        acting: dict[str, list[tuple[Term, int]]] = {}
        seen: Counter[str] = Counter()
        for term in self.active:
            stream = f"{term.delta.identity}:{seen[term.delta.identity]}"
            seen[term.delta.identity] += 1
            for name in term.delta.names:
                if term.alpha_at(name) != 0.0:
                    key = key_for(self.seed, f"{stream}:{name}")
                    acting.setdefault(name, []).append((term, key))
        return acting

    @cached_property
    def _shapes(self) -> Mapping[str, tuple[int, ...]]:
        return {name: acting[0][0].delta.shape(name) for name, acting in self._acting.items()}

    @property
    def _origins(self) -> list[TensorSource]:
        return [term.delta.source for term in self.terms]

    @property
    def inputs(self) -> tuple[Path, ...]:
        """Every directory that is read for a term."""
        return tuple(
            path for term in self.terms for path in (*term.delta.source.inputs, *term.inputs)
        )

    def slices(self, name: str, run: slice, device: str = "cpu") -> list[Slice]:
        """Return the slices, for a run of entries, of every term that changes the tensor."""
        return [Slice(term, name, run, key, device) for term, key in self._acting.get(name, ())]

    def survey(self, device: str = "cpu") -> None:
        """Measure whole tensors, once: the method asks empty slices for what it needs to know."""
        for name in self.names:
            with blame(tensor=name):
                self.combine(self.slices(name, slice(0, 0), device))

    def part(self, name: str, part: slice) -> Float64[Tensor, " entries"]:
        """Return entries of the change, on the CPU."""
        parts = [
            change[max(part.start - run.start, 0) : part.stop - run.start]
            for run, _, change in self._runs(name, part)
        ]
        return parts[0] if len(parts) == 1 else torch.cat(parts or [torch.empty(0).double()])

    def tuned_part(self, name: str, part: slice, base: Tensor) -> Tensor | None:
        """Return the fine-tuned entries, where the change is exactly that of one delta."""
        slices = self.slices(name, part)
        if not all(is_one_delta(found, change) for _, found, change in self._runs(name, part)):
            return None
        return slices[0].term.delta.source.tuned_part(name, part, base) if slices else None

    def _runs(self, name: str, part: slice) -> Iterator[tuple[slice, list[Slice], Tensor]]:
        """Yield every run that overlaps a part, with its slices and its change."""
        for run in runs_over(self.shape(name), part):
            asked = (name, run.start, run.stop)
            last = getattr(self._last, "run", None)
            if last is None or last[0] != asked:
                slices = self.slices(name, run)
                last = self._last.run = asked, slices, changed(self.combine, slices)
            yield run, last[1], last[2]
