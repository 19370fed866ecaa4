"""Weights that write nothing along a direction: ablation, baked.

With a unit direction ``q`` every map that writes to the residual stream becomes
``W' = W - q q^T W``, ``b' = b - q q^T b``, and each row of an embedding ``e' = e - (e . q) q``.
Nothing ever writes along ``q``, so the stream has no component along it, anywhere. That equals
hooks which take the component out of the embedding, of the output of each attention and of the
output of each block. It does not equal hooks on the outputs of blocks alone: between attention
and MLP of one block those let the component pass (unless the two are parallel).

Source: Arditi et al. 2024, arXiv:2406.11717, equation of weight orthogonalisation.
"""

from collections.abc import Generator, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from personality_vector.steering.apply import ablated, steered
from personality_vector.steering.bake.base import Base
from personality_vector.steering.bake.weights import Edit, edit
from personality_vector.subject.models import decoder_blocks

_HEADS = ("lm_head.weight", "embed_out.weight")


def ablation_edits(base: Base, direction: Float[Tensor, " hidden"]) -> dict[str, Edit]:
    """Return every writer to the stream without ``direction``; each rounded once.

    A head that is tied to the embeddings becomes one of its own, since it only reads.
    """
    unit = direction.double() / direction.double().norm()
    edits = {}
    for name, axis in writers(base):
        entry = base.checkpoint.entries[name]
        make = partial(_without, base, name, unit, axis)
        edits[name] = edit(name, entry.dtype, entry.shape, make)
    return edits | (_own_head(base) if is_tied(base) else {})


def ablated_config(base: Base) -> dict[str, Any]:
    """Return the base's config.json, with a head of its own."""
    return {**base.checkpoint.config, "tie_word_embeddings": False}


def is_tied(base: Base) -> bool:
    """Return whether head and embeddings are one tensor."""
    return bool(base.config.tie_word_embeddings)


def writers(base: Base) -> Iterator[tuple[str, int]]:
    """Yield each tensor that writes to the stream, and its axis of length ``hidden``."""
    for module in base.family.embeddings:
        yield base.embedding(module), 1
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


def exact_values(base: Base, direction: Float[Tensor, " hidden"]) -> dict[str, Tensor]:
    """Return every writer without ``direction``, not rounded, by its name on disk."""
    unit = direction.double() / direction.double().norm()
    return {name: _without(base, name, unit, axis) for name, axis in writers(base)}


@contextmanager
def with_weights(model: nn.Module, base: Base, values: Mapping[str, Tensor]) -> Generator[None]:
    """Give a model in memory other writers, by their names on disk; restored on leaving.

    A tied head is untied and keeps its weights.
    """
    head: Any = model.get_output_embeddings()  # type: ignore[operator]
    head.weight = nn.Parameter(head.weight.detach())
    parameters = dict(model.named_parameters())
    root = f"{base.family.root}."
    writing = {name: parameters[root + name.removeprefix(root)] for name in values}
    saved = {name: parameter.data for name, parameter in writing.items()}
    for name, parameter in writing.items():
        parameter.data = values[name].to(parameter.dtype)
    try:
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
    source = base.embedding(base.family.embeddings[0])
    entry = base.checkpoint.entries[source]
    name = next((head for head in _HEADS if head in base.checkpoint.entries), _HEADS[0])
    return {
        name: edit(name, entry.dtype, entry.shape, partial(base.checkpoint.__getitem__, source))
    }
