"""Steering by hooks: a vector added to the output of decoder blocks, or neurons of their MLPs."""

from collections.abc import Generator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator

from personality_vector.errors import ModelError, RecipeError, blame
from personality_vector.interventions.spec import BaseIntervention, InterventionSpec, require_step
from personality_vector.recipes.schema import Layers, LocalPath, Real, Recipe, Whole, Words
from personality_vector.subject import Checkpoint, Subject

if TYPE_CHECKING:
    from personality_vector.interventions.neurons.chosen import NeuronSet
    from personality_vector.steering import Gate, Positions, SteeringVector, Strength

How = Literal["add", "add_keeping_norm", "ablate"]


@dataclass(frozen=True, slots=True)
class ActivationSteering(BaseIntervention):
    """``coefficient * direction`` added to the output of some decoder blocks.

    Attributes:
        vector: In the unit of the activation, not normalised, so coefficients of different
            vectors or models do not compare.
        layers: Decoder blocks, ``-1`` the last; each must have a direction in ``vector``.
        label: Defaults to the label of the vector.
        positions: Which tokens are steered, as a clause such as ``last 1 + response``.
        how: ``add``, ``add_keeping_norm``, or ``ablate``, where 1 removes the direction.
        gate: Steers only chats whose prompt opens it.
        files: Folders of the vector and the gate; their content is part of the identity.
    """

    vector: "SteeringVector"
    layers: Sequence[int]
    label: str = ""
    positions: "str | Positions" = "all"
    how: How = "add"
    gate: "Gate | None" = None
    files: tuple[Path, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "label", self.label or self.vector.label)
        object.__setattr__(self, "layers", tuple(self.layers))
        object.__setattr__(self, "positions", str(self.positions))

    def check(self, base: Checkpoint) -> None:
        """Refuse a base that this cannot steer.

        Raises:
            BaseMismatchError: The vector is of another model, or it or the gate of another width.
            ModelError: The base does not have this layer, or the gate comes after a steered one.
            DataError: No layer is named, or one is named twice.
            TensorMismatchError: The vector has no direction for a layer.
            RecipeError: The positions cannot be read.
        """
        from personality_vector.steering import block_numbers, require_made_from, require_width

        require_made_from(self.label, self.vector.model, base)
        require_width(self.label, self.vector.hidden, base)
        _require_clause(self.positions, base)
        with blame(intervention=self.label):
            layers = block_numbers(self.layers, base)
            if layers:
                self.vector.at(*layers)  # refuses a layer that it has no direction for
            if self.gate is not None:
                require_width("the gate", self.gate.direction.numel(), base)
                block_numbers([self.gate.layer], base)
                if self.gate.layer > min(layers, default=self.gate.layer):
                    raise ModelError(
                        f"the gate at layer {self.gate.layer} comes after the first steered layer, "
                        f"{min(layers)}; move it to layer {min(layers)} or before"
                    )

    def by_row(
        self, subject: Subject, strengths: Sequence[float]
    ) -> AbstractContextManager[Subject]:
        """Steer each row of a batch with the coefficient that is stated for it.

        ``strengths`` are those that occur; with one alone nothing has to be stated.
        """
        from personality_vector.steering import ByRow

        return self.applied(subject, strengths[0] if len(strengths) == 1 else ByRow(strengths))

    @contextmanager
    def applied(self, subject: Subject, strength: "Strength") -> Generator[Subject]:
        """Steer by forward hooks; coefficient 0 registers none. See :func:`steered`.

        ``strength`` is the coefficient: a number, or one for each row of every batch.

        Raises:
            ModelError: The model does not have this layer.
            DataError: No layer is named, or one is named twice.
            TensorMismatchError: The vector has no direction for a layer.
            BaseMismatchError: The vector has another width than the model.
            NonFiniteError: The coefficient is not finite, or the addition would not be.
        """
        from personality_vector.steering import Positions, resolve_layers, steered

        layers = resolve_layers(subject.model, self.layers)
        with steered(
            subject.model,
            {layer: self.vector[layer] for layer in layers},
            strength,
            positions=Positions.parse(self.positions, lambda: subject.tokenizer),
            how=self.how,
            gate=self.gate,
        ):
            yield subject


def _require_clause(positions: "str | Positions", base: Checkpoint) -> None:
    """Refuse positions that cannot be read, before a model is loaded."""
    from personality_vector.steering import Positions
    from personality_vector.subject.models import load_tokenizer

    Positions.parse(positions, lambda: load_tokenizer(base.path))


