"""A model that can be asked: what interventions change and what measures read."""

import re
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from personality_vector.checkpoint import Checkpoint
from personality_vector.errors import CheckpointError, LengthError, ModelError, NonFiniteError
from personality_vector.subject.chat import Chat, ChatEdit, batched, render, unchanged
from personality_vector.subject.continuations import logits_after
from personality_vector.subject.draws import Draw, Exchange, batch_seed, one_call
from personality_vector.subject.encoding import (
    before_answer,
    encode_chats,
    encode_prompts,
    last_logits,
    longest_of,
    mean_log_probs,
    require_known,
    response_log_probs,
    response_tokens,
)
from personality_vector.subject.identity import digest_of
from personality_vector.subject.models import (
    device_of,
    load_model,
    load_tokenizer,
    resolve_device,
)
from personality_vector.subject.prompts import Prompts, reading
from personality_vector.subject.protocols import Reply
from personality_vector.subject.spec import Sampling, Template
from personality_vector.subject.thoughts import left_open, marks_of, said, visible

_MOST_TOKENS = 1 << 31
_PAST_THE_END = re.compile(r"index|out of (range|bounds)|device-side assert", re.IGNORECASE)


@dataclass(frozen=True, slots=True, eq=False)
class Subject:
    """A loaded model, and how it is asked.

    An intervention changes the weights or activations of ``model`` in place, or yields a copy with
    another ``edit`` or ``decoding``.

    Attributes:
        model: A causal language model of transformers, in evaluation mode.
        tokenizer: Its own, with a padding token.
        edit: Every chat goes through it before the model reads it.
        sampling: How replies are drawn; a measure replaces it by its own.
        decoding: Fields of :class:`Sampling` that override those of a measure.
        exchange: What calls a reply is made of; one by default.
        realised: Share of a weight edit that survived the dtype of the parameters, if known.
        memory: Replies that were already drawn, so that the measures of a cell share them; ``None``
            remembers nothing, for a model that may change in between.
        strengths: Of the intervention in each row of a batch, where they differ.
    """

    model: Any
    tokenizer: Any
    edit: ChatEdit = unchanged
    sampling: Sampling = field(default_factory=Sampling)
    decoding: Mapping[str, Any] = field(default_factory=dict)
    exchange: Exchange = one_call
    realised: float | None = None
    memory: dict[str, list[Reply]] | None = None
    strengths: Float[Tensor, " rows"] | None = None

    @classmethod
    def load(
        cls,
        base: str | Path | Checkpoint,
        *,
        dtype: str = "float32",
        device: str = "auto",
        template: Template | None = None,
    ) -> "Subject":
        """Load the model and the tokenizer of a checkpoint.

        Args:
            base: The checkpoint.
            dtype: Of the loaded weights.
            device: Where to compute.
            template: A chat template and its options, in place of the tokenizer's own.

        Raises:
            CheckpointError: The checkpoint or its tokenizer is missing.
            DataError: The chat template does not read an option.
            ModelError: The model cannot be built, or the device is not available.
        """
        path = Checkpoint.open(base).path
        tokenizer = load_tokenizer(path, template)
        return cls(load_model(path, dtype=dtype, device=resolve_device(device)), tokenizer)

    def replies(self, chats: Sequence[Chat], seed: int) -> list[Reply]:
        """Return one reply to each chat; the same seed draws the same random numbers.

        Raises:
            DataError: The chat template refuses a chat.
            LengthError: A chat is longer than the model reads, or its reply would be.
            NonFiniteError: The model predicts NaN or infinity after the first chat.
        """
        [found] = self.replies_of([Draw(chats, seed)])
        return found

    @torch.no_grad()
    def replies_of(self, draws: Sequence[Draw]) -> list[list[Reply]]:
        """Return the replies of several draws, which share batches.

        The replies of each are those that :meth:`replies` returns for it alone, up to the rounding
        of logits.

        Raises:
            DataError: The chat template refuses a chat.
            LengthError: A chat is longer than the model reads, or its reply would be.
            NonFiniteError: The model predicts NaN or infinity after the first, or within a reply.
        """
        sampling = replace(self.sampling, **self.decoding)
        memory = {} if self.memory is None else self.memory
        edited = [Draw([self.edit(chat) for chat in chats], seed) for chats, seed in draws]
        keys = [digest_of(chats, sampling, seed) for chats, seed in edited]
        new = {key: one for key, one in zip(keys, edited, strict=True) if key not in memory}
        if new:
            ask = partial(self._drawn, sampling=sampling)
            memory.update(zip(new, self.exchange(ask, [*new.values()]), strict=True))
        return [memory[key] for key in keys]

    def _drawn(self, draws: Sequence[Draw], sampling: Sampling) -> list[list[Reply]]:
        if len(draws) > 1:
            from personality_vector.subject.batch import drawn_together

            return drawn_together(self, draws, sampling)
        [(chats, seed)] = draws
        self.require_numbers(chats[:1])
        return [generate_replies(self.model, self.tokenizer, chats, sampling, seed=seed)]

    @torch.no_grad()
    def log_likelihood(
        self, chats: Sequence[Chat], batch_size: int = 32
    ) -> Float[Tensor, " chats"]:
        """Return the mean log-probability per token of the last message of each chat, in nats.

        float32, on the CPU. The intervention's edit is applied to what precedes that message.

        Raises:
            LengthError: A chat is longer than the model reads.
        """
        encoded = [  # all of them before the first is read: what is too long is refused at once
            encode_chats(self.tokenizer, [self.edited(chat) for chat in batch], self.strengths)
            for batch in batched(chats, batch_size)
        ]
        return torch.cat(
            [mean_log_probs(self.model, b.to(device_of(self.model))).cpu() for b in encoded]
        )

    def predictions(
        self, chats: Sequence[Chat], batch_size: int = 8
    ) -> Iterator[tuple[Int[Tensor, " tokens"], Float[Tensor, "tokens vocab"]]]:
        """Yield the last message of each chat as tokens, and the log-probabilities before each.

        float32, on the CPU.
        """
        for batch in batched(chats, batch_size):
            edited = [self.edited(chat) for chat in batch]
            encoded = encode_chats(self.tokenizer, edited, self.strengths)
            found = response_log_probs(self.model, encoded.to(device_of(self.model)))
            for tokens in response_tokens(encoded):
                with torch.no_grad():  # not around a yield, which would set it for the caller
                    log_probs = next(found).cpu()
                yield tokens, log_probs

    @torch.no_grad()
    def next_token(
        self, chats: Sequence[Chat], among: Sequence[int], batch_size: int = 8, opening: str = ""
    ) -> Float[Tensor, "chats tokens"]:
        """Return the log-probabilities of given tokens as the first of an answer to each chat.

        They are the first after ``opening``, which the answer begins with. Where the chat template
        opens a thought, it is closed first. float32, on the CPU, normalised over the vocabulary.
        """
        self.require_one_call()
        found = [self._first_tokens(batch, opening) for batch in batched(chats, batch_size)]
        return torch.cat(found)[:, torch.tensor(among)]

    def _first_tokens(self, chats: Sequence[Chat], opening: str) -> Float[Tensor, "chats vocab"]:
        texts = [before_answer(self.tokenizer, self.edit(chat)) + opening for chat in chats]
        encoded = _encoded(self.model, self.tokenizer, texts, chats)
        ids, mask = encoded["input_ids"], encoded["attention_mask"]
        found = logits_after(self.model, ids, mask) if self.strengths is None else None
        if found is not None:
            return torch.log_softmax(found.float(), dim=-1).cpu()
        # generate(), since it alone knows how each architecture counts positions behind padding.
        with _fresh_settings(self.model, self.tokenizer), _stated(encoded, self.strengths):
            made = self.model.generate(
                input_ids=ids,
                attention_mask=mask,
                max_new_tokens=1,
                do_sample=False,
                pad_token_id=self.tokenizer.pad_token_id,
                output_logits=True,
                return_dict_in_generate=True,
            )
        return torch.log_softmax(made.logits[0].float(), dim=-1).cpu()

    def edited(self, chat: Chat) -> Chat:
        """Edit what precedes the last message, as before the model replies, to read them together.

        Raises:
            ModelError: A reply is made of several calls.
        """
        self.require_one_call()
        return [*self.edit(chat[:-1]), chat[-1]]

    def require_one_call(self) -> None:
        """Check that a reply is what the model itself says.

        Raises:
            ModelError: A reply is made of several calls.
        """
        if self.exchange is not one_call:
            raise ModelError(
                "a reply of several calls, as in a discussion, has neither likelihoods nor "
                "activations; leave out the measures that need them, and measure replies"
            )

    def require_numbers(self, chats: Sequence[Chat]) -> None:
        """Check that what the model predicts after each of a few chats is a number.

        Raises:
            NonFiniteError: It is NaN or infinity.
        """
        texts = [render(self.tokenizer, chat, reply_follows=True) for chat in chats]
        read = _encoded(self.model, self.tokenizer, texts, chats)
        ids, mask = read["input_ids"], read["attention_mask"]
        with reading(Prompts.of(ids, mask, strengths=self.strengths)):
            found = self.model(input_ids=ids, attention_mask=mask, **last_logits(self.model, 1))
        # Single words may be ruled out with -inf, so it is their sum that must be a number.
        sums = torch.logsumexp(found.logits[:, -1].float(), dim=-1)
        for chat, is_number in zip(chats, torch.isfinite(sums).tolist(), strict=True):
            if not is_number:
                raise NonFiniteError(
                    f"the model predicts NaN or infinity after {chat[-1]['content']!r}"
                )


