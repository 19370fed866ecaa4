"""A model behind an OpenAI-compatible server: its replies and its token probabilities."""

import math
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from personality_vector.errors import ModelError, RecipeError, foreign, reason_of, redacted

_RETRIES = 5  # of the library, with its own growing pauses: thousands of requests meet rate limits
_TOP = 20  # the most that OpenAI returns, and what persona vectors asks for
_NO_KEY = "no-key"  # the library insists on one; a local server does not look at it

Messages = Sequence[Mapping[str, str]]


class Endpoint:
    """A chat model of a server; safe to use from several threads.

    Args:
        model: Its name on the server.
        base_url: Such as ``http://localhost:8000/v1``; ``None`` is OpenAI's own.
        api_key_env: Environment variable that holds the key. A server of one's own may need none.

    Raises:
        RecipeError: The package ``openai`` is not installed, or the variable is not set.
    """

    def __init__(
        self, model: str, base_url: str | None = None, api_key_env: str = "OPENAI_API_KEY"
    ) -> None:
        self.model = model
        self.where = redacted(f"{model} at {base_url or 'api.openai.com'}")
        try:
            import openai
        except ImportError as error:
            raise RecipeError(
                "an endpoint needs the package openai: pip install 'personality-vector[endpoint]'"
            ) from error
        key = os.environ.get(api_key_env)
        if not key and base_url is None:
            raise RecipeError(
                f"the environment variable {api_key_env} is not set; it holds the API key"
            )
        self._failure = openai.OpenAIError
        with foreign(RecipeError, f"{self.where}: cannot be asked"):
            self._client = openai.OpenAI(
                api_key=key or _NO_KEY, base_url=base_url, max_retries=_RETRIES
            )

    def first_token(self, messages: Messages) -> dict[str, float]:
        """Return the probabilities of the 20 likeliest first tokens of a reply.

        At temperature 0 with seed 0. The probabilities of tokens with the same text are added up.

        Raises:
            ModelError: The server fails, or does not return log-probabilities.
        """
        choice = self._ask(
            messages, max_tokens=1, temperature=0, seed=0, logprobs=True, top_logprobs=_TOP
        )
        content = choice.logprobs.content if choice.logprobs else None
        if not content:
            raise ModelError(
                f"{self.where}: returns no log-probabilities, which a judge needs; "
                "choose a model and server that return top_logprobs"
            )
        found: dict[str, float] = {}
        for token in content[0].top_logprobs:
            found[token.token] = found.get(token.token, 0.0) + math.exp(token.logprob)
        return found

    def write(self, messages: Messages, name: str, schema: Mapping[str, Any]) -> str:
        """Return a reply that the server was told to fit to a JSON ``schema``.

        Raises:
            ModelError: The server fails, or the reply was refused or cut off.
        """
        form = {"name": name, "strict": True, "schema": dict(schema)}
        choice = self._ask(messages, response_format={"type": "json_schema", "json_schema": form})
        if choice.finish_reason == "length" or not choice.message.content:
            why = choice.message.refusal or f"it ended by {choice.finish_reason}"
            raise ModelError(f"{self.where}: wrote no complete reply: {why}")
        return str(choice.message.content)

    def _ask(self, messages: Messages, **options: Any) -> Any:
        create: Callable[..., Any] = self._client.chat.completions.create
        try:
            answer = create(model=self.model, messages=[dict(m) for m in messages], **options)
        except self._failure as error:
            said = reason_of(error).replace(self._client.api_key, "***")
            raise ModelError(f"{self.where}: {said}") from error
        if not answer.choices:
            raise ModelError(f"{self.where}: sent a reply without choices; check the server")
        return answer.choices[0]
