"""Parts of model cards: the Hub's metadata, and text that is shown as it is."""

import re
from typing import Any

from personality_vector.checkpoint.reader import is_hub_id

_MARKUP = re.compile(r"[\\`*_{}\[\]<>#+!|~&$@]|(?<=www)\.|:(?=//)", re.IGNORECASE)

LOADING = """\
from transformers import AutoModelForCausalLM, AutoTokenizer

folder = "."  # this folder, or the name of this repository on the Hub
model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
tokenizer = AutoTokenizer.from_pretrained(folder)"""
"""Python that loads a checkpoint from the folder of its card."""


def metadata(base: str, relation: str, tags: list[str], library: str = "transformers") -> str:
    """Return the front matter of a card.

    A ``base_model`` has to be a Hub id, so a path on this machine is left out.
    """
    from huggingface_hub import ModelCardData

    known: dict[str, Any] = {"base_model": base, "base_model_relation": relation}
    data = ModelCardData(library_name=library, tags=tags, **(known if is_hub_id(base) else {}))
    return f"---\n{str(data.to_yaml()).rstrip()}\n---"


def printable(text: object) -> str:
    """Return one line without control characters."""
    return "".join(character if character.isprintable() else " " for character in str(text))


def shown(text: object) -> str:
    """Return Markdown that shows ``text`` as it is, in a paragraph or in the cell of a table."""
    return _MARKUP.sub(r"\\\g<0>", printable(text))


def fenced(text: str, language: str = "text") -> str:
    """Return a code block; its fence is longer than any run of backticks inside."""
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence}{language}\n{text}\n{fence}"
