"""Neuron steering: the neurons of a pole raised, those of its opposite silenced."""

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from personality_vector.errors import RecipeError, blame
from personality_vector.interventions.spec import InterventionSpec, Usual, require_step
from personality_vector.recipes.schema import LocalPath, Words

if TYPE_CHECKING:
    from personality_vector.checkpoint import Checkpoint
    from personality_vector.interventions.neurons.chosen import NeuronSet
    from personality_vector.steering import Positions
    from personality_vector.subject.subject import Subject


@dataclass(frozen=True, slots=True, eq=False)
class NeuronSteering(Usual):
    """``act + gamma * a95 * f(difference)`` on the neurons of a pole; the opposite's are silent.

    ``f(d) = 1 / (1 + exp(-10 (d - 0.15)))``, and silent is ``min(act, 0)``. Strength is gamma;
    below 0 the two poles change places. At 0 nothing is silenced either, so the effect jumps
    there: a small gamma silences as much as a large one.

    Attributes:
        neurons: From :func:`find_neurons`.
        label: Defaults to that of the neurons.
        positions: Which tokens are steered, as a clause such as ``all``.
        keep: Probability that a neuron is raised, drawn anew in every forward pass; below 1 the
            logits depend on how a text is cut into passes.
        seed: Of these draws.
        files: Folders that the neurons were read from; their content is part of the identity.

    Raises:
        RecipeError: ``keep`` is not in (0, 1].

    Source:
        NPTI, Deng et al. 2024, arXiv:2410.12327. Deviations: ``keep`` is 1, in their code 0.9,
        since a model that changes from pass to pass has no likelihood; steered tokens are those
        of the response wherever they are read, also in a teacher-forced pass.
    """

    neurons: "NeuronSet"
    label: str = ""
    positions: "str | Positions" = "response"
    keep: float = 1.0
    seed: int = 0
    files: tuple[Path, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "label", self.label or self.neurons.label)
        object.__setattr__(self, "positions", str(self.positions))
        if not 0.0 < self.keep <= 1.0:
            raise RecipeError(f"{self.label}: keep must be in (0, 1], got {self.keep}")

    def check(self, base: "Checkpoint") -> None:
        """Refuse a base that has not these neurons.

        Raises:
            BaseMismatchError: They were found in another model.
            ModelError: The base has no such layer.
            RecipeError: The positions cannot be read.
        """
        from personality_vector.steering.belonging import block_numbers, require_made_from
        from personality_vector.steering.positions import positions_of
        from personality_vector.subject.models import load_tokenizer

        remedy = "use neurons that were found in it"
        require_made_from(self.label, self.neurons.model, base, remedy)
        with blame(intervention=self.label):
            block_numbers(sorted({*self.neurons.positive, *self.neurons.negative}), base)
        positions_of(self.positions, lambda: load_tokenizer(base.path))

    @contextmanager
    def applied(self, subject: "Subject", strength: float) -> Generator["Subject"]:
        """Steer by forward hooks on the activation modules; strength 0 registers none.

        Raises:
            ModelError: The model's neurons cannot be found, or another tool left a hook on it.
            BaseMismatchError: It has not these neurons.
            NonFiniteError: Gamma is not finite.
            DataError: Where the prompt ends is unknown; see :func:`steered`.
        """
        from personality_vector.interventions.neurons.hooks import steered_neurons
        from personality_vector.steering.positions import positions_of

        require_step(self, strength)
        positions = positions_of(self.positions, lambda: subject.tokenizer)
        with steered_neurons(
            subject.model, self.neurons, strength, positions, keep=self.keep, seed=self.seed
        ):
            yield subject


class NeuronsSpec(InterventionSpec):
    """``neurons`` are a saved set, steered at ``positions``, by default over the response."""

    neurons: LocalPath
    positions: Words = "response"

    def read(self, base: "Checkpoint") -> NeuronSteering:  # noqa: ARG002
        """Return the steering."""
        from personality_vector.interventions.neurons.chosen import NeuronSet

        neurons = NeuronSet.load(self.neurons)
        return NeuronSteering(neurons, self.label, self.positions, files=(self.neurons,))