@torch.no_grad()
def generate_replies(
    model: Any, tokenizer: Any, chats: Sequence[Chat], sampling: Sampling, *, seed: int
) -> list[Reply]:
    """Return one reply to each chat.

    The same seed, chats and batch size draw the same noise whatever is done to the model, so two
    interventions are compared on common random numbers. The caller's random state is untouched.
    """
    replies: list[Reply] = []
    devices = [device_of(model)] if device_of(model).type == "cuda" else []
    for index, batch in enumerate(batched(chats, sampling.batch_size)):
        with torch.random.fork_rng(devices=devices):
            # generate() draws from the global generator and takes no other.
            torch.random.manual_seed(batch_seed(seed, index))
            replies += generate_batch(Subject(model, tokenizer, sampling=sampling), batch)
    return replies


def generate_batch(
    subject: Subject, chats: Sequence[Chat], draws: Callable[[], Any] | None = None
) -> list[Reply]:
    """Return one reply to each chat, all of them from one batch.

    Args:
        subject: What is asked, and with which ``sampling`` and ``strengths``; its other options
            are not read.
        chats: The chats, already edited.
        draws: Makes a processor of logits that draws tokens in place of ``generate``.
    """
    model, tokenizer, sampling = subject.model, subject.tokenizer, subject.sampling
    started = time.monotonic()
    texts = [render(tokenizer, chat, reply_follows=True) for chat in chats]
    prompts = _encoded(model, tokenizer, texts, chats)
    with (
        _fresh_settings(model, tokenizer),
        _within(tokenizer, prompts, chats, sampling),
        _stated(prompts, subject.strengths),
    ):
        tokens = model.generate(
            input_ids=prompts["input_ids"],
            attention_mask=prompts["attention_mask"],
            max_new_tokens=sampling.max_new_tokens,
            pad_token_id=tokenizer.pad_token_id,
            repetition_penalty=sampling.repetition_penalty,
            no_repeat_ngram_size=sampling.no_repeat_ngram,
            # The default of transformers would keep the 50 likeliest tokens.
            top_k=None,
            **_drawing(sampling, draws),
        )
    new, marks = tokens[:, prompts["input_ids"].shape[1] :], marks_of(tokenizer)
    found = [
        said(reply, marks, inside=left_open(text, marks) is not None)
        for reply, text in zip(visible(tokenizer, new, marks), texts, strict=True)
    ]
    seconds = (time.monotonic() - started) / len(texts)
    read = prompts["attention_mask"].sum(1).tolist()
    lengths = _lengths(new, tokenizer).tolist()
    return [
        Reply(one.answer, taken, made, seconds, one.thought, one.is_finished)
        for one, taken, made in zip(found, read, lengths, strict=True)
    ]


