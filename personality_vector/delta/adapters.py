"""Opening PEFT's adapters: what they say is compared with what they hold and with the base."""

import json
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float64
from torch import Tensor

from personality_vector.checkpoint import (
    Checkpoint,
    TensorEntry,
    canonical,
    canonical_names,
    embeddings_of,
    kind,
    read_header,
    read_json,
    untied,
)
from personality_vector.delta.adapter_config import AdapterConfig
from personality_vector.delta.layers import block_of
from personality_vector.delta.lora import CONFIG, Adapter, Factors, scaling_of
from personality_vector.delta.provenance import require_trained_on
from personality_vector.delta.sources import TensorSource, require_finite
from personality_vector.errors import CheckpointError, TensorMismatchError, foreign, some
from personality_vector.numeric.kernels import difference

_WEIGHTS, _PICKLED = "adapter_model.safetensors", "adapter_model.bin"
# These architectures have layers that store their matrix transposed (Conv1D of transformers), and
# others in between that do not.
_CONV1D = {"gpt2", "openai-gpt", "imagegpt", "decision_transformer", "clvp"}
_CONV1D_LAYER = re.compile(r"\.(?:c_attn|c_proj|c_fc|q_attn)\.weight$")
_HEAD = "lm_head.weight"
_ADAPTED = re.compile(r"base_model\.model\.(?P<module>.+?)\.(?:lora|hada|lokr|vera|oft|ia3)_.+")
_STORED = re.compile(
    r"base_model\.model\.(?P<module>.+?)\."
    r"(?:lora_(?:embedding_)?(?P<half>[AB])(?:\.weight)?|(?:base_layer\.|modules_to_save\.)?"
    r"(?P<whole>weight|bias))"
)


@dataclass(frozen=True)
class Computed(TensorSource):
    """What an adapter makes of a base, as PEFT computes it: ``tuned - base`` in memory."""

    base: Checkpoint
    adapter: Checkpoint
    tuned: Mapping[str, Tensor]
    """The tensors that change, float32, by their names in the base."""

    @property
    def _shapes(self) -> Mapping[str, tuple[int, ...]]:
        return {name: self.base.entries[name].shape for name in self.tuned}

    @property
    def _origins(self) -> tuple[Checkpoint, ...]:
        return self.base, self.adapter

    @property
    def content(self) -> tuple[str, ...]:
        """What its numbers depend on, as digests and texts."""
        config = json.dumps(read_json(self.adapter.path / CONFIG), sort_keys=True)
        return "peft", self.base.fingerprint.digest, self.adapter.fingerprint.digest, config

    def part(self, name: str, part: slice) -> Float64[Tensor, " entries"]:
        """Return ``tuned - base``."""
        return difference(self.tuned[name][part], require_finite(self.base, name, part))


def open_adapter(path: Path, base: Checkpoint, *, stated: bool = False) -> Adapter | Computed:
    """Open a PEFT adapter directory as a delta on ``base``.

    LoRA is kept as factors and read in parts. What any other adapter changes is computed by PEFT on
    the base, which is loaded in float32 for it.

    Args:
        path: Its directory.
        base: The model that it is put on.
        stated: Whether to put it there even if its config names another model.

    Raises:
        CheckpointError: It is incomplete, or config and weights contradict each other.
        BaseMismatchError: It names another base.
        TensorMismatchError: It adapts modules that the base lacks, or of other shapes.
    """
    config = AdapterConfig.read(path)
    require_trained_on(path, base)
    if not stated:
        config.require_named(base)
    if not (path / _WEIGHTS).is_file() and (path / _PICKLED).is_file():
        raise CheckpointError(
            f"{path / _PICKLED}: pickled weights can run code and are not opened; convert them "
            f"once with `pvec convert {path} --out DIR`"
        )
    tensors = Checkpoint(path, read_header(path / _WEIGHTS))
    found = _grouped(tensors) if config.is_lora else None
    if found is None:
        return _by_peft(config, base, tensors)
    modules, copied = found
    base, own_head = _untied(base, tensors, modules, copied)
    places = _places(base, [*modules, *copied], path)
    if any(len(base.entries[places[weight]].shape) != 2 for weight in modules):
        return _by_peft(config, base, tensors)
    factors = {
        places[weight]: _fitted(config, base.entries[places[weight]], base, tensors, weight, halves)
        for weight, halves in modules.items()
    }
    copies = {places[name]: stored for name, stored in copied.items()}
    for name, stored in copies.items():
        ours, theirs = base.entries[name].shape, tensors.entries[stored].shape
        if ours != theirs:
            raise TensorMismatchError(
                f"{path / _WEIGHTS}: {stored} has shape {list(theirs)}, {name} of the base "
                f"{base.path} has {list(ours)}"
            )
    _require_all_layers(config, base, {places[weight]: weight for weight in modules})
    shapes = {name: base.entries[name].shape for name in {**factors, **copies, **own_head}}
    return Adapter(tensors, shapes, base, config.scaling, factors, copies)


