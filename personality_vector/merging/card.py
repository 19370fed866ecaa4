"""The README.md of a merged checkpoint: the Hub's metadata, and what the manifest says in words."""

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

import yaml

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)
_MARKUP = re.compile(r"[\\`*_{}\[\]<>#+!|~&$@]|(?<=www)\.|:(?=//)", re.IGNORECASE)
_COLUMNS = {
    "label": "delta",
    "alpha": "alpha",
    "pole": "pole",
    "of": "its base",
    "norm": "norm",
    "tensors": "tensors changed",
    "identity": "identity",
}
_LOADING = """\
from transformers import AutoModelForCausalLM, AutoTokenizer

folder = "."  # this folder, or the name of this repository on the Hub
model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
tokenizer = AutoTokenizer.from_pretrained(folder)"""


def model_card(merge: Mapping[str, Any]) -> str:
    """Return a model card for a merge.

    Whatever a recipe or a label says is shown as it is: it is neither markup nor a link.

    Args:
        merge: Content of the manifest: the plan's description; optionally ``realised`` and
            ``tensors``, and ``recipe`` (JSON-like), by which the merge can be made again.
    """
    parts = [
        f"---\n{_metadata(merge)}\n---",
        "# Merged model",
        f"The base, {_text(merge['base']['reference'])}, and the deltas below (fine-tuned "
        "minus base, per weight), merged by personality-vector:",
        _fenced(_formula(merge)),
        _table(merge["terms"]),
        _method(merge),
        _rounding(merge),
        *(f"Note: {_text(note)}" for note in merge.get("notes", ())),
        *_reproduction(merge),
        "## Use",
        _fenced(_LOADING, "python"),
        f"Fingerprint of the base: {_text(merge['base'].get('fingerprint', '-'))}. MANIFEST.json "
        "says exactly what this was made of.",
    ]
    return "\n\n".join(parts) + "\n"


def _metadata(merge: Mapping[str, Any]) -> str:
    """Return the Hub's metadata; it takes a ``base_model`` only by its name on the Hub."""
    from huggingface_hub import ModelCardData

    reference = merge["base"]["reference"]
    known = {"base_model": reference, "base_model_relation": "merge"}
    data = ModelCardData(
        library_name="transformers",
        tags=["merge", "personality-vector", merge["method"]],
        **(known if _HUB_ID.fullmatch(reference) else {}),
    )
    return data.to_yaml()


def _formula(merge: Mapping[str, Any]) -> str:
    """Return ``theta = base + 0.8 * a - 0.3 * b``, or ``theta = base + ties(0.8 * a, ...)``."""
    terms = []
    for number, term in enumerate(merge["terms"], 1):
        alpha = term["alpha"]
        shown = f"{alpha:g}" if isinstance(alpha, int | float) else f"alpha_{number}"
        terms.append(f"{shown} * {_printable(term['label'])}")
    factor = merge["options"].get("lambda", 1.0)
    if merge["method"] != "task_arithmetic" or factor != 1.0:
        return f"theta = base + {_printable(merge['method'])}({', '.join(terms)})"
    return ("theta = base + " + " + ".join(terms)).replace("+ -", "- ")


def _table(terms: Iterable[Mapping[str, Any]]) -> str:
    """Return a row for each term; a column that no term fills is left out."""
    rows = [dict(term) for term in terms]
    for row in rows:
        if "of_tensors" in row:
            row["tensors"] = f"{row['tensors']} of {row['of_tensors']}"
    keys = [key for key in _COLUMNS if any(row.get(key) is not None for row in rows)]
    cells = [[_text(_value(row.get(key))) for key in keys] for row in rows]
    lines = [[_COLUMNS[key] for key in keys], ["---"] * len(keys), *cells]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _method(merge: Mapping[str, Any]) -> str:
    options = "".join(
        f", {_text(name)} = {_text(_value(value))}" for name, value in merge["options"].items()
    )
    return (
        f"Method: {_text(merge['method'])} ({_text(merge['source'])}){options}; "
        f"seed {_value(merge['seed'])}."
    )


def _rounding(merge: Mapping[str, Any]) -> str:
    """Return how it was rounded, and how much of the change that left."""
    output = merge.get("output", {})
    dtype = output.get("dtype", "same")
    dtype = "the dtype of the base" if dtype == "same" else dtype
    said = f"Written in {_text(dtype)}, rounding {_text(output.get('rounding', 'nearest'))}."
    realised = merge.get("realised")
    if realised is not None:
        said += (
            f" Realised alpha: {realised:.4f} times the nominal one (the written change, projected "
            "on the ideal change)."
        )
    change, base = _norm(merge, "change_norm"), _norm(merge, "base_norm")
    if base:
        said += f" The change has norm {change:.4g}, the tensors that it changes {base:.4g}."
    return said


def _norm(merge: Mapping[str, Any], key: str) -> float:
    return math.hypot(*(row[key] for row in merge.get("tensors", {}).values()))


def _reproduction(merge: Mapping[str, Any]) -> list[str]:
    if "recipe" not in merge:
        return []
    recipe = yaml.safe_dump(merge["recipe"], sort_keys=False).rstrip("\n")
    said = "Save this as `recipe.yaml`, set the paths, and run `pvec merge recipe.yaml --out DIR`:"
    return ["## Make it again", said, _fenced(recipe, "yaml")]


def _value(value: Any) -> str:
    """Return a value of a recipe as one line: numbers, and lists and tables of them."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {_value(item)}" for key, item in value.items())
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_value, value))}]"
    if value is None or isinstance(value, bool):
        return "-" if value is None else str(value).lower()
    return f"{value:g}" if isinstance(value, int | float) else str(value)


def _printable(text: object) -> str:
    """Return one line without control characters."""
    return "".join(character if character.isprintable() else " " for character in str(text))


def _text(text: object) -> str:
    """Return Markdown that shows ``text`` as it is, in a paragraph or in the cell of a table."""
    return _MARKUP.sub(r"\\\g<0>", _printable(text))


def _fenced(text: str, language: str = "text") -> str:
    """Return a code block; its fence is longer than any run of backticks inside."""
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence}{language}\n{text}\n{fence}"
