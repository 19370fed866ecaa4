"""Weights that write nothing along a direction: ablation, baked.

With a unit direction ``q`` every map that writes to the residual stream becomes
``W' = W - q q^T W``, ``b' = b - q q^T b``, and each row of an embedding ``e' = e - (e . q) q``.
Nothing ever writes along ``q``, so the stream has no component along it, anywhere. That equals
hooks which take the component out of the embedding, of the output of each attention and of the
output of each block. It does not equal hooks on the outputs of blocks alone: between attention
and MLP of one block those let the component pass (unless the two are parallel).

Source: Arditi et al. 2024, arXiv:2406.11717, equation of weight orthogonalisation.
"""

from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from personality_vector.checkpoint import TensorPlan
from personality_vector.steering.apply import ablated, steered
from personality_vector.steering.bake.base import Base, Edit, Edits, size_of, write_checkpoint
from personality_vector.steering.bake.proof import Export
from personality_vector.subject.models import decoder_blocks

_HEADS = ("lm_head.weight", "embed_out.weight")


def ablation_export(base: Base, direction: Float[Tensor, " hidden"]) -> Export:
    """Write the base with no writer along ``direction``; each is rounded once.

    A head that is tied to the embeddings becomes one of its own, since it only reads.
    """
    unit = direction.double() / direction.double().norm()
    written = {
        name: _edit(base, name, partial(_without, base, name, unit, axis))
        for name, axis in writers(base)
    }
    edits = written | (_own_head(base) if base.config.tie_word_embeddings else {})
    config = {**base.checkpoint.config, "tie_word_embeddings": False}

    asked = partial(ablated_everywhere, base=base, direction=direction)
    rewritten = partial(with_writers, base=base, edits=written)
    is_exact = base.dtype == torch.float32
    return Export(
        partial(write_checkpoint, base.checkpoint, edits, config),
        asked,
        realised=asked if is_exact else partial(rewritten, is_rounded=True),
        unrounded=None if is_exact else partial(rewritten, is_rounded=False),
        size=size_of(base.checkpoint, edits),
    )


def writers(base: Base) -> Iterator[tuple[str, int]]:
    """Yield each tensor that writes to the stream, and its axis of length ``hidden``."""
    for module in base.family.embeddings:
        yield base.stored(module), 1
    for layer in range(base.layers):
        for module in (base.family.attention, base.family.mlp):
            name = base.weight(layer, module)
            yield name, 1 if base.family.transposed else 0
            bias = name.removesuffix("weight") + "bias"
            if bias in base.checkpoint.entries:
                yield bias, 0


@contextmanager
def ablated_everywhere(
    model: nn.Module, base: Base, direction: Float[Tensor, " hidden"]
) -> Generator[None]:
    """Take ``direction`` out of the embedding, of each attention and of each block; by hooks."""
    modules = dict(model.named_modules())
    blocks = decoder_blocks(model)

    def on_embedding(_block: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (ablated(args[0], direction, 1.0), *args[1:])

    def on_attention(_map: nn.Module, _args: tuple[Any, ...], output: Tensor) -> Tensor:
        return ablated(output, direction, 1.0)

    with ExitStack() as hooks:
        hooks.callback(blocks[0].register_forward_pre_hook(on_embedding).remove)
        for layer in range(len(blocks)):
            attention = modules[base.family.module(layer, base.family.attention)]
            hooks.callback(attention.register_forward_hook(on_attention).remove)
        everywhere = dict.fromkeys(range(len(blocks)), direction)
        hooks.enter_context(steered(model, everywhere, 1.0, how="ablate"))
        yield


@contextmanager
def with_writers(
    model: nn.Module, base: Base, edits: Edits, *, is_rounded: bool
) -> Generator[None]:
    """Give a model in memory other writers, by their names on disk; restored on leaving.

    A tied head is untied and keeps its weights.
    """
    head: Any = model.get_output_embeddings()  # type: ignore[operator]
    head.weight = nn.Parameter(head.weight.detach())
    parameters = dict(model.named_parameters())
    root = f"{base.family.root}."
    writing = {name: parameters[root + name.removeprefix(root)] for name in edits}
    saved = {name: parameter.data for name, parameter in writing.items()}
    try:
        for name, parameter in writing.items():
            values = edits[name].values() if is_rounded else edits[name].exact()
            parameter.data = values.to(parameter.dtype)
        yield
    finally:
        for name, parameter in writing.items():
            parameter.data = saved[name]


def _without(base: Base, name: str, unit: Tensor, axis: int) -> Tensor:
    """Return a writer without the unit direction along ``axis``; float32 or wider."""
    stored = base.checkpoint[name]
    values = stored.to(torch.promote_types(stored.dtype, torch.float32))
    unit = unit.to(values.dtype)
    if values.ndim == 2 and axis == 0:
        return values - torch.outer(unit, unit @ values)
    return values - (values @ unit)[..., None] * unit


def _own_head(base: Base) -> dict[str, Edit]:
    source = base.stored(base.family.embeddings[0])
    name = next((head for head in _HEADS if head in base.checkpoint.entries), _HEADS[0])
    return {name: _edit(base, source, partial(base.checkpoint.__getitem__, source), name)}


def _edit(base: Base, source: str, exact: Callable[[], Tensor], name: str = "") -> Edit:
    """Return an edit with the dtype and shape of a tensor of the base, and its name or another."""
    entry = base.checkpoint.entries[source]
    return Edit(TensorPlan(name or source, entry.dtype, entry.shape), exact)
