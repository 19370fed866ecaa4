"""The README.md of a merged checkpoint, with the Hub's metadata."""

from collections.abc import Mapping
from typing import Any

import yaml


def model_card(merge: Mapping[str, Any]) -> str:
    """Return a model card for the merge that a manifest describes."""
    metadata = yaml.safe_dump(
        {
            "base_model": merge["base"]["reference"],
            "base_model_relation": "merge",
            "library_name": "transformers",
            "tags": ["merge", "personality-vector"],
        },
        sort_keys=True,
    )
    rows = [f"| {_cell(term['label'])} | {term['alpha']:g} |" for term in merge["terms"]]
    options = ", ".join(f"{name} = {value}" for name, value in merge["options"].items())
    realised = "-" if merge["realised"] is None else f"{merge['realised']:.4f}"
    return "\n".join(
        [
            f"---\n{metadata}---",
            "# Merged model",
            "",
            f"Method: {merge['method']} ({merge['source']}); {options}; seed {merge['seed']}.",
            "",
            "| delta | alpha |",
            "|---|---|",
            *rows,
            "",
            f"Share of the ideal change that survived rounding: {realised}. "
            "MANIFEST.json says exactly what this was made of.",
            "",
        ]
    )


def _cell(text: str) -> str:
    """Return ``text`` as one harmless cell of a Markdown table."""
    plain = "".join(character if character.isprintable() else " " for character in text)
    return "".join(f"\\{c}" if c in "\\`*_{}[]<>()#+!|" else c for c in plain)