def _drawing(sampling: Sampling, draws: Callable[[], Any] | None) -> dict[str, Any]:
    """Return how ``generate`` chooses tokens: at temperature 0 the likeliest, else drawn ones."""
    if not sampling.temperature > 0:
        return {"do_sample": False}
    if draws is None:
        return {"do_sample": True, "temperature": sampling.temperature, "top_p": sampling.top_p}
    from transformers import LogitsProcessorList

    return {"do_sample": False, "logits_processor": LogitsProcessorList([draws()])}


def _encoded(model: Any, tokenizer: Any, texts: Sequence[str], chats: Sequence[Chat]) -> Any:
    """Return prompts as ``generate`` reads them, on the device of the model."""
    prompts = encode_prompts(tokenizer, texts, chats)
    require_known(model, prompts["input_ids"])  # on the CPU, where nothing has to wait for it
    return prompts.to(device_of(model))


def _stated(prompts: Any, strengths: Tensor | None) -> AbstractContextManager[None]:
    """State the strengths of the rows that ``generate`` reads, if they have any."""
    if strengths is None:
        return nullcontext()
    mask = prompts["attention_mask"]
    return reading(Prompts.of(prompts["input_ids"], mask, strengths=strengths))


@contextmanager
def _within(
    tokenizer: Any, prompts: Any, chats: Sequence[Chat], sampling: Sampling
) -> Generator[None]:
    """Name the chat whose reply led a model with a table of positions past the table's end."""
    try:
        yield
    except (IndexError, RuntimeError) as error:
        counts = prompts["attention_mask"].sum(1).tolist()
        count, chat = max(zip(counts, chats, strict=True), key=lambda row: row[0])
        most, new = getattr(tokenizer, "most_tokens", None), sampling.max_new_tokens
        # On a GPU it is an assertion of the device, on a CPU one of several errors.
        if most is None or count + new <= most + 1 or not _PAST_THE_END.search(str(error)):
            raise
        remedy = f"max_new_tokens is {new:,}, and may be {most + 1 - count:,} at most"
        raise LengthError(longest_of(chat), f"{count:,}", most, remedy) from error


