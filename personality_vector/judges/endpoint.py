"""A judge behind an OpenAI-compatible server, read by the probabilities of its numbers."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from personality_vector.judges.prompts import VERSION, expected_number, prompt_for, score_of
from personality_vector.judges.spec import JudgeSpec
from personality_vector.progress import progress
from personality_vector.recipes.schema import Whole, Words
from personality_vector.subject.endpoint import Endpoint
from personality_vector.subject.identity import identity_of
from personality_vector.subject.protocols import Answer, Rubric, Score

if TYPE_CHECKING:
    from personality_vector.subject.subject import Subject

_HIGHEST = 100  # up to 100, numbers are single tokens of OpenAI's tokenizers
_KEY = "OPENAI_API_KEY"


class EndpointSpec(JudgeSpec):
    """A model of a server that returns log-probabilities.

    ``base_url`` is OpenAI's own unless given, ``api_key_env`` the variable that holds the key;
    ``requests`` are sent at the same time.
    """

    model: Words
    base_url: Words | None = None
    api_key_env: Words = _KEY
    requests: Whole = Field(default=16, ge=1)

    def open(self) -> "EndpointJudge":
        """Return the judge.

        Raises:
            RecipeError: The package ``openai`` or the API key is missing.
        """
        return EndpointJudge(self.model, self.base_url, self.api_key_env, self.requests)


@dataclass(frozen=True)
class EndpointJudge:
    """One request of one token for each answer.

    Attributes:
        model: Its name at the server; it must return log-probabilities.
        base_url: Such as ``http://localhost:8000/v1``; ``None`` is OpenAI's own.
        api_key_env: Environment variable that holds the key.
        requests: Answers rated at the same time.

    Raises:
        RecipeError: The package ``openai`` is not installed, or the variable is not set.

    Source:
        Persona vectors, Chen et al. 2025, arXiv:2507.21509: the expectation of the number under
        the judge's own probabilities, which has no ties and no noise of sampling. Deviation: our
        own prompts.
    """

    model: str
    base_url: str | None = None
    api_key_env: str = field(default=_KEY, compare=False)
    requests: int = field(default=16, compare=False)

    scale: ClassVar[tuple[float, float]] = (0.0, float(_HIGHEST))
    version: ClassVar[str] = VERSION

    def __post_init__(self) -> None:
        # Refused now, not hours later; a client that is kept could not go to another process.
        Endpoint(self.model, self.base_url, self.api_key_env)

    @property
    def name(self) -> str:
        """With the name of the model."""
        return f"endpoint {self.model}"

    @cached_property
    def endpoint(self) -> Endpoint:
        """The model, once it is asked."""
        return Endpoint(self.model, self.base_url, self.api_key_env)

    def identity(self) -> str:
        """Return the digest of the model, the server and the prompts."""
        return identity_of(self)

    def prepare(self, _base: "Subject", /) -> "EndpointJudge":
        """Return it as it is."""
        return self

    def __call__(self, rubric: Rubric, answers: Sequence[Answer], /) -> list[Score]:
        """Return one score for each answer, in order.

        Raises:
            ModelError: The server fails, or returns no log-probabilities.
        """
        with ThreadPoolExecutor(self.requests) as pool:
            futures = [pool.submit(_rate, self.endpoint, rubric, answer) for answer in answers]
            try:
                return [future.result() for future in progress(futures, "judge")]
            except BaseException:
                pool.shutdown(cancel_futures=True)  # or all that is left would be asked first
                raise


def _rate(endpoint: Endpoint, rubric: Rubric, answer: Answer) -> Score:
    likely = endpoint.first_token(prompt_for(rubric, answer, _HIGHEST))
    return score_of(expected_number(likely, _HIGHEST), rubric)
