"""One name for each tensor of the language part, whatever layout a checkpoint is written in.

A vision-language model (VLM) holds a text model, but calls its tensors otherwise, and each writer
has its own way: ``language_model.model.layers.0`` (the default on disk of the llava family),
``model.language_model.layers.0`` (in memory), ``model.text_model.layers.0`` (SmolVLM), or
``model.layers.0`` as in the text model itself (Qwen2-VL). Here they have the name of the text
model, and tensors of other parts the name of the part, so two layouts of one VLM agree as well. A
text model without its head is written as ``layers.0``, and GPT-2 as ``h.0`` or ``transformer.h.0``.
"""

import re
from collections.abc import Iterable
from dataclasses import replace
from typing import Literal

from personality_vector.checkpoint.reader import Checkpoint
from personality_vector.checkpoint.tensors import TensorEntry
from personality_vector.errors import TensorMismatchError

Kind = Literal["embeddings", "head", "norms", "vision"]
"""What a delta may leave out: ``vision`` is every tensor outside the language part."""

_PART = (
    r"vis(?:ual|ion)\w*|(?:multi_modal|mm|audio|image)_\w+|embed_(?:vision|audio)|connector|"
    r"\w*projector"
)
# The head and the parts beside the language model stand alone ...
_ALONE = re.compile(rf"^(?:(?:language_)?model\.)*(?=(?:lm_head|{_PART})(?:\.|$))")
# ... the language model is `model`, however deep it is wrapped (5.5.0 wraps Qwen3.5 three times),
_TEXT = re.compile(r"^(?:model\.)?(?:(?:language|text)_model\.)+(?:model\.)?")
# ... and a vision tower has no model inside, as before transformers 5.
_TOWER = re.compile(r"^vision_tower\.vision_model\.")
_BARE = re.compile(r"^(?=(?:layers\.\d+|embed_tokens\w*|norm)\.)")
_TRANSFORMER = re.compile(
    r"^transformer\.(?=(?:h|blocks)\.\d+\.|(?:w[tp]e|ln_f|norm_f|word_emb\w*)\.)"
)
_BUFFER = re.compile(
    r"\brotary_emb\.\w+$|\battn\.(?:masked_)?bias$|\battention\.(?:masked_)?bias$|\bposition_ids$"
)

_POSITIONS = re.compile(r"(?:wpe|embed_positions)\.weight$")
_BEGINNING = re.compile(r"(?:(?:model|language_model|text_model)\.)*[^.]+")
_KINDS: tuple[tuple[Kind, re.Pattern[str]], ...] = (
    ("vision", re.compile(rf"^(?:{_PART})(?:\.|$)")),
    (
        "embeddings",
        re.compile(
            r"(?:^|\.)(?:embed_tokens\w*|embed_in|embed_positions|word_embeddings|wte|wpe)\."
        ),
    ),
    ("head", re.compile(r"(?:^|\.)(?:lm_head|embed_out)\.")),
    ("norms", re.compile(r"(?:norm\w*|\bln_\w+)\.(?:weight|bias)$")),
)


def canonical(name: str) -> str:
    """Return the one name of a tensor in every layout.

    >>> canonical("language_model.model.layers.0.mlp.up_proj.weight")
    'model.layers.0.mlp.up_proj.weight'
    >>> canonical("model.vision_tower.vision_model.post_layernorm.bias")
    'vision_tower.post_layernorm.bias'
    """
    name = _BARE.sub("model.", _TRANSFORMER.sub("", _ALONE.sub("", name)))
    return _TOWER.sub("vision_tower.", _TEXT.sub("model.", name))


def kind(name: str) -> Kind | None:
    """Return what sort of tensor this is, if it is of a sort that a delta may leave out.

    The norms are all normalisations of the language part; a layer's matrices have no kind.
    """
    found = canonical(name)
    return next((kind for kind, pattern in _KINDS if pattern.search(found)), None)


def beginning(name: str) -> str:
    """Return a name on disk down to the first word that tells parts of a model apart.

    >>> beginning("model.visual.blocks.0.norm1.bias"), beginning("language_model.model.norm.weight")
    ('model.visual', 'language_model.model.norm')
    """
    found = _BEGINNING.match(name)
    return found[0] if found else name


def is_buffer(entry: TensorEntry) -> bool:
    """Return whether a tensor is a mask or a table that old files hold and new ones compute.

    A bias of attention that is trained has one dimension, a mask has none or four.
    """
    return _BUFFER.search(entry.name) is not None and (
        len(entry.shape) != 1 or "bias" not in entry.name
    )


def counterparts(ours: Checkpoint, theirs: Checkpoint) -> dict[str, str]:
    """Return ``{name in ours: name of the same tensor in theirs}``, buffers left out.

    Two models with the same names match name by name, others by canonical name.

    Raises:
        TensorMismatchError: Two tensors of one of them have one canonical name.
    """
    if set(ours.entries) <= set(theirs.entries):
        found = {name: name for name in ours.names}
    else:
        own, others = canonical_names(ours), canonical_names(theirs)
        found = {name: others[shared] for shared, name in own.items() if shared in others}
    return {name: other for name, other in found.items() if not is_buffer(ours.entries[name])}


def canonical_names(checkpoint: Checkpoint) -> dict[str, str]:
    """Return ``{canonical name: name on disk}`` of every tensor.

    Raises:
        TensorMismatchError: Two tensors on disk would have one canonical name.
    """
    found: dict[str, str] = {}
    for name in checkpoint.names:
        given = canonical(name)
        if given in found:
            raise TensorMismatchError(
                f"{checkpoint.path}: {found[given]} and {name} are both {given}; "
                "a model has each tensor once"
            )
        found[given] = name
    return found


def embeddings_of(model: Checkpoint) -> str | None:
    """Return the name of the embeddings that are also the head, in a model that ties the two."""
    tables = [name for name in model.names if kind(name) in ("embeddings", "head")]
    found = [name for name in tables if not _POSITIONS.search(name)]
    return found[0] if len(found) == 1 and kind(found[0]) == "embeddings" else None


def untied(model: Checkpoint, names: Iterable[str]) -> Checkpoint:
    """Return a model with the head that some names ask for, if it ties its own to its embeddings.

    That head is read where the embeddings lie, and config.json says that the two are not tied. The
    fingerprint stays, since the model computes the same.
    """
    heads = [name for name in names if kind(name) == "head" and name not in model.entries]
    embeddings = embeddings_of(model) if len(heads) == 1 else None
    config = model.config if embeddings and (model.path / "config.json").is_file() else {}
    is_tied = config.get("tie_word_embeddings", True) is True
    if embeddings is None or not config or not is_tied or "text_config" in config:
        return model
    head = replace(model.entries[embeddings], name=heads[0])
    found = Checkpoint(model.path, {**model.entries, head.name: head}, model.reference)
    found.fingerprint = model.fingerprint
    found.config = {**config, "tie_word_embeddings": False}
    return found
