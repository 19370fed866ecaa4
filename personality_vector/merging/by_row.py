"""Adding a delta to what linear layers return, with a strength of its own for each row."""

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from personality_vector.delta import Delta
from personality_vector.delta.lora import is_smaller_factored
from personality_vector.errors import RowsError, some
from personality_vector.merging.live import edited_parameters
from personality_vector.subject.models import device_of
from personality_vector.subject.prompts import Prompts, reading, strengths_of_rows

_ROWS, _COLUMNS = 2, 3
"""Of the pass that shows whether every layer reads rows; they differ so as not to be confused."""


@contextmanager
def added_by_row(model: nn.Module, delta: Delta, strengths: Sequence[float]) -> Generator[bool]:
    """Let a model run as if each row had its own ``base + strength * delta``.

    ``y = W x + s (D x)`` is ``(W + s D) x``; where the delta is kept as factors, ``D x`` is
    ``B (A x)``. Forward hooks alone do it, and they are gone afterwards. Memory: the delta, in the
    dtype of the model. A row of strength 0 is the plain model.

    Args:
        model: The base of the delta.
        delta: Changes nothing but weights and biases of linear layers.
        strengths: Those that occur. If they are several, each row has the one that is stated with
            its prompt (``Prompts.strengths``).

    Yields:
        Whether it is the edited model up to rounding: the parameters have 32 bits or more.

    Raises:
        RowsError: The delta changes something else, or a layer does not read rows of tokens.
        TensorMismatchError: The model lacks a tensor, or has it in another shape.
    """
    changes = _changes(model, delta)
    constant = strengths[0] if len(strengths) == 1 else None
    reached: set[nn.Module] = set()
    with ExitStack() as hooks:
        for layer, change in changes.items():
            hook = _hook(change, constant, reached)
            hooks.callback(layer.register_forward_hook(hook).remove)
        _run_once(model)
        if len(reached) < len(changes):
            raise RowsError(
                f"{len(changes) - len(reached)} of the {len(changes)} linear layers that it "
                "changes are not called in every forward pass of this model"
            )
        yield all(change.dtype.itemsize >= torch.float32.itemsize for change in changes.values())


@dataclass(slots=True)
class _Change:
    """The change of one layer: of its weight as ``factors`` or whole, and of its bias."""

    dtype: torch.dtype
    matrices: Sequence[Tensor] = ()
    bias: Tensor | None = None

    def of(self, inputs: Tensor, strength: float | Tensor) -> Tensor:
        """Return what is added to the output, in the dtype of the inputs."""
        found = torch.zeros((), dtype=self.dtype, device=inputs.device)
        if self.matrices:
            *first, last = self.matrices
            for matrix in first:
                inputs = linear(inputs, matrix)
            # Where there are factors, the numbers between them are the fewest.
            found = linear((strength * inputs).to(self.dtype), last)
        return found if self.bias is None else found + (strength * self.bias).to(self.dtype)


def _changes(model: nn.Module, delta: Delta) -> Mapping[nn.Module, _Change]:
    """Return the linear layers that a delta changes, each with its change."""
    owners: dict[Any, list[tuple[nn.Module, str]]] = {}
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            owners.setdefault(_place(parameter), []).append((module, name))
    parameters = edited_parameters(model, delta)
    found = {name: owners.get(_place(edited), []) for name, edited in parameters.items()}
    others = [
        name for name, own in found.items() if len(own) != 1 or type(own[0][0]) is not nn.Linear
    ]
    if others:
        raise RowsError(f"it changes {some(others)}, and only the rows of linear layers can differ")
    changes: dict[nn.Module, _Change] = {}
    for name, edited in parameters.items():
        (layer, what), dtype = found[name][0], edited.dtype
        change = changes.setdefault(layer, _Change(dtype))
        if what == "bias":
            change.bias = delta[name].to(edited.device, dtype)
        else:
            change.matrices = [
                each.to(edited.device, dtype).contiguous() for each in _matrices(delta, name)
            ]
    return changes


def _place(parameter: Tensor) -> tuple[Any, ...]:
    return parameter.data_ptr(), parameter.shape, parameter.stride()


def _matrices(delta: Delta, name: str) -> Sequence[Tensor]:
    """Return what the inputs of a layer are multiplied with, one after the other."""
    product = delta.source.product(name)
    if product is None or not is_smaller_factored(delta.shape(name), product[0].shape[1]):
        return [delta[name]]
    left, right = product
    return [right, left]


def _hook(
    change: _Change, constant: float | None, reached: set[nn.Module]
) -> Callable[[nn.Module, tuple[Any, ...], Any], Tensor]:
    def add(layer: nn.Module, given: tuple[Any, ...], output: Any) -> Tensor:
        inputs: Tensor = given[0]
        strength: float | Tensor = 0.0 if constant is None else constant
        if constant is None:
            rows = strengths_of_rows()
            if inputs.ndim != 3 or len(inputs) != len(rows):
                raise RowsError(f"a linear layer reads {list(inputs.shape)}, not {len(rows)} rows")
            wide = torch.promote_types(inputs.dtype, torch.float32)
            strength = rows.to(inputs.device, wide)[:, None, None]
        reached.add(layer)
        changed: Tensor = output + change.of(inputs, strength)
        return changed

    return add


@torch.no_grad()
def _run_once(model: Any) -> None:
    """Run a model on a few tokens, so that every layer shows what it reads."""
    tokens = torch.zeros(_ROWS, _COLUMNS, dtype=torch.int64, device=device_of(model))
    with reading(Prompts.of(tokens, strengths=torch.zeros(_ROWS))):
        model(input_ids=tokens, attention_mask=torch.ones_like(tokens))