class GateSpec(Recipe):
    """Steer only chats whose prompt is similar to a direction; see ``steering.Gate``.

    The direction is that of a saved steering vector at ``layer``, a 0-based decoder block.
    """

    vector: LocalPath
    layer: Whole = Field(ge=0)
    threshold: Real = Field(ge=-1, le=1)
    side: Literal["above", "below"] = "above"

    def open(self, base: Checkpoint) -> "Gate":
        """Return the gate.

        Raises:
            BaseMismatchError: Its direction is of another model.
            CheckpointError: The vector is missing or damaged.
        """
        from personality_vector.steering import Gate, SteeringVector, require_made_from

        vector = SteeringVector.load(self.vector)
        require_made_from(self.vector, vector.model, base)
        return Gate(self.layer, vector[self.layer], self.threshold, self.side)


class VectorSpec(InterventionSpec):
    """``vector`` is a saved vector that steers the output of ``layers``, by default at all tokens.

    ``positions`` are a clause such as ``last 1 + response``. ``incremental`` adds at each layer
    only what the vector gains since the layer before. What the vector has in common with the
    vectors ``without`` is taken out at every layer.
    """

    vector: LocalPath
    without: tuple[LocalPath, ...] = Field(default=(), exclude_if=lambda value: not value)
    layers: Layers
    positions: Words = "all"
    how: How = "add"
    gate: GateSpec | None = None
    incremental: bool = False

    @model_validator(mode="after")
    def _require_consistent(self) -> "VectorSpec":
        if self.gate is not None and self.positions != "response":
            raise ValueError("a gate depends on the whole prompt; add positions: response")
        if self.incremental and min(self.layers) < 0:
            raise ValueError("with incremental, layers count from 0: negative ones are not allowed")
        return self

    def open(self, base: Checkpoint) -> ActivationSteering:
        """Return the steering."""
        from personality_vector.steering import SteeringVector

        others = map(SteeringVector.load, self.without)
        vector = SteeringVector.load(self.vector).without(*others)
        if self.incremental:
            vector = vector.at(*self.layers).incremental()
        return ActivationSteering(
            vector,
            self.layers,
            label=self.label,
            positions=self.positions,
            how=self.how,
            gate=self.gate.open(base) if self.gate else None,
            files=(self.vector, *self.without, *([self.gate.vector] if self.gate else [])),
        )


@dataclass(frozen=True, slots=True, eq=False)
class NeuronSteering(BaseIntervention):
    """Raises the neurons of a pole to ``act + gamma * a95 * f(difference)``, silences its opposite.

    ``f(d) = 1 / (1 + exp(-10 (d - 0.15)))``; a silenced neuron is ``min(act, 0)``. The strength is
    gamma; below 0 the two poles change places. At 0 nothing is silenced either, so the effect jumps
    there: even a small gamma silences as much as a large one.

    Attributes:
        neurons: From :func:`find_neurons`.
        label: Defaults to the label of the neurons.
        positions: Which tokens are steered, as a clause such as ``all``.
        keep: Probability that a neuron is raised, drawn again in every forward pass; below 1 the
            logits depend on how a text is split into passes.
        seed: Seed of these draws.
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

    def check(self, base: Checkpoint) -> None:
        """Refuse a base that does not have these neurons.

        Raises:
            BaseMismatchError: They were found in another model.
            ModelError: The base does not have this layer.
            RecipeError: The positions cannot be read.
        """
        from personality_vector.steering import block_numbers, require_made_from

        require_made_from(self.label, self.neurons.model, base, "use neurons that were found in it")
        with blame(intervention=self.label):
            block_numbers(sorted({*self.neurons.positive, *self.neurons.negative}), base)
        _require_clause(self.positions, base)

    @contextmanager
    def applied(self, subject: Subject, strength: float) -> Generator[Subject]:
        """Steer by forward hooks on the activation modules; strength 0 registers none.

        Raises:
            ModelError: The model's neurons cannot be found, or another tool left a hook on it.
            BaseMismatchError: It does not have these neurons.
            NonFiniteError: Gamma is not finite.
            DataError: Where the prompt ends is unknown; see :func:`steered`.
        """
        from personality_vector.interventions.neurons.chosen import steered_neurons
        from personality_vector.steering import Positions

        require_step(self, strength)
        with steered_neurons(
            subject.model,
            self.neurons,
            strength,
            Positions.parse(self.positions, lambda: subject.tokenizer),
            keep=self.keep,
            seed=self.seed,
        ):
            yield subject


class NeuronsSpec(InterventionSpec):
    """``neurons`` are a saved set, steered at ``positions``, by default over the response."""

    neurons: LocalPath
    positions: Words = "response"

    def open(self, base: Checkpoint) -> NeuronSteering:  # noqa: ARG002
        """Return the steering."""
        from personality_vector.interventions.neurons.chosen import NeuronSet

        return NeuronSteering(
            NeuronSet.load(self.neurons), self.label, self.positions, files=(self.neurons,)
        )
