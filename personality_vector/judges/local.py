"""A judge in memory: the digit that a local model expects to write."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from personality_vector.data.personas import Persona
from personality_vector.errors import ModelError, some
from personality_vector.judges.prompts import coherence_prompt, trait_prompt
from personality_vector.judges.rating import (
    Exchange,
    Rating,
    expected_number,
    rating,
)
from personality_vector.progress import progress
from personality_vector.subject.chat import Chat, batched, encode_prompts
from personality_vector.subject.models import device_of

_HIGHEST = 9
_SPACES = " \N{LOWER ONE EIGHTH BLOCK}\u0120"  # as text, in SentencePiece and in byte-level BPE


@dataclass(frozen=True, slots=True)
class LocalRater:
    """Asks for one digit and takes its expectation, times 100 / 9.

    Digits, because longer numbers are several tokens of most tokenizers, and the first would not
    tell 7 from 70.

    Attributes:
        model: An instruction-tuned causal language model.
        tokenizer: Its own, with a chat template.
        name: For the record of a vector.
        batch_size: Prompts in memory at once.

    Raises:
        ModelError: The vocabulary lacks a digit.
    """

    model: Any
    tokenizer: Any
    name: str
    batch_size: int = 8
    tokens: dict[int, str] = field(init=False)
    """Id of every token that is a digit, perhaps after a space, to the digit."""

    def __post_init__(self) -> None:
        digits = {str(number) for number in range(_HIGHEST + 1)}
        vocabulary = self.tokenizer.get_vocab()
        bare = {index: token.lstrip(_SPACES) for token, index in vocabulary.items()}
        found = {index: token for index, token in bare.items() if token in digits}
        lacking = digits - set(found.values())
        if lacking:
            raise ModelError(
                f"{self.name}: has no token for {some(lacking)}, so it cannot judge by digits"
            )
        object.__setattr__(self, "tokens", found)

    @property
    def label(self) -> str:
        """The checkpoint."""
        return f"local {self.name}"

    def __call__(self, persona: Persona, exchanges: Sequence[Exchange], /) -> list[Rating]:
        """Return one rating for each exchange, in order.

        Raises:
            DataError: The chat template refuses a prompt.
        """
        prompts = [trait_prompt(persona, exchange, _HIGHEST) for exchange in exchanges]
        prompts += [coherence_prompt(exchange, _HIGHEST) for exchange in exchanges]
        batches = list(batched(prompts, self.batch_size))
        found = [value for batch in progress(batches, "judge") for value in self._expect(batch)]
        traits, coherences = found[: len(exchanges)], found[len(exchanges) :]
        return [rating(*pair) for pair in zip(traits, coherences, strict=True)]

    def _expect(self, chats: Sequence[Chat]) -> list[float | None]:
        """Return the expected digit of each chat on the scale 0-100."""
        ids = torch.tensor(list(self.tokens))
        values = []
        for row in self._next_token(chats)[:, ids].tolist():
            likely: dict[str, float] = {}
            for digit, p in zip(self.tokens.values(), row, strict=True):
                likely[digit] = likely.get(digit, 0.0) + p
            expected = expected_number(likely, _HIGHEST)
            values.append(None if expected is None else expected * 100 / _HIGHEST)
        return values

    @torch.no_grad()
    def _next_token(self, chats: Sequence[Chat]) -> Float[Tensor, "chats vocab"]:
        """Return the probabilities of the first token of each reply; float32, on the CPU."""
        encoded = encode_prompts(self.tokenizer, chats).to(device_of(self.model))
        # generate(), since it alone knows how each architecture counts positions behind padding
        # and how to compute the logits of the last position only.
        made = self.model.generate(
            input_ids=encoded["input_ids"],
            attention_mask=encoded["attention_mask"],
            max_new_tokens=1,
            do_sample=False,
            temperature=None,
            top_p=None,
            top_k=None,
            num_beams=1,
            pad_token_id=self.tokenizer.pad_token_id,
            output_logits=True,
            return_dict_in_generate=True,
        )
        return torch.softmax(made.logits[0].float(), dim=-1).cpu()
