"""What each route writes: a bias, an equivalent Llama, an adapter, or orthogonal weights."""

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors.torch import save_file
from torch import Tensor, nn

from personality_vector.checkpoint import TensorPlan
from personality_vector.errors import CheckpointError
from personality_vector.lab import BUILTIN
from personality_vector.steering.apply import ablated, steered
from personality_vector.steering.bake.base import (
    ATTENTION,
    GATED,
    Base,
    Edit,
    Edits,
    RouteName,
    size_of,
    write_checkpoint,
)
from personality_vector.steering.bake.proof import Export
from personality_vector.steering.fit import Directions
from personality_vector.subject.models import decoder_blocks

_HEADS = ("lm_head.weight", "embed_out.weight")

_SHARED = (  # what Qwen2, Mistral and Llama are built from
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "hidden_act",
    "max_position_embeddings",
    "initializer_range",
    "rms_norm_eps",
    "use_cache",
    "pad_token_id",
    "bos_token_id",
    "eos_token_id",
    "tie_word_embeddings",
    "rope_parameters",
    "attention_dropout",
)


def vector_export(route: RouteName, base: Base, shifts: Directions) -> Export:
    """Write what adds ``shifts`` to the outputs of blocks, by a route other than ``ablate``.

    ``bias``: the base with a bias that its config supports; the config's switch for it is on.
    ``convert``: the equivalent Llama, with a bias. ``adapter``: a PEFT adapter that holds nothing
    but a bias; its float32 numbers are not rounded.
    """
    if route == "adapter":
        asked = partial(steered, directions=shifts)
        return Export(partial(_write_adapter, base, shifts), asked, asked)
    if route == "convert":
        has_bias = base.config.model_type == "qwen2"  # of queries, keys, values; Mistral has none
        modules = (*ATTENTION, *GATED) if has_bias else GATED
        return _with_biases(base, shifts, modules, _llama_config(base.config, has_bias=has_bias))
    config = base.checkpoint.config | ({base.family.flag: True} if base.family.flag else {})
    return _with_biases(base, shifts, base.family.flagged or (base.family.mlp,), config)


def _with_biases(
    base: Base, shifts: Directions, modules: Sequence[str], config: Mapping[str, Any]
) -> Export:
    """Write biases that add ``shifts`` to the outputs of blocks; all others are as before.

    A bias that exists is added to, with one rounding to its dtype; one that does not is 0, in the
    dtype of its weight. ``modules`` of every block have a bias in the export.
    """
    edits, realised = {}, {}
    for layer in range(base.config.num_hidden_layers):
        for module in modules:
            shift = shifts.get(layer) if module == base.family.mlp else None
            edit = _bias(base, base.weight(layer, module), shift)
            if shift is not None:
                realised[layer] = _realised(base, edit)
            if shift is not None or edit.plan.name not in base.checkpoint.entries:
                edits[edit.plan.name] = edit
    return Export(
        partial(write_checkpoint, base.checkpoint, edits, config),
        asked=partial(steered, directions=shifts),
        realised=partial(steered, directions=realised),
        size=size_of(base.checkpoint, edits),
    )


def _bias(base: Base, weight: str, shift: Tensor | None) -> Edit:
    """Return ``b + shift / multiplier``; float64, where ``b`` is 0 unless the base has one.

    The shift is divided, since the block multiplies it again.
    """
    entries, name = base.checkpoint.entries, weight.removesuffix("weight") + "bias"
    if not entries[weight].dtype.is_floating_point:
        raise CheckpointError(
            f"{base.checkpoint.path}: {weight} is {entries[weight].dtype}, so it is quantised"
        )
    width = entries[weight].shape[1 if base.family.transposed else 0]

    def exact() -> Tensor:
        bias = base.checkpoint[name] if name in entries else torch.zeros(width)
        return bias.double() + (0.0 if shift is None else shift.double() / base.multiplier)

    return Edit(TensorPlan(name, entries.get(name, entries[weight]).dtype, (width,)), exact)


def _realised(base: Base, edit: Edit) -> Tensor:
    """Return what a written bias adds to the output of its block, after rounding; float32."""
    checkpoint, name = base.checkpoint, edit.plan.name
    before = checkpoint[name].double() if name in checkpoint.entries else 0.0
    return (base.multiplier * (edit.rounded().double() - before)).float()


def _llama_config(source: Any, *, has_bias: bool) -> dict[str, Any]:
    """Return the config.json of the Llama that computes what a Qwen2 or Mistral does.

    It starts from the configuration as transformers reads it, since the defaults of the two
    classes differ: every number that a Llama is built from is written down.
    """
    from transformers import LlamaConfig

    config = LlamaConfig(
        **{name: getattr(source, name) for name in _SHARED},
        head_dim=getattr(source, "head_dim", None)
        or source.hidden_size // source.num_attention_heads,
        attention_bias=has_bias,
        mlp_bias=True,
    )
    config.architectures = ["LlamaForCausalLM"]
    config.dtype = source.dtype
    # The rotary embedding as transformers 4 reads it, too; it would take theta for 10000.
    scaling = dict(source.rope_parameters)
    written: dict[str, Any] = config.to_dict() | {"rope_theta": scaling.pop("rope_theta")}
    return written if scaling.get("rope_type") == "default" else written | {"rope_scaling": scaling}


