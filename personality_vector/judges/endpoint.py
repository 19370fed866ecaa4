"""A judge behind an OpenAI-compatible server, read by the probabilities of numbers."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import ClassVar

from pydantic import Field

from personality_vector.judges.spec import NumberJudge, expected_number
from personality_vector.progress import progress
from personality_vector.recipes.schema import Whole, Words
from personality_vector.subject import Chat
from personality_vector.subject.endpoint import Endpoint


class EndpointJudge(NumberJudge):
    """A model of a server that returns log-probabilities; each answer is one request of one token.

    ``base_url`` is OpenAI's own unless given, such as ``http://localhost:8000/v1``;
    ``api_key_env`` is the environment variable that holds the key; ``requests`` is how many
    are sent at the same time.

    Source:
        Persona vectors, Chen et al. 2025, arXiv:2507.21509: the expectation of the number under
        the judge's own probabilities, which has no ties and no noise of sampling. Deviation: our
        own prompts.
    """

    model: Words
    base_url: Words | None = None
    api_key_env: Words = "OPENAI_API_KEY"
    requests: Whole = Field(default=16, ge=1)

    highest: ClassVar[int] = 100  # up to here, numbers are single tokens of OpenAI's tokenizers
    neutral: ClassVar[frozenset[str]] = frozenset({"api_key_env", "requests"})

    def open(self) -> "EndpointJudge":
        """Return this judge, after checking that nothing it needs is missing.

        Raises:
            RecipeError: The package ``openai`` is not installed, or the variable is not set.
        """
        Endpoint(self.model, self.base_url, self.api_key_env)  # not kept: no client can be pickled
        return self

    @property
    def name(self) -> str:
        """``endpoint`` and the name of the model."""
        return f"endpoint {self.model}"

    @cached_property
    def endpoint(self) -> Endpoint:
        """The model, opened when it is first asked."""
        return Endpoint(self.model, self.base_url, self.api_key_env)

    def expected(self, prompts: Sequence[Chat]) -> list[float | None]:
        """Return the expected number after each prompt."""
        with ThreadPoolExecutor(self.requests) as pool:
            futures = [pool.submit(self.endpoint.first_token, prompt) for prompt in prompts]
            try:
                return [
                    expected_number(future.result(), self.highest)
                    for future in progress(futures, "judge")
                ]
            except BaseException:
                pool.shutdown(cancel_futures=True)  # or all remaining requests would be sent first
                raise
