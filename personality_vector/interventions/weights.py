"""A delta added to the live weights, and taken back bit for bit."""

from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import model_validator

from personality_vector.interventions.spec import InterventionSpec, Usual, require_step
from personality_vector.recipes.schema import LocalPath, ModelRef
from personality_vector.subject.identity import digest_of, identity_of

if TYPE_CHECKING:
    from personality_vector.checkpoint import Checkpoint
    from personality_vector.delta import Delta
    from personality_vector.subject.subject import Subject


@dataclass(frozen=True, slots=True)
class WeightEdit(Usual):
    """``base + strength * delta`` in the live parameters; strength is alpha.

    Attributes:
        delta: Of this very base, which :meth:`check` makes sure of: a model in memory has no
            fingerprint.
        label: Defaults to that of the delta.

    Source:
        Task arithmetic, Ilharco et al. 2022, arXiv:2212.04089:
        ``theta_new = theta + lambda * tau``.
    """

    delta: "Delta"
    label: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "label", self.label or self.delta.label)

    def identity(self) -> str:
        """Return the digest of the delta and of every saved delta and adapter that it reads.

        The delta's own identity is what a saved delta says of itself, so it alone would not see
        that a byte of it changed. A checkpoint is known by its fingerprint.
        """
        from personality_vector.checkpoint.digests import content_of

        return digest_of(identity_of(self), sorted(map(content_of, set(_folders(self.delta)))))

    def check(self, base: "Checkpoint") -> None:
        """Refuse another base than that of the delta.

        Raises:
            BaseMismatchError: The delta is of another model, even one of the same shapes.
            TensorMismatchError: It has a tensor that the base has not, or has otherwise.
        """
        from personality_vector.delta import open_delta

        open_delta(self.delta, base)

    @contextmanager
    def applied(self, subject: "Subject", strength: float) -> Generator["Subject"]:
        """Edit in place, and restore every parameter bit for bit.

        Strength 0 touches nothing. What is yielded knows the share of the ideal change that
        survived the dtype of the parameters.

        Raises:
            TensorMismatchError: The delta names a tensor that the model has not, that has another
                shape there, or that is tied to another one that it names.
            NonFiniteError: The strength is not finite, or a weight would not be.
        """
        from personality_vector.merging.live import live_edit

        require_step(self, strength)
        with live_edit(subject.model, self.delta, strength) as realised:
            yield replace(subject, realised=realised.share)


def _folders(delta: "Delta") -> Iterator[Path]:
    """Yield the folders of saved deltas and adapters that a delta is read from."""
    from personality_vector.delta.lora import is_adapter
    from personality_vector.delta.storage import is_saved_delta

    if delta.directory is not None:
        yield delta.directory
    for path in delta.source.inputs:
        if is_saved_delta(path) or is_adapter(path):
            yield path


class WeightsSpec(InterventionSpec):
    """``delta`` is a saved delta; ``tuned`` is a fine-tuned checkpoint or a LoRA adapter."""

    delta: LocalPath | None = None
    tuned: ModelRef | None = None

    @model_validator(mode="after")
    def _one_source(self) -> "WeightsSpec":
        if (self.delta is None) == (self.tuned is None):
            raise ValueError("give either delta (a saved delta) or tuned (a checkpoint or adapter)")
        return self

    def read(self, base: "Checkpoint") -> WeightEdit:
        """Return the edit."""
        from personality_vector.delta import open_delta

        return WeightEdit(open_delta(self.delta or self.tuned or "", base), self.label)
