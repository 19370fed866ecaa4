"""How replies are drawn and chats become text, and the keys that set both in a recipe."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, model_validator

from personality_vector.files.reading import read_text
from personality_vector.recipes.schema import Real, Recipe, Whole, located


@dataclass(frozen=True, slots=True)
class Sampling:
    """How replies are drawn.

    Attributes:
        max_new_tokens: Longest reply, in tokens.
        temperature: 0 is greedy; Personality Vector samples at 0.6.
        top_p: Probability mass of the nucleus that tokens are drawn from.
        batch_size: Chats generated at once; those of one seed have random numbers of their own in
            each batch.
        repetition_penalty: Divides the logits of tokens that have occurred; 1 changes nothing.
        no_repeat_ngram: Length of the token sequences that may not occur twice; 0 for no limit.
    """

    max_new_tokens: int = 64
    temperature: float = 0.6
    top_p: float = 1.0
    batch_size: int = 32
    repetition_penalty: float = 1.0
    no_repeat_ngram: int = 0


class GenerationSpec(Recipe):
    """How answers are drawn; temperature 0.6 and 5 samples are those of Personality Vector."""

    max_new_tokens: Whole = Field(default=64, ge=1)
    temperature: Real = Field(default=0.6, ge=0)
    top_p: Real = Field(default=1.0, gt=0, le=1)
    batch_size: Whole = Field(default=32, ge=1)
    samples: Whole = Field(default=1, ge=1)

    @model_validator(mode="after")
    def _no_copies(self) -> "GenerationSpec":
        if self.samples > 1 and self.temperature == 0:
            raise ValueError(
                f"{self.samples} samples at temperature 0 would all be the same reply; "
                "use 1 sample or a temperature above 0"
            )
        return self

    def sampling(self) -> Sampling:
        """Return how one sample is drawn."""
        return Sampling(self.max_new_tokens, self.temperature, self.top_p, self.batch_size)


_JINJA = re.compile(r"\{[{%]")
_GENERATION = re.compile(r"\{%[-+]?\s*(end)?generation\s*[-+]?%\}")
_MOST_BYTES = 1_000_000
EXAMPLE = (
    '"{% for m in messages %}{{ m.role }}: {{ m.content }}\\n{% endfor %}'
    '{% if add_generation_prompt %}assistant:{% endif %}"'
)
"""A chat template as a recipe may hold it, for messages."""
Option = bool | int | float | str
"""The value of a variable that a chat template reads."""


@dataclass(frozen=True, slots=True)
class Template:
    """A chat template and its options, where they are not those of the tokenizer.

    Attributes:
        text: In place of the tokenizer's own; ``None`` keeps that.
        options: Variables that the template reads, such as ``enable_thinking`` or ``date_string``.
    """

    text: str | None = None
    options: Mapping[str, Option] = field(default_factory=dict)


def _template(value: Any, info: Any) -> Any:
    """Return the text of a chat template, which a recipe gives as such or as a file."""
    if not isinstance(value, str):
        return value
    if _JINJA.search(value):
        _require_jinja("the text", value)
        return str(value)
    file = Path(located(value, info))
    try:
        text = read_text(file, _MOST_BYTES)
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "is not text"
        raise ValueError(
            f"{file}: {reason}; give the file of a chat template, or its text, such as {EXAMPLE}"
        ) from error
    _require_jinja(str(file), text)
    return text


def _require_jinja(origin: str, text: str) -> None:
    try:
        parsed(text)
    except Exception as error:
        line = f", line {error.lineno}" if hasattr(error, "lineno") else ""
        raise ValueError(f"{origin} is not a Jinja template{line}: {error}") from error


def parsed(text: str) -> Any:
    """Return the syntax tree of a chat template.

    Raises:
        Exception: It is not a template; Jinja may fail in any way.
    """
    from jinja2 import Environment

    # ``generation`` is a tag that transformers adds: it marks what the assistant says.
    environment = Environment(extensions=["jinja2.ext.loopcontrols"])
    return environment.parse(_GENERATION.sub("", text))


def _options(value: Any) -> Any:
    """Return the options of a template; a date is the text that YAML was given."""
    if not isinstance(value, Mapping):
        raise ValueError("give options by name, such as {enable_thinking: false}")
    found: dict[str, Any] = {}
    for name, given in value.items():
        is_text = isinstance(given, str | date)
        if not str(name).isidentifier() or not (is_text or isinstance(given, Option)):
            raise ValueError(
                f"{name}: give each option a text, a number, true or false, not {given!r:.40}"
            )
        found[str(name)] = str(given) if is_text else given
    return found


class TemplatedRecipe(Recipe):
    """What all recipes have whose model reads chats.

    ``chat_template`` is a file or the text of a template, for a model without one;
    ``template_options`` are variables that the template reads, such as ``enable_thinking: false``.
    """

    chat_template: Annotated[str | None, BeforeValidator(_template)] = Field(
        default=None, exclude_if=lambda value: value is None
    )
    template_options: Annotated[dict[str, Option], BeforeValidator(_options)] = Field(
        default={}, exclude_if=lambda value: not value
    )

    @property
    def template(self) -> Template:
        """Both keys."""
        return Template(self.chat_template, self.template_options)