def _grouped(tensors: Checkpoint) -> tuple[dict[str, dict[str, str]], dict[str, str]] | None:
    """Return the names of the halves by weight, and of whole tensors by name in the model.

    Returns:
        None if there is a tensor that LoRA does not have.

    Raises:
        CheckpointError: A half is missing.
    """
    weights: dict[str, dict[str, str]] = {}
    copied: dict[str, str] = {}
    for name in tensors.names:
        match = _STORED.fullmatch(name)
        if match is None:
            return None
        if match["half"]:
            weights.setdefault(f"{match['module']}.weight", {})[match["half"]] = name
        else:
            copied[f"{match['module']}.{match['whole']}"] = name
    halves = [half for found in weights.values() if len(found) < 2 for half in found.values()]
    if halves:
        raise CheckpointError(
            f"{tensors.path / _WEIGHTS}: has {some(halves)} without the other factor"
        )
    return weights, copied


def _untied(
    base: Checkpoint, tensors: Checkpoint, modules: Mapping[str, Any], copied: dict[str, str]
) -> tuple[Checkpoint, dict[str, str]]:
    """Return the base, and its head by name, untied where an adapter changes only one of the two.

    PEFT adapts a module, and not the parameter that two modules share: the other one goes on with
    the parameter as it was. Copies of both that are equal are one parameter.
    """
    embeddings = embeddings_of(base)
    heads = [name for name in (*modules, *copied) if kind(name) == "head"]
    tables = [
        name for name in (*modules, *copied) if canonical(name) == canonical(embeddings or "")
    ]
    if embeddings is None or not (heads or tables):
        return base, {}
    stored = [tensors[copied[name]] for name in (*heads, *tables) if name in copied]
    is_adapted = any(name in modules for name in (*heads, *tables))
    if not is_adapted:
        others = stored[1:] if heads and tables else [base[embeddings]]
        if all(torch.equal(stored[0], other.to(stored[0].dtype)) for other in others):
            copied.pop(heads[0] if heads else "", None)
            return base, {}
    head = heads[0] if heads else _HEAD
    found = untied(base, [head])
    return found, {head: embeddings} if found is not base else {}


def _places(base: Checkpoint, names: Sequence[str], path: Path) -> dict[str, str]:
    """Return ``{name in memory: name on disk}`` of tensors that an adapter names.

    PEFT names modules as they are in memory. On disk they have the same name, or one of another
    layout (see :mod:`personality_vector.checkpoint.names`), or one that only transformers knows.

    Raises:
        TensorMismatchError: The base has no such tensor.
    """
    places = {name: name for name in names if name in base.entries}
    if left := [name for name in names if name not in places]:
        by_canonical = canonical_names(base)
        heads = [name for name in base.names if kind(name) == "head"]
        for name in left:
            if canonical(name) in by_canonical:
                places[name] = by_canonical[canonical(name)]
            elif kind(name) == "head" and len(heads) == 1:
                places[name] = heads[0]
    if unknown := [name for name in names if name not in places]:
        from personality_vector.subject.models import names_on_disk

        known = names_on_disk(base)
        places |= {name: known[name] for name in unknown if known.get(name) in base.entries}
    if lacking := set(names) - places.keys():
        raise TensorMismatchError(
            f"{path}: adapts {some(lacking)}, which the base {base.path} does not have"
        )
    return places


