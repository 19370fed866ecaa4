"""The model card of a merge: the Hub's metadata, and the manifest in words."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import yaml

from personality_vector.checkpoint.cards import LOADING, fenced, metadata, printable, shown

_COLUMNS = {
    "label": "delta",
    "alpha": "alpha",
    "pole": "pole",
    "of": "its base",
    "norm": "norm",
    "tensors": "tensors changed",
    "identity": "identity",
}


def model_card(merge: Mapping[str, Any]) -> str:
    """Return a model card for a merge.

    Text from a recipe or a label is shown as it is, never as markup or as a link.

    Args:
        merge: The content of the manifest: the description of the plan; optionally ``realised``,
            ``tensors``, and the ``recipe`` that makes the merge again.
    """
    base, tags = merge["base"]["reference"], ["merge", "personality-vector", merge["method"]]
    options = "".join(
        f", {shown(name)} = {shown(_value(value))}" for name, value in merge["options"].items()
    )
    again = []
    if "recipe" in merge:
        recipe = yaml.safe_dump(merge["recipe"], sort_keys=False).rstrip("\n")
        again = [
            "## Make it again",
            "Save this as `recipe.yaml`, set the paths, and run "
            "`pvec merge recipe.yaml --out DIR`:",
            fenced(recipe, "yaml"),
        ]
    parts = [
        metadata(base, "merge", tags),
        "# Merged model",
        f"The base, {shown(base)}, and the deltas below (fine-tuned "
        "minus base, per weight), merged by personality-vector:",
        fenced(_formula(merge)),
        _table(merge["terms"]),
        f"Method: {shown(merge['method'])} ({shown(merge['source'])}){options}; "
        f"seed {_value(merge['seed'])}.",
        _rounding(merge),
        *(f"Note: {shown(note)}" for note in merge.get("notes", ())),
        *again,
        "## Use",
        fenced(LOADING, "python"),
        f"Fingerprint of the base: {shown(merge['base'].get('fingerprint', '-'))}. MANIFEST.json "
        "says exactly what this was made of.",
    ]
    return "\n\n".join(parts) + "\n"


def _formula(merge: Mapping[str, Any]) -> str:
    """Return ``theta = base + 0.8 * a - 0.3 * b``, or ``theta = base + ties(0.8 * a, ...)``."""
    rows = [(term["alpha"], printable(term["label"])) for term in merge["terms"]]
    terms = [
        f"{alpha:g} * {label}" if isinstance(alpha, int | float) else f"alpha_{number} * {label}"
        for number, (alpha, label) in enumerate(rows, 1)
    ]
    factor = merge["options"].get("lambda", 1.0)
    if merge["method"] != "task_arithmetic" or factor != 1.0:
        return f"theta = base + {printable(merge['method'])}({', '.join(terms)})"
    return ("theta = base + " + " + ".join(terms)).replace("+ -", "- ")


def _table(terms: Iterable[Mapping[str, Any]]) -> str:
    """Return a row for each term; a column that no term fills is left out."""
    rows = [
        {**term, "tensors": f"{term['tensors']} of {term['of_tensors']}"}
        if "of_tensors" in term
        else term
        for term in terms
    ]
    keys = [key for key in _COLUMNS if any(row.get(key) is not None for row in rows)]
    cells = [[shown(_value(row.get(key))) for key in keys] for row in rows]
    lines = [[_COLUMNS[key] for key in keys], ["---"] * len(keys), *cells]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _rounding(merge: Mapping[str, Any]) -> str:
    """Return how the merge was rounded, and how much of the change rounding left."""
    output = merge.get("output", {})
    dtype = output.get("dtype", "same").replace("same", "the dtype of the base")
    said = f"Written in {shown(dtype)}, rounding {shown(output.get('rounding', 'nearest'))}."
    realised = merge.get("realised")
    if realised is not None:
        said += (
            f" Realised alpha: {realised:.4f} times the nominal one (the written change, projected "
            "on the ideal change)."
        )
    rows = merge.get("tensors", {}).values()
    change, base = (math.hypot(*(row[key] for row in rows)) for key in ("change_norm", "base_norm"))
    if base:
        said += f" The change has norm {change:.4g}, the tensors that it changes {base:.4g}."
    return said


def _value(value: Any) -> str:
    """Return a value of a recipe as one line: numbers, and lists and tables of them."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {_value(item)}" for key, item in value.items())
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_value, value))}]"
    if value is None or isinstance(value, bool):
        return "-" if value is None else str(value).lower()
    return f"{value:g}" if isinstance(value, int | float) else str(value)
