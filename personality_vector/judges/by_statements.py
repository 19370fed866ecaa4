"""The offline judge as a rater of personas that are one end of a trait."""

from collections.abc import Sequence
from dataclasses import dataclass

from personality_vector.data.personas import Persona
from personality_vector.errors import DataError
from personality_vector.judges.classifier import StatementJudge
from personality_vector.judges.rating import Exchange, Rating
from personality_vector.judges.scores import HIGHEST, LOWEST


@dataclass(frozen=True, slots=True)
class StatementRater:
    """``100 P(high | reply)`` for a high pole, ``100 P(low | reply)`` for a low one.

    Coherence is 100 wherever the classifier can read the reply. What is empty, one word, a loop
    or unknown to it is unscored, for both.
    """

    judge: StatementJudge

    @property
    def label(self) -> str:
        """What it learned from."""
        return "statements"

    def __call__(self, persona: Persona, exchanges: Sequence[Exchange], /) -> list[Rating]:
        """Return one rating for each exchange, in order.

        Raises:
            DataError: The persona has no pole, or one that the judge has not learned.
        """
        return [self._rate(persona, exchange.reply) for exchange in exchanges]

    def _rate(self, persona: Persona, reply: str) -> Rating:
        if persona.pole is None:
            raise DataError(
                f"a judge that learned from statements rates poles; {persona.name} has none: "
                "choose another kind of judge"
            )
        score = self.judge.score(reply, persona.pole.trait)
        if score.value is None:
            return Rating(None, None, score.reason)
        high = (score.value - LOWEST) / (HIGHEST - LOWEST)
        return Rating(100 * (high if persona.pole.level == "high" else 1 - high), 100.0)