@contextmanager
def _fresh_settings(model: Any, tokenizer: Any) -> Generator[None]:
    """Hide a model's own settings of ``generate``, which would change replies unseen.

    The marks that begin, end and pad a text stay; the tokenizer's end mark counts where the model
    names none.
    """
    from transformers import GenerationConfig

    own = getattr(model, "generation_config", None)
    if own is None:  # a model of another library has none to hide
        yield
        return
    kept = {name: getattr(own, name, None) for name in ("bos_token_id", "pad_token_id")}
    ends = own.eos_token_id
    if ends is None:
        ends = tokenizer.eos_token_id
    listed = ends if isinstance(ends, list) else [ends] if ends is not None else []
    if not all(isinstance(end, int) and abs(end) < _MOST_TOKENS for end in listed):
        raise CheckpointError(
            f"{tokenizer.name_or_path}: eos_token_id of generation_config.json is {ends!r:.60}; "
            "write a number, or a list of numbers"
        )
    model.generation_config = GenerationConfig(eos_token_id=ends, **kept)
    try:
        yield
    finally:
        model.generation_config = own


def _lengths(new: torch.Tensor, tokenizer: Any) -> torch.Tensor:
    """Return the number of tokens of each reply, up to its first padding."""
    is_padding = new == tokenizer.pad_token_id
    if tokenizer.pad_token_id == tokenizer.eos_token_id:
        # The end mark and the padding are one token: the first of them belongs to the reply.
        is_padding = is_padding & (is_padding.cumsum(1) > 1)
    return torch.sum(~is_padding, 1)
