"""A judge behind an OpenAI-compatible server, read by the probabilities of its numbers."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from personality_vector.data.personas import Persona
from personality_vector.judges.prompts import coherence_prompt, trait_prompt
from personality_vector.judges.rating import (
    Exchange,
    Rating,
    expected_number,
    rating,
)
from personality_vector.progress import progress
from personality_vector.subject.endpoint import Endpoint

_HIGHEST = 100  # up to 100, numbers are single tokens of OpenAI's tokenizers


@dataclass(frozen=True, slots=True)
class EndpointRater:
    """Two requests for each reply: trait and coherence, each one token.

    Attributes:
        endpoint: The model; it must return log-probabilities.
        requests: Replies rated at the same time.

    Source:
        Persona vectors, Chen et al. 2025, arXiv:2507.21509: the expectation of the number under
        the judge's own probabilities, which has no ties and no noise of sampling. Deviation: our
        own prompts.
    """

    endpoint: Endpoint
    requests: int = 16

    @property
    def label(self) -> str:
        """The model's name."""
        return f"endpoint {self.endpoint.model}"

    def __call__(self, persona: Persona, exchanges: Sequence[Exchange], /) -> list[Rating]:
        """Return one rating for each exchange, in order.

        Raises:
            ModelError: The server fails, or returns no log-probabilities.
        """
        with ThreadPoolExecutor(self.requests) as pool:
            futures = [pool.submit(self._rate, persona, exchange) for exchange in exchanges]
            try:
                return [future.result() for future in progress(futures, "judge")]
            except BaseException:
                pool.shutdown(cancel_futures=True)  # or all that is left would be asked first
                raise

    def _rate(self, persona: Persona, exchange: Exchange) -> Rating:
        prompts = (
            trait_prompt(persona, exchange, _HIGHEST),
            coherence_prompt(exchange, _HIGHEST),
        )
        return rating(*(expected_number(self.endpoint.first_token(p), _HIGHEST) for p in prompts))
