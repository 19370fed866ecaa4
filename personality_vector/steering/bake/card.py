"""The README.md of an export."""

from collections.abc import Mapping
from typing import Any

from personality_vector.checkpoint.cards import LOADING, fenced, metadata, shown

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
    parts = [
        _metadata(baked["base"]["reference"], is_adapter=is_adapter),
        "# Steered model",
        f"{shown(baked['base']['reference'])} with the steering vector "
        f"{shown(vector['label'] or vector['identity'][:12])} in its weights, made by "
        f"personality-vector. {_WHAT[baked['route']].format(layers=layers)}",
        *([] if baked["route"] == "ablate" else [f"Coefficient: {baked['coefficient']:g}."]),
        "It acts on every token, prompt included, always and by the same amount.",
        _proof(proof),
        "## Use",
        fenced(_LOADING_ADAPTER if is_adapter else LOADING, "python"),
        f"Fingerprint of the base: {baked['base']['fingerprint']}. MANIFEST.json says exactly "
        "what this was made of.",
    ]
    return "\n\n".join(parts) + "\n"


def _proof(proof: Mapping[str, Any]) -> str:
    """Return what was measured; logits are compared in float32."""
    rounding = ""
    if proof["dtype"] != "float32":
        rounding = (
            f", of which all but {proof['error']:.1e} is the rounding of weights to "
            f"{shown(proof['dtype'])}"
        )
    return (
        f"Loaded in a new process, it differed from the same steering by hooks by at most "
        f"{proof['error_asked']:.1e} in a logit{rounding}. The steering itself changes logits by "
        f"up to {proof['effect']:.1e}. After each of {proof['prompts'][0]} prompts it generated "
        f"the same {proof['greedy_tokens']} greedy tokens as hooks with the rounded numbers."
    )


def _metadata(base: str, *, is_adapter: bool) -> str:
    tags = ["steering", "personality-vector"]
    if is_adapter:
        return metadata(base, "adapter", tags, library="peft")
    return metadata(base, "finetune", tags)