def _write_adapter(base: Base, shifts: Directions, directory: Path) -> None:
    """Write LoRA matrices of rank 1 that are 0, and a bias of ``shift / multiplier``; float32.

    PEFT computes ``W x + b + B A x + bias`` with ``A = B = 0``; the scale is 1.
    """
    from peft import LoraConfig

    modules = {layer: base.family.module(layer, base.family.mlp) for layer in shifts}
    path, reference = base.checkpoint.path, base.checkpoint.reference
    is_on_hub = reference != path.name and not reference.startswith(BUILTIN)
    LoraConfig(
        r=1,
        lora_alpha=1,
        lora_bias=True,
        target_modules=sorted(modules.values()),
        base_model_name_or_path=reference if is_on_hub else str(path),
        task_type="CAUSAL_LM",
        inference_mode=True,
    ).save_pretrained(str(directory))
    tensors: dict[str, Tensor] = {}
    for layer, shift in shifts.items():
        wide = base.checkpoint.entries[base.weight(layer, base.family.mlp)].shape[1]
        name = f"base_model.model.{modules[layer]}"
        tensors |= {
            f"{name}.lora_A.weight": torch.zeros(1, wide),
            f"{name}.lora_B.weight": torch.zeros(len(shift), 1),
            f"{name}.lora_B.bias": (shift.double() / base.multiplier).float(),
        }
    save_file(tensors, directory / "adapter_model.safetensors", {"format": "pt"})


def ablation_export(base: Base, direction: Float[Tensor, " hidden"]) -> Export:
    """Write the base with no writer along ``direction``; each is rounded once.

    With ``q`` the unit direction, every map that writes to the stream becomes
    ``W' = W - q q^T W``, ``b' = b - q q^T b``, and each row of an embedding
    ``e' = e - (e . q) q``. So the stream has no component along ``q``, anywhere. That equals hooks
    which take it out of the embedding, of the output of each attention and of each block. It does
    not equal hooks on the outputs of blocks alone, which let it pass between attention and MLP
    (unless the two are parallel). A head that is tied to the embeddings becomes one of its own,
    since it only reads.

    Source: Arditi et al. 2024, arXiv:2406.11717, equation of weight orthogonalisation.
    """
    unit = direction.double() / direction.double().norm()
    written = {
        name: _edit(base, name, partial(_without, base, name, unit, axis))
        for name, axis in writers(base)
    }
    edits = dict(written)
    if base.config.tie_word_embeddings:
        source = base.stored(base.family.embeddings[0])
        name = next((head for head in _HEADS if head in base.checkpoint.entries), _HEADS[0])
        edits[name] = _edit(base, source, partial(base.checkpoint.__getitem__, source), name)
    config = {**base.checkpoint.config, "tie_word_embeddings": False}
    asked = partial(ablated_everywhere, base=base, direction=direction)
    rewritten = partial(with_writers, base=base, edits=written)
    is_exact = base.dtype == torch.float32
    return Export(
        partial(write_checkpoint, base.checkpoint, edits, config),
        asked,
        realised=asked if is_exact else partial(rewritten, values=Edit.rounded),
        unrounded=None if is_exact else partial(rewritten, values=lambda edit: edit.exact()),
        size=size_of(base.checkpoint, edits),
    )


def writers(base: Base) -> Iterator[tuple[str, int]]:
    """Yield each tensor that writes to the stream, and its axis of length ``hidden``."""
    for module in base.family.embeddings:
        yield base.stored(module), 1
    for layer in range(base.config.num_hidden_layers):
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
    blocks = decoder_blocks(model)
    with ExitStack() as hooks:
        embedded = blocks[0].register_forward_pre_hook(
            lambda _block, args: (ablated(args[0], direction, 1.0), *args[1:])
        )
        hooks.callback(embedded.remove)
        for layer in range(len(blocks)):
            attention = model.get_submodule(base.family.module(layer, base.family.attention))
            attended = attention.register_forward_hook(
                lambda _map, _args, output: ablated(output, direction, 1.0)
            )
            hooks.callback(attended.remove)
        hooks.enter_context(
            steered(model, dict.fromkeys(range(len(blocks)), direction), 1.0, how="ablate")
        )
        yield


@contextmanager
def with_writers(
    model: nn.Module, base: Base, edits: Edits, values: Callable[[Edit], Tensor]
) -> Generator[None]:
    """Replace the writers of a model in memory, named as on disk, and restore them on leaving.

    A tied head is untied and keeps its weights. ``values`` chooses rounded or exact ones.
    """
    head: Any = model.get_output_embeddings()  # type: ignore[operator]
    head.weight = nn.Parameter(head.weight.detach())
    root = f"{base.family.root}."
    writing = {name: model.get_parameter(root + name.removeprefix(root)) for name in edits}
    saved = {name: parameter.data for name, parameter in writing.items()}
    try:
        for name, parameter in writing.items():
            parameter.data = values(edits[name]).to(parameter.dtype)
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


def _edit(base: Base, source: str, exact: Callable[[], Tensor], name: str = "") -> Edit:
    """Return an edit with the dtype and shape of a tensor of the base, and its name or another."""
    entry = base.checkpoint.entries[source]
    return Edit(TensorPlan(name or source, entry.dtype, entry.shape), exact)
