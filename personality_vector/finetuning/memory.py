"""The memory that a training takes, computed from config.json and the headers of the weights."""

import math
import os
import re
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from personality_vector.checkpoint import FLOATS, Checkpoint, is_buffer
from personality_vector.errors import ModelError
from personality_vector.finetuning.recipe import LoraSpec, SftSpec
from personality_vector.subject.config import read_config

_FLOAT32 = 4
_TILE_TOKENS, _TILE_WORDS = 4096, 32_768
"""What TRL 1.16 computes of the logits at a time (``chunked_logprob.py``, ``trainer/utils.py``)."""
_TILES_ON_CPU = 10
"""Tensors of that size that its backward pass holds at once where there is no Triton (measured)."""


@dataclass(frozen=True, slots=True)
class Memory:
    """The memory of one process, in bytes, without that of Python and its libraries.

    Attributes:
        processes: How many processes the figures are for.
        weights: Of the model, an adapter, and with ``mixed_precision`` their copy in bfloat16.
        gradients: One for each value that is trained.
        optimizer: Two states of AdamW for each value that is trained.
        activations: What the forward pass of the longest batch keeps, and the largest work space.
        peak: The most at one time: activations are freed while gradients come into being.
    """

    processes: int
    weights: int
    gradients: int
    optimizer: int
    activations: int
    peak: int

    def as_dict(self) -> dict[str, int]:
        """Return the figures by name."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class _Sizes:
    """What decides the memory of activations: numbers of values."""

    hidden: int
    inner: int
    heads: int
    layers: int
    words: int


@dataclass(frozen=True, slots=True)
class _Values:
    """Numbers of values: of the model, of those that are trained, and read by adapters."""

    model: int
    trained: int
    adapter: int
    read: int


def memory_of(
    base: Checkpoint, sft: SftSpec, longest: int, *, processes: int, on_cpu: bool
) -> Memory:
    """Return the memory that one process of a training takes, without loading weights.

    With ``s`` bytes for a value in ``sft.dtype``, ``p`` values of the model and ``t`` trained ones
    (all of them, or of LoRA ``rank * (inputs + outputs)`` for every matrix that it adapts; PEFT
    keeps these in float32):

    - weights ``s p``, with an adapter ``+ 4 t``, with ``mixed_precision`` ``+ 2 p``;
    - gradients ``s t`` and optimizer ``2 s t`` (4 for ``s`` with an adapter);
    - activations of ``n = batch_size * longest`` tokens, for each of ``layers`` blocks
      ``n (s (2 h + 4 a + 4 m) + 8 h)`` bytes, ``h`` values wide, with heads of ``a`` values in all
      and an inner width of ``m``: the inputs of the norms in float32, their outputs, queries, keys,
      values and result of attention, and four tensors of the feed-forward part. A full fine-tune
      keeps ``2 h`` more for the norms' weights, and an adapter of a model in 16 bits keeps copies
      in float32 of what it reads instead. ``gradient_checkpointing`` keeps ``n s h`` a block, and
      all of one;
    - the work space of the loss, for which TRL computes tiles of at most 4,096 tokens x 32,768
      words and never all logits: one on a GPU, about 10 of float32 on a CPU with the same part of
      the output matrix, in a full fine-tune also the gradient of that matrix in float32.

    FSDP2 divides weights, gradients and optimizer by ``processes``, and gathers two blocks, the
    embeddings and the head at a time. DistributedDataParallel copies gradients into buckets.

    The peak is ``weights + optimizer`` and the larger of activations and gradients, or both with
    ``gradient_accumulation`` or buckets, which are there before the activations. Allocators take
    more than what is asked of them: SmolLM2 on a CPU took 1 to 25 % more (training/README.md).

    Args:
        base: The model.
        sft: The settings.
        longest: Tokens of the longest chat.
        processes: Number of processes.
        on_cpu: Whether it is trained on a CPU.

    Raises:
        ModelError: transformers does not know the architecture.
    """
    sizes, size = _sizes_of(base), FLOATS[sft.dtype].itemsize
    values = _values_of(base, sft, sizes.words)
    mixed = sft.mixed_precision == "bfloat16"
    of_trained = _FLOAT32 if sft.is_adapter or (sft.fsdp and mixed) else size
    weights = size * values.model + _FLOAT32 * values.adapter
    gradients, copied = of_trained * values.trained, 2 * values.model * mixed
    shards = processes if sft.fsdp else 1
    buckets = gradients if processes > 1 and not sft.fsdp else 0
    activations = _activations(sft, sizes, values, longest, on_cpu=on_cpu)
    if sft.fsdp:
        block = (values.model - 2 * sizes.words * sizes.hidden) // sizes.layers
        activations += size * (2 * block + 2 * sizes.words * sizes.hidden)
    kept = (weights + 2 * gradients) // shards + copied // shards
    early = gradients // shards if sft.gradient_accumulation > 1 or buckets else 0
    return Memory(
        processes,
        (weights + copied) // shards,
        gradients // shards + buckets,
        2 * gradients // shards,
        activations,
        kept + buckets + max(early + activations, gradients // shards),
    )


def _sizes_of(base: Checkpoint) -> _Sizes:
    config = read_config(base.path, "estimate the memory").get_text_config()
    hidden, heads = config.hidden_size, config.num_attention_heads
    width = getattr(config, "head_dim", None) or hidden // heads
    inner = getattr(config, "intermediate_size", None) or getattr(config, "n_inner", None)
    layers = config.num_hidden_layers
    return _Sizes(hidden, inner or 4 * hidden, heads * width, layers, config.vocab_size)


def _values_of(base: Checkpoint, sft: SftSpec, words: int) -> _Values:
    weights = {
        name: entry.shape
        for name, entry in base.entries.items()
        if entry.dtype.is_floating_point and not is_buffer(entry)
    }
    model = sum(map(math.prod, weights.values()))
    lora = sft.lora
    if lora is None:  # the values of another adapter are so few that they do not count
        return _Values(model, 0 if sft.adapter else model, 0, 0)
    adapted = [
        shape
        for name, shape in weights.items()
        if len(shape) == 2 and words not in shape and _is_adapted(name, lora)
    ]
    trained = lora.rank * sum(map(sum, adapted))
    return _Values(model, trained, trained, sum(shape[1] for shape in adapted))


def _is_adapted(name: str, lora: LoraSpec) -> bool:
    """Return whether LoRA adapts a matrix: by default every one of a block."""
    module, targets = name.removesuffix(".weight"), lora.target_modules
    if targets == "all-linear":
        return re.search(r"\.\d+\.", name) is not None
    if isinstance(targets, str):
        return re.fullmatch(targets, module) is not None
    return any(f".{module}".endswith(f".{target}") for target in targets)


def _activations(
    sft: SftSpec, sizes: _Sizes, values: _Values, longest: int, *, on_cpu: bool
) -> int:
    """Return what the forward pass keeps, with the work space of the loss, in bytes."""
    is_mixed = sft.mixed_precision == "bfloat16"
    size = 2 if is_mixed else FLOATS[sft.dtype].itemsize
    tokens = sft.batch_size * (sft.max_length if sft.packing else min(longest, sft.max_length))
    norms = 2 * (_FLOAT32 + size + (0 if sft.is_adapter else size)) * sizes.hidden
    block = norms + size * (4 * sizes.heads + 4 * sizes.inner)
    if sft.lora and FLOATS[sft.dtype] != torch.float32:  # a copy for each matrix that is adapted
        block += _FLOAT32 * values.read // sizes.layers - size * (2 * sizes.hidden + sizes.inner)
    kept = sizes.layers * (size * sizes.hidden if sft.gradient_checkpointing else block)
    once = block if sft.gradient_checkpointing else 0
    tile = min(tokens, _TILE_TOKENS) * min(sizes.words, _TILE_WORDS)
    packed = min(sizes.words, _TILE_WORDS) * sizes.hidden
    loss = _FLOAT32 * (_TILES_ON_CPU * tile + packed) if on_cpu else size * tile
    loss += 0 if sft.is_adapter else _FLOAT32 * sizes.words * sizes.hidden
    return tokens * kept + max(tokens * once, loss)


def require_room(needed: int, device: str, what: str) -> None:
    """Refuse what needs more bytes than are free on a device; ``what`` begins the sentence.

    Raises:
        ModelError: There are fewer.
    """
    free = free_memory(device)
    if needed > free:
        raise ModelError(f"{what} needs {needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free")


def free_memory(device: str) -> int:
    """Return how many bytes are free on a device: of a GPU, or of the machine."""
    if device.startswith("cuda"):
        return int(torch.cuda.mem_get_info(device)[0])
    file = Path("/proc/meminfo")
    found = re.search(r"MemAvailable:\s+(\d+)", file.read_text() if file.is_file() else "")
    if found:
        return int(found[1]) * 1024
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
