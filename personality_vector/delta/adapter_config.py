"""The config of a PEFT adapter: which base it names, which modules it targets, and how."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, Field, FiniteFloat, ValidationError

from personality_vector.checkpoint import Checkpoint, is_hub_id, read_json
from personality_vector.delta.layers import block_of
from personality_vector.delta.lora import CONFIG, Scaling
from personality_vector.errors import BaseMismatchError, CheckpointError
from personality_vector.recipes.schema import sentence

# Keys of PEFT's config that are understood here, or that do not change what the tensors mean. With
# any other that is set the adapter is left to PEFT, so that an unknown variant of LoRA is not
# mistaken for LoRA.
_UNDERSTOOD = {
    *("auto_mapping", "base_model_name_or_path", "exclude_modules", "fan_in_fan_out"),
    *("inference_mode", "layers_pattern", "layers_to_transform", "lora_alpha", "lora_dropout"),
    *("megatron_config", "megatron_core", "peft_type", "peft_version", "qalora_group_size", "r"),
    *("revision", "runtime_config", "target_modules", "task_type", "use_rslora"),
    *("ensure_weight_tying", "eva_config", "init_lora_weights"),
    *("alpha_pattern", "rank_pattern", "modules_to_save", "bias"),
}
# PiSSA, OLoRA, CorDA, LoftQ and LoRA-GA start by changing the base, so B A is not the difference.
_HARMLESS_INITS = (True, False, "gaussian", "eva", "orthogonal")


class _Keys(BaseModel, strict=True):
    """Types of the keys that are read here."""

    peft_type: str
    base_model_name_or_path: str | None = None
    r: Annotated[int, Field(ge=0)] = 0
    lora_alpha: FiniteFloat | None = None
    rank_pattern: dict[str, int] | None = None
    alpha_pattern: dict[str, FiniteFloat] | None = None
    target_modules: str | list[str] | None = None
    exclude_modules: str | list[str] | None = None
    layers_to_transform: int | list[int] | None = None
    use_rslora: bool = False
    fan_in_fan_out: bool = False


@dataclass(frozen=True)
class AdapterConfig:
    """The content of ``adapter_config.json`` in a directory."""

    path: Path
    given: Mapping[str, Any]

    @classmethod
    def read(cls, path: Path) -> "AdapterConfig":
        """Read and check it.

        Raises:
            CheckpointError: It is not a config, or of factors that are not the difference.
        """
        given = read_json(path / CONFIG)
        try:
            keys = _Keys.model_validate(given)
        except ValidationError as error:
            raise CheckpointError(f"{path / CONFIG}: {sentence(_Keys, error)}") from error
        init = given.get("init_lora_weights", True)
        if keys.peft_type == "LORA":
            if keys.lora_alpha is None:
                raise CheckpointError(f"{path / CONFIG}: the key 'lora_alpha' is missing")
            if init not in _HARMLESS_INITS:
                raise CheckpointError(
                    f"{path / CONFIG}: init_lora_weights: {init} changes the base before training, "
                    "so the factors are not the difference; merge the adapter with PEFT and use "
                    "that checkpoint"
                )
        return cls(path, given)

    @property
    def kind(self) -> str:
        """Type of the adapter, such as ``LORA``."""
        return str(self.given["peft_type"])

    @property
    def is_lora(self) -> bool:
        """Whether it is LoRA, and nothing is set that is not understood here."""
        unknown = (value for key, value in self.given.items() if key not in _UNDERSTOOD)
        return self.kind == "LORA" and not any(unknown)

    @property
    def scaling(self) -> Scaling:
        """How products of factors become deltas, where no pattern says otherwise."""
        return Scaling(
            float(self.given["lora_alpha"]),
            bool(self.given.get("use_rslora", False)),
            bool(self.given.get("fan_in_fan_out", False)),
        )

    @property
    def base(self) -> str:
        """The base model that it names.

        Raises:
            CheckpointError: It names none.
        """
        name = self.given.get("base_model_name_or_path")
        if not isinstance(name, str) or not name:
            raise CheckpointError(
                f"{self.path / CONFIG}: names no base_model_name_or_path; pass the base"
            )
        return name

    def require_named(self, base: Checkpoint) -> None:
        """Check that it does not name another base, as far as two names can be compared.

        Raises:
            BaseMismatchError: It names another Hub id, or a directory that holds another model.
        """
        name = str(self.given.get("base_model_name_or_path") or "")
        folder = Path(name) if name else base.path
        if folder.is_dir():
            is_other = folder.resolve() != base.path.resolve() and (
                Checkpoint.open(folder).fingerprint != base.fingerprint
            )
        else:
            is_other = is_hub_id(name) and is_hub_id(base.reference) and name != base.reference
        if is_other:
            raise BaseMismatchError(
                f"{self.path}: is an adapter of {name}, not of {base.path}; if you mean it, write "
                f"the term '{self.path} - {base.path}', or of: {base.path} beside it in a recipe"
            )

    def rank(self, module: str, default: int) -> Any:
        """Return the rank of the factors of a module."""
        return self._by_pattern("rank_pattern", module, self.given.get("r", default))

    def alpha(self, module: str) -> float:
        """Return the alpha of a module, by which its product of factors is scaled."""
        return float(self._by_pattern("alpha_pattern", module, self.given["lora_alpha"]))

    def targets(self, module: str) -> bool:
        """Return whether a module is to be adapted, as PEFT reads the config."""
        targets, block = self.given.get("target_modules"), block_of(f"{module}.weight")
        layers = self.given.get("layers_to_transform")
        layers = [layers] if isinstance(layers, int) else layers
        if layers and block and block[1] not in layers:
            return False
        if self._is_among(module, self.given.get("exclude_modules")):
            return False
        return targets in (None, "all-linear") or self._is_among(module, targets)

    def _by_pattern(self, key: str, module: str, default: Any) -> Any:
        """Return the value of the first pattern that a module ends with."""
        table = self.given.get(key) or {}
        found = (value for end, value in table.items() if self._is_like(rf"(.*\.)?({end})", module))
        return next(found, default)

    def _is_among(self, module: str, targets: Any) -> bool:
        if isinstance(targets, str):
            return self._is_like(targets, module)
        return any(module == end or module.endswith(f".{end}") for end in targets or ())

    def _is_like(self, pattern: str, module: str) -> bool:
        try:
            return re.fullmatch(pattern, module) is not None
        except re.error as error:
            raise CheckpointError(
                f"{self.path / CONFIG}: pattern {pattern!r:.80}: {error}"
            ) from error
