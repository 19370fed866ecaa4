"""An intervention on top of others: a personality over a domain, a prompt over a weight vector."""

from collections.abc import Generator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace

from personality_vector.interventions.spec import InterventionSpec, require_step
from personality_vector.subject import Checkpoint, Intervention, Subject, digest_of


@dataclass(frozen=True, slots=True)
class Stacked:
    """An intervention at the strength of a point, after others whose strengths never change.

    At strength 0 the others still act, so that this is not the base.

    Attributes:
        top: The intervention that the strength is that of.
        below: What is done first, each with its strength.

    Raises:
        RecipeError: One below does not have its strength.
        NonFiniteError: A strength below is NaN or infinite.
    """

    top: Intervention
    below: Sequence[tuple[Intervention, float]]

    def __post_init__(self) -> None:
        for one, strength in self.below:
            require_step(one, strength)

    @property
    def label(self) -> str:
        """Name in tables and figures: that of the top."""
        return self.top.label

    @property
    def steps(self) -> tuple[float, ...] | None:
        """The possible strengths of the top."""
        return self.top.steps

    @property
    def acts_at_zero(self) -> bool:
        """Whether anything is done at strength 0."""
        return any(
            strength != 0.0 or getattr(one, "acts_at_zero", False) for one, strength in self.below
        )

    def identity(self) -> str:
        """Return the digest of all of them, in their order, and of the strengths below."""
        below = [(one.identity(), strength) for one, strength in self.below]
        return digest_of(type(self).__name__, self.top.identity(), below)

    def check(self, base: Checkpoint) -> None:
        """Refuse a base that one of them refuses.

        Raises:
            PersonalityVectorError: As their own checks.
        """
        for one, _ in (*self.below, (self.top, 0.0)):
            one.check(base)

    @contextmanager
    def applied(self, subject: Subject, strength: float) -> Generator[Subject]:
        """Apply those below, and then the top; all are undone in the opposite order.

        Each edit of weights is rounded to their dtype in turn, so where there are several, which
        share of them survives is not known.

        Raises:
            PersonalityVectorError: As the interventions themselves.
        """
        with ExitStack() as stack:
            shares = []
            for one, own in (*self.below, (self.top, strength)):
                below = replace(subject, realised=None)
                subject = stack.enter_context(one.applied(below, own))
                shares += [subject.realised] * (subject.realised is not None)
            yield replace(subject, realised=shares[0] if len(shares) == 1 else None)


def opened(spec: InterventionSpec, base: Checkpoint) -> Intervention:
    """Return the intervention of a recipe, on top of those that it names.

    Raises:
        PersonalityVectorError: What it names is missing or damaged, or a strength is not one.
    """
    top = spec.open(base)
    below = [
        (opened(one, base), strength) for one in spec.on_top_of for strength in one.strengths or ()
    ]
    return Stacked(top, below) if below else top
