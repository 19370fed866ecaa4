"""Deltas kept as factors and multiplied when used: LoRA adapters, and matrices of low rank."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxtyping import Float, Float64
from torch import Tensor

from personality_vector.checkpoint import Checkpoint, read_header, read_json
from personality_vector.delta.provenance import require_trained_on
from personality_vector.delta.sources import TensorSource, require_finite
from personality_vector.errors import (
    CheckpointError,
    TensorMismatchError,
    some,
)

_CONFIG = "adapter_config.json"
_WEIGHTS = "adapter_model.safetensors"
LEFT, RIGHT = ".left", ".right"
"""Endings of the names of the two factors of a matrix of low rank."""

_PREFIX = "base_model.model."
_FACTOR = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_[AB]\.weight")
# Keys of PEFT's config that do not change the meaning of the two factors. Any other key that is set
# is refused, so that an unknown variant of LoRA is not mistaken for plain LoRA.
_HARMLESS = {
    *("auto_mapping", "base_model_name_or_path", "exclude_modules", "fan_in_fan_out"),
    *("inference_mode", "layers_pattern", "layers_to_transform", "lora_alpha", "lora_dropout"),
    *("megatron_config", "megatron_core", "peft_type", "peft_version", "qalora_group_size", "r"),
    *("revision", "runtime_config", "target_modules", "task_type", "use_rslora"),
    *("ensure_weight_tying", "eva_config"),
}
# PiSSA, OLoRA, CorDA, LoftQ and LoRA-GA start by changing the base, so B A is not the difference.
_HARMLESS_INITS = (True, False, "gaussian", "eva", "orthogonal")


def is_adapter(path: Path) -> bool:
    """Return whether a directory holds a PEFT adapter."""
    return (path / _CONFIG).is_file()


@dataclass(frozen=True, slots=True)
class Scaling:
    """Says how the product of two factors becomes a delta."""

    alpha: float
    rank_stabilised: bool
    transposed: bool


def factors_of(name: str) -> tuple[str, str]:
    """Return the names of the factors ``B`` and ``A`` of an adapted weight."""
    module = _PREFIX + name.removesuffix(".weight")
    return f"{module}.lora_B.weight", f"{module}.lora_A.weight"


def rows_of_factors(
    factors: Checkpoint, left: str, right: str, part: slice, *, transposed: bool = False
) -> Float64[Tensor, " entries"]:
    """Return the entries ``part`` of ``left @ right``, row-major, multiplied in float64.

    Only the rows of ``left`` that are needed are read; with ``transposed`` the product is that of
    ``(left @ right).T``, of which a row needs all of both.
    """
    if transposed:
        one, other = (_matrix(factors, name) for name in (left, right))
        return rows_of_product(other.T, one.T, part)
    second = _matrix(factors, right)
    rank, columns = second.shape
    first, last = part.start // columns, -(-part.stop // columns)
    rows = require_finite(factors, left, slice(first * rank, last * rank), keep=False)
    beyond = first * columns
    return rows_of_product(
        rows.reshape(-1, rank), second, slice(part.start - beyond, part.stop - beyond)
    )


def rows_of_product(
    left: Float[Tensor, "rows rank"], right: Float[Tensor, "rank columns"], part: slice
) -> Float64[Tensor, " entries"]:
    """Return the entries ``part`` of ``left @ right``, row-major, multiplied in float64."""
    columns = right.shape[1]
    first, last = part.start // columns, -(-part.stop // columns)
    product = left[first:last].double() @ right.double()
    return product.reshape(-1)[part.start - first * columns : part.stop - first * columns]


def _matrix(factors: Checkpoint, name: str) -> Tensor:
    return require_finite(factors, name).reshape(factors.entries[name].shape)


@dataclass(frozen=True)
class LowRank(TensorSource):
    """A saved delta whose matrices are stored as ``left @ right``, float32; other tensors whole."""

    tensors: Checkpoint
    shapes: Mapping[str, tuple[int, ...]]
    """Shapes of the tensors by name."""

    @property
    def _shapes(self) -> Mapping[str, tuple[int, ...]]:
        return self.shapes

    @property
    def _origins(self) -> tuple[Checkpoint, ...]:
        return (self.tensors,)

    def part(self, name: str, part: slice) -> Float64[Tensor, " entries"]:
        """Return entries of one tensor, multiplying only the rows that they lie in."""
        if name in self.tensors.entries:
            return require_finite(self.tensors, name, part).double()
        return rows_of_factors(self.tensors, name + LEFT, name + RIGHT, part)


@dataclass(frozen=True)
class Adapter(LowRank):
    """A plain LoRA adapter of PEFT, on a given base.

    Source: LoRA, Hu et al. 2021, arXiv:2106.09685: ``W = W_0 + (alpha / r) B A``; with rank
    stabilisation (arXiv:2312.03732) the factor is ``alpha / sqrt(r)``.
    """

    base: Checkpoint
    scaling: Scaling

    @property
    def _origins(self) -> tuple[Checkpoint, ...]:
        return self.base, self.tensors

    def part(self, name: str, part: slice) -> Float64[Tensor, " entries"]:
        """Return entries of ``scaling * B @ A``, multiplying only the rows that they lie in."""
        up, down = factors_of(name)
        rank, how = self.tensors.entries[down].shape[0], self.scaling
        scaling = how.alpha / (math.sqrt(rank) if how.rank_stabilised else rank)
        return scaling * rows_of_factors(self.tensors, up, down, part, transposed=how.transposed)


def is_smaller_factored(shape: tuple[int, ...], rank: int) -> bool:
    """Return whether a tensor is a matrix whose factors take less room than itself."""
    return len(shape) == 2 and rank * sum(shape) < math.prod(shape)


def open_adapter(path: Path, base: Checkpoint) -> Adapter:
    """Open a PEFT adapter directory as a delta on ``base``.

    Raises:
        CheckpointError: It is incomplete, or uses what plain LoRA does not have.
        TensorMismatchError: It adapts modules that the base lacks, or of other shapes.
    """
    config = read_json(path / _CONFIG)
    _require_plain(path, config)
    require_trained_on(path, base)
    factors = Checkpoint(path, read_header(path / _WEIGHTS))
    names = _adapted(path, factors)
    unknown = set(names) - set(base.entries)
    if unknown:
        raise TensorMismatchError(
            f"{path}: adapts {some(unknown)}, which the base {base.path} does not have"
        )
    scaling = Scaling(
        float(config["lora_alpha"]),
        bool(config.get("use_rslora", False)),
        bool(config.get("fan_in_fan_out", False)),
    )
    shapes = {name: base.entries[name].shape for name in names}
    adapter = Adapter(factors, shapes, base, scaling)
    for name in names:
        _require_fit(path, adapter, name)
    return adapter


def adapter_base(path: Path) -> str:
    """Return the base model that an adapter names.

    Raises:
        CheckpointError: It names none.
    """
    name = read_json(path / _CONFIG).get("base_model_name_or_path")
    if not isinstance(name, str) or not name:
        raise CheckpointError(f"{path / _CONFIG}: names no base_model_name_or_path; pass the base")
    return name


def _require_plain(path: Path, config: dict[str, Any]) -> None:
    alpha = config.get("lora_alpha")
    if config.get("peft_type") != "LORA" or isinstance(alpha, bool):
        raise CheckpointError(f"{path / _CONFIG}: only LoRA adapters have a delta of weights")
    if not isinstance(alpha, int | float) or not math.isfinite(alpha):
        raise CheckpointError(f"{path / _CONFIG}: lora_alpha must be a number, got {alpha!r}")
    settings = config | {
        "bias": config.get("bias") not in (None, "none"),
        "init_lora_weights": config.get("init_lora_weights", True) not in _HARMLESS_INITS,
    }
    unknown = [key for key, value in settings.items() if key not in _HARMLESS and value]
    if unknown:
        raise CheckpointError(
            f"{path / _CONFIG}: is not plain LoRA: it sets {some(unknown)}; merge the adapter into "
            "its base with PEFT and use that checkpoint"
        )


def _adapted(path: Path, factors: Checkpoint) -> list[str]:
    """Return the names of the weights that have both factors."""
    matches = {name: _FACTOR.fullmatch(name) for name in factors.names}
    unknown = [name for name, match in matches.items() if match is None]
    if unknown:
        raise CheckpointError(f"{path / _WEIGHTS}: not plain LoRA factors: {some(unknown)}")
    names = sorted({f"{match['module']}.weight" for match in matches.values() if match})
    halves = {factor for name in names for factor in factors_of(name)} - set(factors.names)
    if halves:
        raise CheckpointError(f"{path / _WEIGHTS}: lacks {some(halves)}")
    return names


def _require_fit(path: Path, adapter: Adapter, name: str) -> None:
    up, down = (adapter.tensors.entries[factor].shape for factor in factors_of(name))
    module, expected = name.removesuffix(".weight"), adapter.shape(name)
    if down[0] == 0:
        raise CheckpointError(f"{path}: {module}: its factors have rank 0, so it changes nothing")
    shape = (up[0], down[1])
    if down[0] != up[1] or (shape[::-1] if adapter.scaling.transposed else shape) != expected:
        raise TensorMismatchError(
            f"{path}: {module}: factors {list(up)} x {list(down)} do not make "
            f"{list(expected)}, the shape in the base {adapter.base.path}"
        )
