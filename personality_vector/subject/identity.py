"""Identities: a digest of everything that a number depends on.

A study would resume with stale numbers if an identity left anything out, so nothing is listed by
hand: an object is digested by all of its fields except those declared with ``compare=False``. One
declared with ``metadata=ADDED`` counts where it is not its default, so that older runs resume.
"""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from personality_vector.files import content_of
from personality_vector.files.reading import read_bytes

if TYPE_CHECKING:
    from personality_vector.checkpoint import Checkpoint
    from personality_vector.subject.spec import Template

ADDED = {"added": True}
"""Metadata of a field that earlier versions did not have, and whose default is what they did."""

_CONFIGURED = ("*.json", "*.jinja", "*.model", "*.txt", "*.tiktoken")
_NOT_READ = ("MANIFEST.json", "model.safetensors.index.json")
_TEMPLATES = ("chat_template.jinja", "chat_template.json", "tokenizer_config.json")


def digest_of(*things: Any) -> str:
    """Return 32 hex digits that change with anything in ``things``.

    Numbers, texts, sequences, mappings and tensors count by value, a path by its content, anything
    else by its own ``identity`` or else by its fields.

    Raises:
        TypeError: A thing has neither values nor an identity.
    """
    text = json.dumps([_plain(thing) for thing in things], sort_keys=True, ensure_ascii=False)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def identity_of(thing: Any) -> str:
    """Return the digest of a dataclass: of its type, its ``version`` and its fields.

    ``label`` and fields with ``compare=False`` are left out.
    """
    return digest_of(_fields(thing))


def _plain(thing: Any) -> Any:
    """Return JSON that stands for ``thing``."""
    found: Any
    match thing:
        case None | bool() | int() | str():
            found = thing
        case float():
            found = thing if math.isfinite(thing) else repr(thing)
        case Path():
            found = content_of(thing)
        case Mapping():
            found = {str(_plain(key)): _plain(value) for key, value in thing.items()}
        case AbstractSet():
            found = sorted((_plain(each) for each in thing), key=str)
        case Sequence():
            found = [_plain(each) for each in thing]
        case _:
            found = _of_object(thing)
    return found


def _of_object(thing: Any) -> Any:
    own = getattr(thing, "identity", None)
    if own is not None:
        return own() if callable(own) else own
    if is_dataclass(thing):
        return _fields(thing)
    if hasattr(type(thing), "model_fields"):  # a recipe
        return [type(thing).__name__, _plain(_given(thing))]
    if hasattr(thing, "detach"):  # a tensor
        import torch

        array = thing.detach().cpu().contiguous().reshape(-1)
        raw = bytes(array.view(torch.uint8).numpy().data)
        digest = hashlib.blake2b(raw, digest_size=16).hexdigest()
        return [str(array.dtype), list(thing.shape), digest]
    raise TypeError(f"{type(thing).__name__} has no identity; give it a method identity()")


def _given(recipe: Any) -> dict[str, Any]:
    """Return the fields of a recipe without those that it leaves out of its own text."""
    left_out = {name: field.exclude_if for name, field in type(recipe).model_fields.items()}
    rows = ((name, value, left_out[name]) for name, value in recipe)
    return {
        name: value for name, value, is_left_out in rows if not (is_left_out and is_left_out(value))
    }


def _fields(thing: Any) -> list[Any]:
    kept = [
        field
        for field in fields(thing)
        if field.compare
        and field.name != "label"
        and not (field.metadata == ADDED and getattr(thing, field.name) == field.default)
    ]
    content = {field.name: _plain(getattr(thing, field.name)) for field in kept}
    return [type(thing).__name__, getattr(thing, "version", 1), content]


def base_identity(
    base: "Checkpoint", dtype: str, device: str, template: "Template | None" = None
) -> str:
    """Return the digest of a model as it is asked.

    It covers every byte of the weights, the configuration, tokenizer and chat template, the dtype
    that the weights are loaded in, and the kind of device; also what a recipe puts in place of the
    template, and the date that a template is told.
    """
    from personality_vector.subject.models import resolve_device
    from personality_vector.subject.spec import Template
    from personality_vector.subject.templates import fixed_date

    found = {file.name: file for pattern in _CONFIGURED for file in base.path.glob(pattern)}
    read = {name: file for name, file in found.items() if name not in _NOT_READ}
    given = template or Template()
    own = [read_bytes(read[name]).decode(errors="replace") for name in _TEMPLATES if name in read]
    dates = {fixed_date(text, given.options) for text in ([given.text] if given.text else own)}
    asked = [given] if given != Template() else []
    kind = resolve_device(device).partition(":")[0]
    return digest_of(base.fingerprint.digest, read, dtype, kind, *asked, *filter(None, dates))
