"""Prompts that give the model one role, or several to think from."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from pydantic import AfterValidator, Field

from personality_vector.errors import DataError
from personality_vector.interventions.spec import InterventionSpec
from personality_vector.interventions.system_message import SystemMessage, enumerated
from personality_vector.recipes.fields import Words, distinct

if TYPE_CHECKING:
    from personality_vector.checkpoint import Checkpoint


@dataclass(frozen=True, slots=True)
class RolePrompt(SystemMessage):
    """A system message that gives the model one role, or several whose views it has to join.

    Strength 1 is the prompt, 0 none.

    >>> RolePrompt(["a futurist"]).sentence(1.0)
    'You are a futurist. Answer as one.'

    Attributes:
        roles: Each a person, with an article: ``a futurist``.
        label: Defaults to the roles.

    Raises:
        DataError: There is no role, one is blank or given twice, or they are one text.

    Source:
        With several roles, multi-role prompting as BILLY has it for a baseline, arXiv:2510.10157:
        one call, in which one model takes every view and answers once. Deviation: our own words.
    """

    roles: Sequence[str]
    label: str = ""

    def __post_init__(self) -> None:
        if isinstance(self.roles, str):
            raise DataError(f"roles are a list, such as [{self.roles!r}]")
        object.__setattr__(self, "roles", tuple(self.roles))
        object.__setattr__(self, "label", self.label or f"roles {' + '.join(self.roles)}")
        if not self.roles or not all(role.strip() for role in self.roles):
            raise DataError(f"{self.label}: name at least one role, such as a futurist")
        if len(set(self.roles)) < len(self.roles):
            raise DataError(f"{self.label}: names a role twice")

    def text_at(self, step: int) -> str:  # noqa: ARG002
        """Return the prompt."""
        if len(self.roles) == 1:
            return f"You are {self.roles[0]}. Answer as one."
        return (
            f"Before you answer, look at the matter in turn as {enumerated(list(self.roles))} "
            "would, and note what only that person would see. Then give one answer that joins "
            "these views. Speak with one voice, and do not mention the roles."
        )


class RolesSpec(InterventionSpec):
    """``roles`` are persons such as ``a futurist``."""

    roles: Annotated[tuple[Words, ...], Field(min_length=1), AfterValidator(distinct)]

    def read(self, base: "Checkpoint") -> RolePrompt:  # noqa: ARG002
        """Return the prompt."""
        return RolePrompt(self.roles, self.label)
