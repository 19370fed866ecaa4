"""What acts on a model while it is trained, and is gone where it is evaluated and saved."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn

from personality_vector.checkpoint import Checkpoint
from personality_vector.errors import TrainingError
from personality_vector.finetuning.recipe import TrainRecipe

Penalty = Callable[[Mapping[str, Any]], Tensor | None]
"""Takes the batch that the model has just read; returns what to add to its loss, if anything."""


@runtime_checkable
class Guidance(Protocol):
    """Steering, or a term of the loss, during training alone.

    It can be pickled, since the poles of a recipe may be trained in processes of their own.
    """

    def identity(self) -> str:
        """Return the digest of its options and of what it was read from."""
        ...

    def check(self, base: Checkpoint) -> None:
        """Refuse a base that it does not fit, before the base is loaded."""
        ...

    def applied(self, model: nn.Module) -> AbstractContextManager[Penalty]:
        """Act on ``model`` during one forward and backward pass, and yield its penalty.

        Args:
            model: The model without the wrappers of several processes, with those of PEFT.
        """
        ...


def require_guidance(recipe: TrainRecipe, guidance: Guidance | None, base: Checkpoint) -> None:
    """Check that a recipe that steers is given its steering, and that this fits the base.

    Raises:
        TrainingError: It is not given; without it the result would be a plain fine-tune.
        PersonalityVectorError: It does not fit.
    """
    if guidance is not None:
        guidance.check(base)
    elif recipe.steer is not None:
        raise TrainingError(
            "steer: this recipe steers its training; pass guidance=TrainingSteering.open(...) "
            "of personality_vector.steering.training, as `pvec train` does"
        )
