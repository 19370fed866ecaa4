"""A delta added to the live weights, and taken back bit for bit."""

import math
from collections.abc import Generator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from personality_vector.delta import Delta
from personality_vector.errors import TensorMismatchError, blame, some
from personality_vector.merging.rounding import Realised, round_to
from personality_vector.numeric.kernels import projection
from personality_vector.numeric.pieces import pieces


@contextmanager
def live_edit(model: nn.Module, delta: Delta, strength: float) -> Generator[Realised]:
    """Edit in place; on exit copy the saved parameters back, bit for bit."""
    parameters = _edited_parameters(model, delta)
    saved: dict[str, Tensor] = {}
    realised = Realised()
    try:
        if strength != 0:
            for name, parameter in parameters.items():
                with blame(tensor=name, alpha=strength):
                    saved[name] = parameter.detach().clone()
                    _add(parameter, delta, name, strength, realised)
        yield realised
    finally:
        with torch.no_grad():
            for name, original in saved.items():
                parameters[name].copy_(original)


@torch.no_grad()
def _add(parameter: Tensor, delta: Delta, name: str, strength: float, realised: Realised) -> None:
    """Write ``parameter + strength * delta`` as a merge does: in float64, rounded once."""
    flat = parameter.view(-1)
    device = "cpu" if parameter.is_mps else parameter.device  # which has no float64
    sums = []
    for part in pieces(flat.numel()):
        base = flat[part].to(device).double()
        change = strength * delta.source.part(name, part).to(device)
        written = round_to(base + change, parameter.dtype)
        flat[part] = written
        sums.append(projection(base, change, written))
    realised.add(math.fsum(s[2] for s in sums), math.fsum(s[1] for s in sums))


def _edited_parameters(model: nn.Module, delta: Delta) -> dict[str, Tensor]:
    """Return the live parameter of each tensor that ``delta`` names, after checking them all."""
    live = _parameters_on_disk(model)
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


def _parameters_on_disk(model: nn.Module) -> Mapping[str, Tensor]:
    """Return the parameters by name in memory and by name on disk, tied ones under every name.

    transformers 5 renames while it loads: GPT-NeoX has ``embed_out`` on disk and ``lm_head`` in
    memory. A tensor on disk that is only a part of a parameter, such as one expert, is left out.
    """
    from transformers.core_model_loading import revert_weight_conversion

    live = dict(model.named_parameters(remove_duplicate=False))
    shapes = {name: torch.empty_like(tensor, device="meta") for name, tensor in live.items()}
    names = {id(stand_in): name for name, stand_in in shapes.items()}
    on_disk = revert_weight_conversion(model, shapes)
    renamed = {
        disk: live[names[id(stand_in)]]
        for disk, stand_in in on_disk.items()
        if id(stand_in) in names
    }
    return {**live, **renamed}
