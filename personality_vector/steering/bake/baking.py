"""Writing steering into an ordinary checkpoint, and the proof that it is the same steering."""

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from personality_vector.checkpoint import Checkpoint, revision_of
from personality_vector.checkpoint.cards import LOADING, fenced, metadata, shown
from personality_vector.errors import DataError, RecipeError
from personality_vector.files import AtomicDirectory
from personality_vector.manifest import WEIGHTS, write_manifest
from personality_vector.steering.bake.base import (
    Base,
    RouteName,
    family_of,
    route_for,
)
from personality_vector.steering.bake.exports import ablation_export, vector_export
from personality_vector.steering.bake.proof import Export, Proof, prove
from personality_vector.steering.fit import require_made_from, require_width, resolved
from personality_vector.steering.vector import SteeringVector
from personality_vector.subject.config import read_config

log = logging.getLogger(__name__)

_WHAT = {
    "bias": "The vector is a bias of the output projection of the MLP of {layers}.",
    "convert": "The architecture is now that Llama which computes the same; the vector is a bias "
    "of the output projection of the MLP of {layers}.",
    "adapter": "The vector is the bias of a PEFT adapter at the output projection of the MLP of "
    "{layers}; the adapter's matrices are 0. PEFT cannot merge it where the base has no such bias.",
    "ablate": "No weight writes along the direction of {layers} any more: the embeddings, every "
    "attention and every MLP are orthogonal to it.",
}
_LOADING_ADAPTER = """\
from peft import AutoPeftModelForCausalLM

folder = "."  # this folder, or the name of this repository on the Hub
model = AutoPeftModelForCausalLM.from_pretrained(folder)"""


@dataclass(frozen=True, slots=True)
class BakeResult:
    """What was written.

    Attributes:
        path: A checkpoint, or a PEFT adapter.
        route: How the steering got into it.
        proof: How far it is from the hooks.
    """

    path: Path
    route: RouteName
    proof: Proof


def bake(  # noqa: PLR0913  (a vector, where it goes, how strong, and where to write)
    vector: SteeringVector,
    model_path: str | Path,
    layers: Sequence[int],
    coefficient: float,
    out: str | Path,
    *,
    route: str = "auto",
    force: bool = False,
) -> BakeResult:
    """Write a checkpoint that adds ``coefficient * v_l`` to the output of each block ``l``.

    It equals steering by hooks at all positions, unconditionally and by a constant; nothing else
    can be baked. Nothing is published unless the export, loaded in a new process, gives the
    logits of the hooks and the same greedy tokens. Writing copies the base's files and holds one
    tensor; the proof loads the whole model in float32.

    Args:
        vector: A vector of this model.
        model_path: Directory, Hub id or ``builtin:demo``.
        layers: 0-based decoder blocks; ``-1`` is the last.
        coefficient: Factor on the vector; not 0.
        out: Directory to write; it appears whole or not at all.
        route: ``auto``, ``bias``, ``convert`` or ``adapter``; see :func:`route_for`.
        force: Replace an output that this tool wrote.

    Raises:
        ModelError: No exact route exists for this model, or it does not have this layer.
        BaseMismatchError: The vector is of another model.
        VerificationError: The export is not the steered model; nothing is published.
        PersonalityVectorError: Anything else is refused.

    Source:
        A bias of the MLP's output projection is prior art; that a reloaded model must be compared,
        since transformers drops tensors that its config does not announce, is ours.
    """
    if route == "ablate":
        raise RecipeError("route ablate takes no coefficient; use bake_ablation, or --ablate")
    if coefficient == 0:
        raise DataError("coefficient 0 leaves the model as it is, so there is nothing to bake")
    base, name = _opened(model_path, route, vector)
    shifts = (coefficient * vector.at(*resolved(layers, base.config.num_hidden_layers))).directions
    asked = {
        "layers": sorted(shifts),
        "coefficient": coefficient,
        "route": name,
        "vector": _described(vector),
    }
    return _publish(base, vector_export(name, base, shifts), Path(out), asked, force=force)