def _fitted(
    config: AdapterConfig,
    entry: TensorEntry,
    base: Checkpoint,
    tensors: Checkpoint,
    weight: str,
    halves: Mapping[str, str],
) -> Factors:
    """Return the factors of one weight, checked against the config and the base."""
    path, module = config.path, weight.removesuffix(".weight")
    up, down = (tensors.entries[halves[half]].shape for half in "BA")
    rank = down[0]
    if rank == 0:
        raise CheckpointError(f"{path}: {module}: its factors have rank 0, so it changes nothing")
    if rank != config.rank(module, rank) or not config.targets(module):
        raise CheckpointError(
            f"{path}: {module}: is adapted with rank {rank}, which is not what {CONFIG} says; "
            "config and weights do not belong together"
        )
    shapes = {False: (up[0], down[1]), True: (down[1], up[0])}
    fits = [turned for turned, shape in shapes.items() if shape == entry.shape]
    if up[1] != rank or not fits:
        raise TensorMismatchError(
            f"{path}: {module}: factors {list(up)} x {list(down)} do not make "
            f"{list(entry.shape)}, the shape in the base {base.path}"
        )
    is_embedding = halves["A"].endswith("lora_embedding_A")
    turned = fits[0] if len(fits) == 1 else _is_stored_transposed(base, entry.name, config)
    how = config.scaling
    return Factors(
        halves["B"],
        halves["A"],
        scaling_of(config.alpha(module), rank, rank_stabilised=how.rank_stabilised),
        is_embedding or turned,
    )


def _is_stored_transposed(base: Checkpoint, name: str, config: AdapterConfig) -> bool:
    """Return whether a square matrix is stored transposed, which its shape does not tell.

    The config of an adapter has one flag for all its layers, so the architecture decides.
    """
    if not (base.path / "config.json").is_file():
        return config.scaling.transposed
    is_family = base.config.get("model_type") in _CONV1D
    return is_family and _CONV1D_LAYER.search(name) is not None


def _require_all_layers(
    config: AdapterConfig, base: Checkpoint, weights: Mapping[str, str]
) -> None:
    """Check that what is adapted in one layer is adapted in every layer that the config targets."""
    if config.given.get("target_modules") is None:
        return
    depths = {block[:2] for block in map(block_of, base.names) if block}
    missing = set()
    for name, weight in weights.items():
        if (block := block_of(name)) is None:
            continue
        for stack, layer in depths:
            other = f"{stack}.{layer}.{block[2]}"
            spelled = weight.removesuffix(".weight").replace(f".{block[1]}.", f".{layer}.", 1)
            is_there = other in weights or stack != block[0] or other not in base.entries
            if not is_there and config.targets(spelled):
                missing.add(spelled)
    if missing:
        raise CheckpointError(
            f"{config.path / _WEIGHTS}: lacks {some(missing)}, which {CONFIG} targets"
        )


def _by_peft(config: AdapterConfig, base: Checkpoint, tensors: Checkpoint) -> Computed:
    """Return what PEFT makes of the base with an adapter.

    Raises:
        CheckpointError: PEFT cannot merge an adapter of this type, or config and weights differ.
    """
    from peft import PeftConfig, get_peft_model, set_peft_model_state_dict
    from safetensors.torch import load_file

    from personality_vector.subject.models import load_model, parameters_on_disk

    path, model = config.path, load_model(base.path)
    modules = {found["module"] for found in map(_ADAPTED.fullmatch, tensors.names) if found}
    base, own_head = _untied(base, tensors, {f"{module}.weight": None for module in modules}, {})
    if own_head:
        head = model.get_output_embeddings()
        head.weight = torch.nn.Parameter(head.weight.detach().clone())
    what = f"{path}: PEFT cannot merge this {config.kind} adapter into {base.path}"
    # PEFT reads a property that is deprecated.
    with foreign(CheckpointError, what), warnings.catch_warnings(action="ignore"):
        options = PeftConfig.from_pretrained(str(path))
        adapted: Any = get_peft_model(model, options)
        lost = set_peft_model_state_dict(adapted, load_file(path / _WEIGHTS))
        absent = [name for name in lost.missing_keys if adapted.base_model.prefix in name]
        merged, _ = parameters_on_disk(adapted.merge_and_unload())
    ignored = [key for key, value in config.given.items() if value and not hasattr(options, key)]
    if differing := [*ignored, *lost.unexpected_keys, *absent]:
        raise CheckpointError(f"{what}: config and weights disagree on {some(differing)}")
    changed = {
        name: merged[name].detach().reshape(-1)
        for name in base.names
        if name in merged and not torch.equal(merged[name], base[name].to(merged[name].dtype))
    }
    return Computed(base, tensors, changed)
