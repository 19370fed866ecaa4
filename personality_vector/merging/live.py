"""Adding a delta to the live weights of a model, and restoring them bit for bit."""

import math
from collections.abc import Generator, Mapping
from contextlib import closing, contextmanager
from functools import partial, reduce
from typing import Any

import torch
from torch import Tensor, nn

from personality_vector.checkpoint import kind
from personality_vector.delta import Delta
from personality_vector.errors import NonFiniteError, TensorMismatchError, blame, some
from personality_vector.merging.loop import Cast, Squares, added, changed
from personality_vector.merging.merged import Merged
from personality_vector.merging.terms import runs_over
from personality_vector.numeric.parallel import in_parallel
from personality_vector.subject.models import parameters_on_disk


@contextmanager
def live_edit(model: nn.Module, delta: Delta, strength: float = 1.0) -> Generator[Squares]:
    """Add ``strength * delta`` to a model in place; on exit copy its parameters back, bit for bit.

    The model holds the weights that a merge of this delta with ``alpha = strength`` writes, bit for
    bit; if the delta is itself a merge, those that it writes with its lambda times ``strength``.
    Nothing is undone by subtracting. A head is untied meanwhile, if the delta changes it but
    not the embeddings in the same way. Memory: a copy of each edited parameter. Strength 0 touches
    nothing.

    Args:
        model: Anything with parameters; those of transformers may be renamed or tied.
        delta: A delta of this very base. The caller checks the fingerprint with
            :func:`personality_vector.delta.open_delta`, since a model in memory has none.
        strength: Any finite number.

    Yields:
        How much of the ideal change survives the dtype of the parameters.

    Raises:
        TensorMismatchError: The delta names a tensor that the model does not have, that has
            another shape there, or that is tied to a tensor that the delta changes differently.
        NonFiniteError: The strength is not finite, or a weight would not be.
    """
    if not math.isfinite(strength):
        raise NonFiniteError(f"{delta.label}: the strength must be a finite number, got {strength}")
    source = Merged.of(delta, strength)
    saved: dict[str, Tensor] = {}
    with _own_head(model, delta):
        parameters = edited_parameters(model, delta)
        try:
            if strength:
                source.survey()
            for name, parameter in parameters.items() if strength else ():
                saved[name] = parameter.detach().clone()
            yield _add(source, {name: parameters[name] for name in saved}, strength)
        finally:
            with torch.no_grad():
                for name, original in saved.items():
                    parameters[name].copy_(original)


@contextmanager
def _own_head(model: Any, delta: Delta) -> Generator[None]:
    """Untie the head of a model while a delta changes it and not the embeddings in the same way."""
    heads = [name for name in delta.names if kind(name) == "head"]
    head: Any = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    shared = head.weight if heads and head is not None else None
    if shared is None or shared is not model.get_input_embeddings().weight:
        yield
        return
    tables = [name for name in delta.names if kind(name) == "embeddings"]
    if any(torch.equal(delta[name], delta[heads[0]]) for name in tables):
        yield
        return
    head.weight = nn.Parameter(shared.detach().clone(), requires_grad=shared.requires_grad)
    try:
        yield
    finally:
        head.weight = shared


def _add(source: Merged, parameters: Mapping[str, Tensor], strength: float) -> Squares:
    """Write ``parameter + change`` as a merge does, by the runs of a merge, on all cores."""
    whole = {name: parameter.detach().contiguous() for name, parameter in parameters.items()}
    batches = [
        (name, run)
        for name, tensor in whole.items()
        for run in runs_over(source.shape(name), slice(0, tensor.numel()), _device(tensor))
    ]
    measured: dict[str, list[Squares]] = {}
    with closing(in_parallel(partial(_add_run, source, whole, strength), batches)) as done:
        for (name, _), squares in zip(batches, done, strict=True):
            measured.setdefault(name, []).append(squares)
    for name, parameter in parameters.items():
        if not parameter.is_contiguous():
            parameter.detach().copy_(whole[name])
    return reduce(Squares.plus, map(Squares.total, measured.values()), Squares())


def _add_run(
    source: Merged, whole: Mapping[str, Tensor], strength: float, batch: tuple[str, slice]
) -> Squares:
    name, run = batch
    flat, device = whole[name].view(-1), _device(whole[name])
    with blame(tensor=name, alpha=strength):
        slices = source.slices(name, run, device)
        change = changed(source.combine, slices)
        flat[run], squares = added(change, slices, flat[run].to(device), Cast(flat.dtype))
    return squares


def _device(tensor: Tensor) -> str:
    """Return where a change is computed; the GPU of a Mac has no float64."""
    return "cpu" if tensor.is_mps else str(tensor.device)


def edited_parameters(model: nn.Module, delta: Delta) -> dict[str, Tensor]:
    """Check that the model has every tensor of ``delta``, and return its live parameters."""
    live, scattered = parameters_on_disk(model)
    absent = set(delta.names) - set(live)
    if absent & scattered:
        raise TensorMismatchError(
            f"{delta.label}: {some(absent & scattered)} is in this {type(model).__name__} only "
            "together with other tensors, in another order, so it cannot be edited in place; "
            "write a checkpoint with `pvec merge`"
        )
    if absent:
        raise TensorMismatchError(
            f"{delta.label}: this {type(model).__name__} has no parameter {some(absent)}; "
            "the delta is of another architecture"
        )
    edited = {name: live[name] for name in delta.names}
    owners: dict[Any, str] = {}
    for name, parameter in edited.items():
        if delta.shape(name) != tuple(parameter.shape):
            raise TensorMismatchError(
                f"{delta.label}: {name} has shape {list(delta.shape(name))}, "
                f"in this model it is {list(parameter.shape)}"
            )
        place = (parameter.data_ptr(), parameter.stride(), parameter.shape)
        owner = owners.setdefault(place, name)
        if owner != name and not torch.equal(delta[owner], delta[name]):
            raise TensorMismatchError(
                f"{delta.label}: changes {owner} and {name} differently, which are one tied "
                "parameter of this model"
            )
    return {name: edited[name] for name in owners.values()}