def bake_ablation(
    vector: SteeringVector,
    model_path: str | Path,
    layer: int,
    out: str | Path,
    *,
    force: bool = False,
) -> BakeResult:
    """Write a checkpoint whose residual stream has nothing along ``v_layer``, in any layer.

    It equals hooks that take the direction out of the embedding, of the output of every attention
    and of every block; see :func:`~personality_vector.steering.bake.exports.ablation_export`.

    Args:
        vector: A vector of this model.
        model_path: Directory, Hub id or ``builtin:demo``.
        layer: The layer whose direction is ablated; ``-1`` is the last.
        out: Directory to write; it appears whole or not at all.
        force: Replace an output that this tool wrote.

    Raises:
        ModelError: The architecture has writers that cannot be made orthogonal, or the model does
            not have this layer.
        VerificationError: The export is not the ablated model; nothing is published.
        PersonalityVectorError: Anything else is refused.
    """
    base, name = _opened(model_path, "ablate", vector)
    (place,) = resolved([layer], base.config.num_hidden_layers)
    asked = {"layers": [place], "coefficient": None, "route": name, "vector": _described(vector)}
    return _publish(base, ablation_export(base, vector[place]), Path(out), asked, force=force)


def _opened(model_path: str | Path, route: str, vector: SteeringVector) -> tuple[Base, RouteName]:
    """Return the base of a bake and the name of the route, once the vector is known to fit."""
    checkpoint = Checkpoint.open(model_path)
    config = read_config(checkpoint.path)
    name = route_for(config, route)
    label = vector.label or "the vector"
    require_made_from(label, vector.model, checkpoint)
    require_width(label, vector.hidden, checkpoint)
    return Base(checkpoint, config, family_of(config)), name


def _publish(
    base: Base, export: Export, out: Path, asked: Mapping[str, Any], *, force: bool
) -> BakeResult:
    checkpoint = base.checkpoint
    inputs = [checkpoint.path]
    with AtomicDirectory(
        out, kind="bake", force=force, inputs=inputs, size=export.size
    ) as directory:
        export.write(directory)
        proof = prove(checkpoint.path, export, base.dtype, directory)
        checkpoint.require_unchanged()
        content = {
            "base": {
                "reference": checkpoint.reference,
                "fingerprint": checkpoint.fingerprint.digest,
                **revision_of(checkpoint.path),
                "model_type": base.config.model_type,
            },
            **asked,
            "positions": "all",
            "proof": asdict(proof),
        }
        (directory / "README.md").write_text(bake_card(content), encoding="utf-8")
        content[WEIGHTS] = Checkpoint.written(directory).fingerprint.digest
        write_manifest(directory, "bake", content)
    log.info("baked %s into %s, error %.1e", asked["route"], out, proof.error)
    return BakeResult(out, asked["route"], proof)


def _described(vector: SteeringVector) -> dict[str, Any]:
    """Return which vector it is: its label, and a hash of its numbers."""
    parts = [
        f"{layer}|".encode() + vector[layer].contiguous().numpy().tobytes()
        for layer in vector.layers
    ]
    return {
        "identity": hashlib.blake2b(b"".join(parts), digest_size=16).hexdigest(),
        "label": vector.label,
        "pole": str(vector.pole) if vector.pole else None,
        "model": vector.model,
    }


def bake_card(baked: Mapping[str, Any]) -> str:
    """Return a model card.

    Args:
        baked: Content of the manifest.
    """
    proof, vector = baked["proof"], baked["vector"]
    layers = ("layer " if len(baked["layers"]) == 1 else "layers ") + ", ".join(
        map(str, baked["layers"])
    )
    is_adapter = baked["route"] == "adapter"
    rounding = (
        ""
        if proof["dtype"] == "float32"
        else f", of which all but {proof['error']:.1e} is the rounding of weights to "
        f"{shown(proof['dtype'])}"
    )
    parts = [
        metadata(
            baked["base"]["reference"],
            "adapter" if is_adapter else "finetune",
            ["steering", "personality-vector"],
            library="peft" if is_adapter else "transformers",
        ),
        "# Steered model",
        f"{shown(baked['base']['reference'])} with the steering vector "
        f"{shown(vector['label'] or vector['identity'][:12])} in its weights, made by "
        f"personality-vector. {_WHAT[baked['route']].format(layers=layers)}",
        *([] if baked["route"] == "ablate" else [f"Coefficient: {baked['coefficient']:g}."]),
        "It acts on every token, prompt included, always and by the same amount.",
        # Logits are compared in float32.
        f"Loaded in a new process, it differed from the same steering by hooks by at most "
        f"{proof['error_asked']:.1e} in a logit{rounding}. The steering itself changes logits by "
        f"up to {proof['effect']:.1e}. After each of {proof['prompts'][0]} prompts it generated "
        f"the same {proof['greedy_tokens']} greedy tokens as hooks with the rounded numbers.",
        "## Use",
        fenced(_LOADING_ADAPTER if is_adapter else LOADING, "python"),
        f"Fingerprint of the base: {baked['base']['fingerprint']}. MANIFEST.json says exactly "
        "what this was made of.",
    ]
    return "\n\n".join(parts) + "\n"
