"""Changes of the live weights, undone bit for bit: a delta, a merge, a delta with a vector."""

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from personality_vector.interventions.activations import ActivationSteering
from personality_vector.interventions.spec import BaseIntervention, InterventionSpec, require_step
from personality_vector.merging.recipe import DeltaSpec, TermSpec
from personality_vector.recipes.schema import Real, Whole, Words
from personality_vector.subject import Checkpoint, Subject, digest_of, identity_of

if TYPE_CHECKING:
    from personality_vector.delta import Delta
    from personality_vector.steering.hybrid import Hybrid


@dataclass(frozen=True, slots=True)
class WeightEdit(BaseIntervention):
    """``base + strength * delta`` in the live parameters; strength is alpha.

    Attributes:
        delta: A delta of this base. :meth:`check` makes sure of that, since a model in memory has
            no fingerprint.
        label: Defaults to that of the delta.

    Source:
        Task arithmetic, Ilharco et al. 2022, arXiv:2212.04089:
        ``theta_new = theta + lambda * tau``.
    """

    delta: "Delta"
    label: str = ""
    is_of_weights: ClassVar[bool] = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "label", self.label or self.delta.label)

    def identity(self) -> str:
        """Return the digest of the delta and of every saved delta and adapter that it reads.

        A saved delta records its own identity, which alone would not show that one of its bytes
        changed. A checkpoint is known by its fingerprint.
        """
        from personality_vector.delta.lora import is_adapter
        from personality_vector.delta.storage import is_saved_delta
        from personality_vector.files.digests import content_of

        folders = {
            path for path in self.delta.source.inputs if is_saved_delta(path) or is_adapter(path)
        }
        if self.delta.directory is not None:
            folders.add(self.delta.directory)
        return digest_of(identity_of(self), sorted(map(content_of, folders)))

    def check(self, base: Checkpoint) -> None:
        """Refuse a base other than that of the delta.

        Raises:
            BaseMismatchError: The delta is of another model, even one of the same shapes.
            TensorMismatchError: It has a tensor that the base lacks or has in another shape.
        """
        from personality_vector.delta import open_delta

        open_delta(self.delta, base)

    @contextmanager
    def applied(self, subject: Subject, strength: float) -> Generator[Subject]:
        """Edit in place, and restore every parameter bit for bit.

        Strength 0 touches nothing. The yielded subject knows which share of the ideal change
        survived the dtype of the parameters.

        Raises:
            TensorMismatchError: The delta names a tensor that the model lacks or has in another
                shape, or that is tied to another tensor it names.
            NonFiniteError: The strength is not finite, or a weight would not be.
        """
        from personality_vector.merging.live import live_edit

        require_step(self, strength)
        with live_edit(subject.model, self.delta, strength) as realised:
            yield replace(subject, realised=realised.share)

    @contextmanager
    def by_row(self, subject: Subject, strengths: Sequence[float]) -> Generator[Subject]:
        """Add to the outputs of linear layers what the edit would, with a strength for each row.

        ``strengths`` are those that occur; with one alone nothing has to be stated. Nothing is
        rounded to the dtype of the parameters, so in 16 bits it is another model than the edit.

        Raises:
            RowsError: The delta changes something other than linear layers.
            TensorMismatchError: As :meth:`applied`.
            NonFiniteError: A strength is not finite.
        """
        from personality_vector.merging.by_row import added_by_row

        for strength in strengths:
            require_step(self, strength)
        with added_by_row(subject.model, self.delta, strengths) as is_wide:
            yield replace(subject, realised=1.0 if is_wide else None)


class WeightsSpec(DeltaSpec, InterventionSpec):
    """``delta`` is a saved delta; ``tuned`` also a fine-tuned checkpoint or a LoRA adapter."""

    def open(self, base: Checkpoint) -> WeightEdit:
        """Return the edit."""
        from personality_vector.delta import open_delta

        return WeightEdit(open_delta(self.source, base), self.label)


class MergedSpec(InterventionSpec):
    """``terms`` and the keys beside them are those of a merge recipe; the strength is lambda.

    At strength 1 the weights are those of the merge; another strength multiplies the distance.
    """

    terms: tuple[TermSpec, ...] = Field(min_length=1)
    method: str = "task_arithmetic"
    options: dict[str, Real | Whole | str | bool] = Field(default_factory=dict)
    seed: Whole = 0
    include: tuple[Words, ...] = ()
    exclude: tuple[Words, ...] = ()
    embeddings: Literal["strict", "skip", "match"] = "strict"

    def open(self, base: Checkpoint) -> WeightEdit:
        """Return the edit by the merge."""
        from personality_vector.merging.merged import merged_by

        return WeightEdit(merged_by(self, base, self.label), self.label)


@dataclass(frozen=True, slots=True)
class HybridEdit(BaseIntervention):
    """``strength * (delta + vector)``: the delta in the weights, the vector by hooks.

    It is the model whose weights hold the delta, and whose MLPs hold the vector as a bias of
    their last linear map.

    Attributes:
        hybrid: ``delta + vector``, of this very base.
        label: Defaults to that of the hybrid.
    """

    hybrid: "Hybrid"
    label: str = ""
    is_of_weights: ClassVar[bool] = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "label", self.label or self.hybrid.label)

    def identity(self) -> str:
        """Return the digest of both parts, and of every file that the delta reads."""
        return digest_of(type(self).__name__, *(part.identity() for part in self._parts))

    def check(self, base: Checkpoint) -> None:
        """Refuse a base other than that of the two, and one without a place for the vector.

        Raises:
            ModelError: No weight of the architecture can hold the vector, or the base does not have
                this layer.
            BaseMismatchError: One of the two is of another model.
            TensorMismatchError: The delta has a tensor that the base lacks or has in another shape.
        """
        from personality_vector.steering.bake.base import route_for
        from personality_vector.subject.config import read_config

        for part in self._parts:
            part.check(base)
        route_for(read_config(base.path))

    @contextmanager
    def applied(self, subject: Subject, strength: float) -> Generator[Subject]:
        """Edit the weights in place, steer by hooks, and undo both.

        Raises:
            ModelError: No weight of the architecture can hold the vector.
            PersonalityVectorError: As :class:`WeightEdit` and :class:`ActivationSteering`.
        """
        from personality_vector.steering.bake import route_for

        route_for(subject.model.config)
        weights, steering = self._parts
        with weights.applied(subject, strength) as inner, steering.applied(inner, strength) as both:
            yield both

    @contextmanager
    def by_row(self, subject: Subject, strengths: Sequence[float]) -> Generator[Subject]:
        """Do both for each row of a batch with the strength that is stated for it.

        Raises:
            PersonalityVectorError: As :class:`WeightEdit` and :class:`ActivationSteering`.
        """
        weights, steering = self._parts
        with (
            weights.by_row(subject, strengths) as inner,
            steering.by_row(inner, strengths) as both,
        ):
            yield both

    @property
    def _parts(self) -> tuple[WeightEdit, ActivationSteering]:
        vector = self.hybrid.vector
        return (
            WeightEdit(self.hybrid.delta, self.label),
            ActivationSteering(vector, vector.layers, self.label),
        )
