"""Creativity tasks: requests for ideas, what answers are rated for, and the ideas of an answer."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field

from personality_vector.data.personas import Instrument, Item
from personality_vector.data.texts import sentences, words
from personality_vector.errors import DataError, some
from personality_vector.recipes.reading import read_recipe
from personality_vector.recipes.schema import Name, Recipe, Words, distinct
from personality_vector.subject import Rubric

ITEM = "{item}"
"""In the request of a task: each item in its turn."""

TASKS = tuple(
    f"builtin:eval/tasks/creativity/{name}.yaml"
    for name in ("uses", "instances", "similarities", "scientific")
)
"""The tasks that ship, written for this project."""

QUALITY = Rubric(
    "quality",
    "Every idea fits what was asked, is sound, and would work or is true as it is described.",
    "The ideas miss what was asked, are wrong, or could not work.",
    note="How new or how detailed the ideas are does not count here.",
)
"""A judge recognises it by its name, and rates what is right instead of a manner."""

CRITERIA = {
    rubric.trait: rubric
    for rubric in (
        Rubric(
            "originality",
            "The ideas surprise: hardly anybody else would think of them, and still they answer "
            "what was asked.",
            "Every idea is one that comes to everybody's mind first.",
            note="How long or how detailed the ideas are does not count here.",
        ),
        Rubric(
            "elaboration",
            "Each idea is worked out: how it is done, with what, for whom, or why.",
            "The ideas are bare words or phrases, and nothing is explained.",
            note="How new the ideas are does not count here.",
        ),
        QUALITY,
    )
}
"""What answers can be rated for, by name."""


def _known(criterion: str) -> str:
    if criterion not in CRITERIA:
        raise ValueError(f"unknown criterion {criterion!r}; known are {some(CRITERIA)}")
    return criterion


def _with_item(request: str) -> str:
    if ITEM not in request:
        raise ValueError(f"a request contains {ITEM}, in whose place each item is asked for")
    return request


class CreativityItem(Item):
    """One request of a task, and the criteria that its answers are rated for."""

    about: Words
    criteria: tuple[str, ...]


class CreativityTask(Recipe):
    """A request that is made for every item, and the criteria that answers are rated for.

    Attributes:
        name: Begins the identifiers of its items.
        version: Raised when its words change.
        request: What the model is asked, with ``{item}``.
        items: Such as ``a brick``, or a whole sentence.
        criteria: Some of :data:`CRITERIA`, all of them by default.

    Source:
        Alternative uses: Guilford 1967, The Nature of Human Intelligence. Instances and
        similarities: Wallach and Kogan 1965, Modes of Thinking in Young Children. Scientific: Hu
        and Adey 2002, International Journal of Science Education 24. The items are our own.
    """

    name: Name
    version: Words
    request: Annotated[Words, AfterValidator(_with_item)]
    items: Annotated[tuple[Words, ...], Field(min_length=1), AfterValidator(distinct)]
    criteria: Annotated[
        tuple[Annotated[str, AfterValidator(_known)], ...],
        Field(min_length=1),
        AfterValidator(distinct),
    ] = tuple(CRITERIA)

    def requests(self, limit: int | None = None) -> list[CreativityItem]:
        """Return what is asked, for the first items or for all."""
        return [
            CreativityItem(
                id=f"{self.name}-{number:02}",
                text=self.request.replace(ITEM, item),
                about=item,
                criteria=self.criteria,
            )
            for number, item in enumerate(self.items[:limit], start=1)
        ]


def read_tasks(files: Sequence[Path], limit: int | None = None) -> Instrument:
    """Return the requests of several tasks as one instrument.

    Args:
        files: Task files.
        limit: How many items of each task count, from the first.

    Raises:
        RecipeError: A file is not a task.
        DataError: Two tasks have one name.
    """
    tasks = [read_recipe(file, CreativityTask) for file in files]
    names = [task.name for task in tasks]
    if twice := {name for name in names if names.count(name) > 1}:
        raise DataError(f"{files[0]}: two tasks are called {some(twice)}; give each its own name")
    return Instrument(
        name="-".join(names),
        version="-".join(task.version for task in tasks),
        items=tuple(item for task in tasks for item in task.requests(limit)),
    )


_GRAMMAR = frozenset(
    words(
        """a about all also an and any are as at be been but by can could do does for from had has
        have he her his how i if in into is it its just may me might more my no not of off on one
        or our out over she should so some such than that the their them then there these they
        this those through to too up use used using very was we were what when where which while
        who will with would you your"""
    )
)
_MARKER = r"[ \t]*[#*_ \t]*(?:{mark})[*_]*[ \t]+"
_NUMBERED, _BULLETED = (
    re.compile("^" + _MARKER.format(mark=mark), re.MULTILINE)
    for mark in (r"\(?\d{1,3}[.):]", r"[-*+\N{BULLET}]")
)
_GAP = re.compile(r"\n[ \t]*\n(?![ \t])")


def ideas(text: str) -> list[str]:
    r"""Return the ideas of an answer: the entries of its list, or else its sentences.

    Numbered lines are the entries, else those with a bullet; an entry ends at the next one, or at
    an empty line before text that is not indented. Bullets below numbers belong to their number.

    >>> ideas("Sure! 1 brick:\n1. A doorstop\n   - heavy\n2) A stool\n\nEnjoy!")
    ['A doorstop - heavy', 'A stool']
    >>> ideas("Use it as a stool. You can also grind it.")
    ['Use it as a stool.', 'You can also grind it.']
    >>> ideas(" ")
    []
    """
    for marker in (_NUMBERED, _BULLETED):
        _, *entries = marker.split(text)
        found = [" ".join(_GAP.split(entry, maxsplit=1)[0].split()) for entry in entries]
        if any(found):
            return [entry for entry in found if entry]
    return sentences(text) if text.strip() else []


def content_words(idea: str) -> frozenset[str]:
    """Return the words that say what an idea is, in lower case and without the ``s`` of a plural.

    Numbers do not count, nor do words of grammar unless there are no others.

    >>> sorted(content_words("Use the BRICKS as a door stop")) == ["brick", "door", "stop"]
    True
    """
    found = [word for word in words(idea) if not word.isdigit()]
    kept = [word for word in found if word not in _GRAMMAR] or found
    return frozenset(_singular(word) for word in kept)


def _singular(word: str) -> str:
    is_plural = len(word) > 3 and word.endswith("s") and not word.endswith(("ss", "us", "is"))
    return word[:-1] if is_plural else word


def distinct_ideas(text: str) -> dict[frozenset[str], str]:
    """Return the ideas of an answer by their content words; of equal ones, the first."""
    found: dict[frozenset[str], str] = {}
    for idea in ideas(text):
        if key := content_words(idea):
            found.setdefault(key, idea)
    return found
