"""Tasks: questions with choices, of which one is right."""

from collections import Counter
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field, model_validator

from personality_vector.data.rows import read_rows
from personality_vector.errors import DataError, some
from personality_vector.recipes.schema import Recipe, Whole, Words, distinct


class TaskItem(Recipe):
    """One question.

    Attributes:
        id: Unique in its task.
        question: The user's message.
        choices: What may be answered.
        answer: The place of the right choice, from 0.
    """

    id: Words
    question: Words
    choices: Annotated[tuple[Words, ...], Field(min_length=2), AfterValidator(distinct)]
    answer: Whole = Field(ge=0)

    @model_validator(mode="after")
    def _answer_is_a_choice(self) -> "TaskItem":
        if self.answer >= len(self.choices):
            raise ValueError(
                f"answer is {self.answer}, and the {len(self.choices)} choices have places 0 to "
                f"{len(self.choices) - 1}"
            )
        return self


def read_task(path: Path) -> tuple[TaskItem, ...]:
    """Return the items of a data file, in its order.

    Raises:
        DataError: It cannot be read, has no items, a row is not an item, or two have one id.
    """
    items = tuple(read_rows(path, TaskItem).values())
    if not items:
        raise DataError(f"{path}: has no items; a row is {{id, question, choices, answer}}")
    twice = [name for name, count in Counter(item.id for item in items).items() if count > 1]
    if twice:
        raise DataError(f"{path}: two items have the same id: {some(twice)}")
    return items
