"""Adding a delta to the live weights of a model, and restoring them bit for bit."""

import math
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from personality_vector.delta import Delta
from personality_vector.errors import NonFiniteError, TensorMismatchError, blame, some
from personality_vector.merging.loop import Cast, Squares, added, changed
from personality_vector.merging.merged import Merged
from personality_vector.merging.terms import runs_over


@contextmanager
def live_edit(model: nn.Module, delta: Delta, strength: float = 1.0) -> Generator[Squares]:
    """Add ``strength * delta`` to a model in place; on exit copy its parameters back, bit for bit.

    The model holds the weights that a merge of this delta with ``alpha = strength`` writes, bit for
    bit; if the delta is itself a merge, those that it writes with its lambda times ``strength``.
    Nothing is undone by subtracting. Memory: a copy of each edited parameter. Strength 0 touches
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
    parameters = _edited_parameters(model, delta)
    source, squares = Merged.of(delta, strength), Squares()
    saved: dict[str, Tensor] = {}
    try:
        if strength:
            source.survey()
        for name, parameter in parameters.items() if strength else ():
            with blame(tensor=name, alpha=strength):
                saved[name] = parameter.detach().clone()
                squares = squares.plus(_add(parameter, source, name))
        yield squares
    finally:
        with torch.no_grad():
            for name, original in saved.items():
                parameters[name].copy_(original)


@torch.no_grad()
def _add(parameter: Tensor, source: Merged, name: str) -> Squares:
    """Write ``parameter + change`` as a merge does, by the runs of a merge."""
    flat, cast, sums = parameter.view(-1), Cast(parameter.dtype), []
    # The GPU of a Mac has no float64.
    device = "cpu" if parameter.is_mps else str(parameter.device)
    for run in runs_over(source.shape(name), slice(0, flat.numel()), device):
        slices = source.slices(name, run, device)
        change = changed(source.combine, slices)
        flat[run], squares = added(change, slices, flat[run].to(device), cast)
        sums.append(squares)
    return Squares.total(sums)


def _edited_parameters(model: nn.Module, delta: Delta) -> dict[str, Tensor]:
    """Check that the model has every tensor of ``delta``, and return its live parameters."""
    live = parameters_on_disk(model)
    absent = set(delta.names) - set(live)
    if absent:
        raise TensorMismatchError(
            f"{delta.label}: this {type(model).__name__} has no parameter {some(absent)}; "
            "the delta is of another architecture"
        )
    edited = {name: live[name] for name in delta.names}
    owners: dict[int, str] = {}
    for name, parameter in edited.items():
        if delta.shape(name) != tuple(parameter.shape):
            raise TensorMismatchError(
                f"{delta.label}: {name} has shape {list(delta.shape(name))}, "
                f"in this model it is {list(parameter.shape)}"
            )
        owner = owners.setdefault(id(parameter), name)
        if owner != name and not torch.equal(delta[owner], delta[name]):
            raise TensorMismatchError(
                f"{delta.label}: changes {owner} and {name} differently, which are one tied "
                "parameter of this model"
            )
    return {name: edited[name] for name in owners.values()}


def parameters_on_disk(model: nn.Module) -> Mapping[str, Tensor]:
    """Return the parameters by name in memory and by name on disk, tied ones under every name.

    transformers 5 renames while it loads: GPT-NeoX has ``embed_out`` on disk and ``lm_head`` in
    memory. A tensor on disk that is only a part of a parameter, such as one expert, is left out.
    """
    from transformers.core_model_loading import revert_weight_conversion

    live: dict[str, Any] = dict(model.named_parameters(remove_duplicate=False))
    stand_ins = {name: torch.empty_like(tensor, device="meta") for name, tensor in live.items()}
    of = {id(stand_in): live[name] for name, stand_in in stand_ins.items()}
    on_disk = revert_weight_conversion(model, stand_ins)
    return live | {name: of[id(found)] for name, found in on_disk.items() if id(found) in of}
