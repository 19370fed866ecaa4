"""What a study will take: tokens are counted, memory is computed, and time is measured briefly."""

import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import cycle, islice
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from personality_vector.checkpoint import FLOATS
from personality_vector.errors import DataError, LengthError, PersonalityVectorError
from personality_vector.finetuning.memory import require_room
from personality_vector.interventions.stacked import Stacked
from personality_vector.study.batches import Batches, shares
from personality_vector.study.design import Point, grid_of
from personality_vector.study.matched import Matched
from personality_vector.study.shards import Shard
from personality_vector.subject import Chat, Reply, Sampling, digest_of
from personality_vector.subject.chat import answered, batched, render
from personality_vector.subject.config import read_config
from personality_vector.subject.encoding import MOST_LOGITS, encode_chats, encode_prompts
from personality_vector.subject.models import load_tokenizer, resolve_device
from personality_vector.subject.subject import Draw, Subject, generate_replies

if TYPE_CHECKING:
    from personality_vector.study.study import Study

T = TypeVar("T")

_FLOAT32 = 4
_SENTENCE = "I like to think about a question for a while before I say what I mean. "
_STEPS = 8
"""Steps of decoding that are timed."""
_CHATS_ON_CPU = 16
"""Most chats in a batch that is timed on a CPU, which takes longer for more of them."""
_MOST_SAID = 300
_MOST_REPLIES, _MOST_TOKENS = 20_000, 4_096
"""Replies to count at one point, and tokens of one that other measures read."""
_WARM_SECONDS = 0.5
"""What takes less is timed again, since the first call of anything takes longer."""
_WITH_MODEL = "can be counted only with the model"


class _TooManyError(DataError):
    """So many replies are asked for that counting them would take long."""


@dataclass(slots=True)
class _Counts:
    """What a model is asked, added up.

    Attributes:
        replies: Number of replies.
        tokens_in: Tokens of their prompts.
        tokens_out: Their tokens, if each is as long as it may be.
        steps: Passes of decoding after the first of each batch; a point's share of those of a
            batch that several points share.
        tokens_read: Tokens of finished chats, whose likelihood or predictions are wanted.
        predicted: Tokens whose predictions are wanted.
        held: The most tokens whose predictions points that share a batch hold at once.
        asked: The largest batch that was asked, and how.
        read: The chats of the largest batch that was read.
        longest: Tokens of the longest prompt, and of the longest chat that is read.
    """

    replies: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    steps: float = 0.0
    tokens_read: int = 0
    predicted: int = 0
    held: int = 0
    asked: tuple[Sequence[Chat], Sampling] = ((), Sampling())
    read: Sequence[Chat] = ()
    longest: tuple[int, int] = (0, 0)

    def add_replies(
        self, chats: Sequence[Chat], tokens: Sequence[int], how: Sampling, points: int, draws: int
    ) -> None:
        """Count the replies of a draw to prompts of so many tokens.

        A point has ``draws`` of them, and shares batches with the others of ``points``.

        Raises:
            _TooManyError: There are so many that counting them would take long.
        """
        if self.replies > _MOST_REPLIES:
            raise _TooManyError(f"asks for more than {_MOST_REPLIES:,} replies at one point")
        self.replies += len(chats)
        self.tokens_in += sum(tokens)
        self.tokens_out += how.max_new_tokens * len(chats)
        for batch in batched(chats, how.batch_size):
            together = min(points * draws, how.batch_size // len(batch))
            batches = math.ceil(points * draws / together)
            self.steps += (how.max_new_tokens - 1) * batches / (points * draws)
            self.asked = max(self.asked, ([*batch] * together, how), key=lambda one: len(one[0]))
        self.longest = max(self.longest[0], *tokens), self.longest[1]

    def add_read(self, chats: Sequence[Chat], tokens: Sequence[int]) -> None:
        """Count finished chats of so many tokens, which are in one batch with others."""
        self.tokens_read += sum(tokens)
        self.read = max(self.read, chats, key=len)
        self.longest = self.longest[0], max(self.longest[1], *tokens)

    def add(self, other: "_Counts", times: int) -> None:
        """Add what was counted elsewhere, so many times."""
        for name in ("replies", "tokens_in", "tokens_out", "steps", "tokens_read"):
            setattr(self, name, getattr(self, name) + times * getattr(other, name))
        self.held = max(self.held, other.held)
        self.asked = max(self.asked, other.asked, key=lambda one: len(one[0]))
        self.read = max(self.read, other.read, key=len)
        asked, read = zip(self.longest, other.longest, strict=True)
        self.longest = max(asked), max(read)


@dataclass(frozen=True, slots=True, eq=False)
class _Counter(Subject):
    """A model that counts what it is asked, and replies at the greatest length.

    Attributes:
        counts: What was asked of one point.
        lengths: Tokens of prompts, by the digest of the chats.
        points: How many share batches.
    """

    counts: _Counts = field(default_factory=_Counts)
    lengths: dict[str, list[int]] = field(default_factory=dict)
    points: int = 1

    def replies_of(self, draws: Sequence[Draw]) -> list[list[Reply]]:
        """Count replies, unless they are remembered."""
        how = replace(self.sampling, **self.decoding)
        memory = {} if self.memory is None else self.memory
        keys = [digest_of(chats, how, seed) for chats, seed in draws]
        new = {key: chats for key, (chats, _) in zip(keys, draws, strict=True) if key not in memory}
        text, most = self._longest_reply(how.max_new_tokens), how.max_new_tokens
        for key, chats in new.items():
            tokens = self._lengths(chats)
            self.counts.add_replies(chats, tokens, how, self.points, len(new))
            memory[key] = [Reply(text, n, most, 0.0, is_shared=self.points > 1) for n in tokens]
        return [memory[key] for key in keys]

    def _lengths(self, chats: Sequence[Chat]) -> list[int]:
        """Return the tokens of each prompt; many samples are asked the same."""
        key = digest_of(chats)
        if key not in self.lengths:
            texts = [render(self.tokenizer, chat, reply_follows=True) for chat in chats]
            encoded = encode_prompts(self.tokenizer, texts, chats)
            self.lengths[key] = encoded["attention_mask"].sum(1).tolist()
        return self.lengths[key]

    def log_likelihood(self, chats: Sequence[Chat], batch_size: int = 32) -> Tensor:
        """Count the tokens of finished chats; return zeros."""
        for batch in batched(chats, batch_size):
            self._read(batch, batch_size)
        return torch.zeros(len(chats))

    def next_token(
        self, chats: Sequence[Chat], among: Sequence[int], batch_size: int = 8
    ) -> Tensor:
        """Count prompts like finished chats; what they begin with may be read only once."""
        self.log_likelihood([answered(chat, ".") for chat in chats], batch_size)
        return torch.zeros(len(chats), len(among))

    def predictions(
        self, chats: Sequence[Chat], batch_size: int = 8
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Count the tokens of finished chats; yield predictions over two words."""
        for batch in batched(chats, max(1, batch_size // self.points)):
            counts = self._read(batch, batch_size)
            if self.points > 1:
                self.counts.held = max(self.counts.held, self.points * sum(counts))
            for count in counts:
                self.counts.predicted += count
                yield torch.zeros(count, dtype=torch.int64), torch.full((count, 2), math.log(0.5))

    def _read(self, chats: Sequence[Chat], batch_size: int) -> list[int]:
        """Count chats that each point has in a batch, and return the tokens of each response."""
        encoded = encode_chats(self.tokenizer, [self.edited(chat) for chat in chats])
        together = ([*chats] * self.points)[:batch_size]
        self.counts.add_read(together, encoded.attention_mask.sum(1).tolist())
        found: list[int] = encoded.response_mask.sum(1).tolist()
        return found

    def _longest_reply(self, tokens: int) -> str:
        ids = self.tokenizer(_SENTENCE, add_special_tokens=False)["input_ids"]
        repeated = islice(cycle(ids), min(tokens, _MOST_TOKENS))
        return str(self.tokenizer.decode(list(repeated))).strip()


def estimated(study: "Study", workers: int = 1) -> dict[str, Any]:
    """Return what a study takes from its first cell to its last, without its judges.

    ``counted`` are points, replies, tokens of prompts and of finished chats that are read, and the
    most tokens of replies: those that all would have at the greatest length. Prompts are those of
    the base; what cannot be counted without the model is named. Of a comparison,
    ``matched_cells_at_most`` are those at the strengths that it finds, and ``searches_at_most`` how
    many strengths it looks for; each takes a few cells of one measure with every seed.

    ``estimated`` are the ``memory`` of one process in bytes (:func:`_memory`), and ``seconds``,
    from a batch that is measured with as many threads as each worker has, replies at the greatest
    length, without edits, judges and what is matched. Points share batches as in :class:`Batches`;
    that an edit of weights is of other than linear layers is seen only in the model. Where the
    model cannot be loaded, they are ``None``, and ``reason`` says why.

    Args:
        study: The study.
        workers: Processes that share the work.
    """
    points = study.design.points(study) if isinstance(study.design, Shard) else grid_of(study)
    base, rest = points
    cells = len(base) * len(study.measures) + len(rest) * len(study.swept)
    plan: dict[str, Any] = {"cells": cells}
    if isinstance(study.design, Matched):
        targets = sum(len(axis.targets or range(study.design.points)) for axis in study.design.axes)
        cells = len(study.seeds) * len(study.measures)
        plan["matched_cells_at_most"] = targets * len(study.arms) * cells
        plan["searches_at_most"] = targets * sum(arm.steps is None for arm in study.arms)
    groups = Batches(study, workers).of(rest, study.swept)
    try:
        counts, references, skipped = _counted(study, base, groups)
        memory = _memory(study, counts, references)
    except PersonalityVectorError as error:
        return {**plan, "counted": None, "estimated": None, "reason": str(error)}
    counted: dict[str, Any] = {
        "points": len(base) + len(rest),
        "replies": counts.replies,
        "tokens_in": counts.tokens_in,
        "tokens_out_at_most": counts.tokens_out,
        "tokens_read": counts.tokens_read,
    }
    if skipped:
        counted["not_counted"] = skipped
    sharing = min(workers, len(base) + len(groups))
    time_ = _time(study, counts, memory["peak"], workers, sharing)
    processes = {"processes": workers} if workers > 1 else {}
    return {**plan, "counted": counted, "estimated": {"memory": memory, **processes, **time_}}


def _counted(
    study: "Study", base: Sequence[Point], groups: Sequence[Sequence[Point]]
) -> tuple[_Counts, int, dict[str, str]]:
    """Count what is asked of the base, and at the other points, in groups that share batches.

    Returns:
        The counts, the tokens whose predictions measures keep, and those measures that could not be
        counted, each with the reason.
    """
    tokenizer = load_tokenizer(study.base.path, study.template)
    counter = _Counter(torch.nn.Linear(1, 1), tokenizer, memory={})
    total, references, ready, skipped = counter.counts, 0, [], {}
    for measure in study.measures:
        before = total.predicted
        try:
            ready.append(measure.prepare(counter))
            if hasattr(ready[-1], "references"):
                references += total.predicted - before
        except PersonalityVectorError as error:
            skipped[measure.name] = _reason(error)
    # What measures ask the base with seed 0 for reference, they ask only once.
    skipped |= _collected(ready, counter, min((point.seed for point in base), key=abs))
    swept = [measure for measure in ready if measure.name not in study.where_matched]
    shared = [(swept, *each) for each in Counter(map(len, groups)).items()]
    alone = [(ready, 1, len(base) - 1)] if len(base) > 1 else []
    for measures, size, number in [*alone, *shared]:
        one = replace(counter, memory={}, counts=_Counts(), points=size)
        skipped |= _collected(measures, one, 0)
        total.add(one.counts, size * number)
    return total, references, skipped


def _collected(ready: Sequence[Any], counter: _Counter, seed: int) -> dict[str, str]:
    """Have measures ask at one point; return those that could not be counted."""
    alone, skipped = replace(counter, points=1), {}
    for measure in sorted(ready, key=shares, reverse=True):
        try:
            subject = counter if shares(measure) else alone
            measure.finish(alone, measure.collect(subject, seed))
        except PersonalityVectorError as error:
            skipped[measure.name] = _reason(error)
    return skipped


def _reason(error: PersonalityVectorError) -> str:
    """Return why a measure is not counted; what it says of answers that nobody gave is no fact."""
    is_fact = isinstance(error, _TooManyError) or LengthError in (
        type(error),
        type(error.__cause__),
    )
    return str(error) if is_fact else _WITH_MODEL


def _memory(study: "Study", counts: _Counts, references: int) -> dict[str, int]:
    """Return the bytes that one process takes, without Python, its libraries and judges.

    With ``s`` bytes for a value in the dtype of the study and a vocabulary of ``v`` words:

    - ``weights``: ``s`` for every value of the model;
    - ``edited``: as much again for each edit of weights that is done at once, whose originals are
      kept;
    - ``cache``: keys and values of the largest batch of replies, ``2 s`` for each of ``layers *
      heads of keys * width of a head`` values of each token;
    - ``logits``: ``4 v`` for every chat of that batch, or those that are read at once;
    - ``references``: ``4 v`` for each token of the base's replies whose predictions a measure
      keeps, and of the replies whose predictions points that share a batch hold.

    ``peak`` is their sum. The states of one block come on top.
    """
    config = read_config(study.base.path, "estimate the memory").get_text_config()
    size, words = FLOATS[study.dtype].itemsize, config.vocab_size
    floats = (one for one in study.base.entries.values() if one.dtype.is_floating_point)
    weights = size * sum(math.prod(one.shape) for one in floats)
    edits = (_edits_of(one) for arm in study.arms for one in arm.by_seed.values())
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    chats, how = counts.asked
    tokens = len(chats) * (counts.longest[0] + how.max_new_tokens)
    read = min(MOST_LOGITS, words * len(counts.read) * counts.longest[1])
    found = {
        "weights": weights,
        "edited": weights * max(edits, default=0),
        "cache": 2 * size * config.num_hidden_layers * heads * width * tokens,
        "logits": _FLOAT32 * max(words * len(chats), read),
        "references": _FLOAT32 * words * (references + counts.held),
    }
    return {**found, "peak": sum(found.values())}


def _edits_of(intervention: Any) -> int:
    """Return how many edits of weights are done at once."""
    if isinstance(intervention, Stacked):
        return _edits_of(intervention.top) + sum(_edits_of(one) for one, _ in intervention.below)
    return int(getattr(intervention, "is_of_weights", False))


def _time(study: "Study", counts: _Counts, peak: int, workers: int, sharing: int) -> dict[str, Any]:
    """Return the seconds of everything that was counted, from a measured batch."""
    before = torch.get_num_threads()
    try:
        device = resolve_device(study.device)
        require_room(workers * peak, device, "no batch is measured, because this")
        torch.set_num_threads(max(1, before // workers))
        started = time.monotonic()
        subject = Subject.load(
            study.base, dtype=study.dtype, device=device, template=study.template
        )
        loading = time.monotonic() - started
        per_prompt, per_step = _time_of_replies(subject, counts, on_cpu=device == "cpu")
        per_read = _time_of_reading(subject, counts)
    except (PersonalityVectorError, RuntimeError) as error:  # RuntimeError: of torch
        return {"seconds": None, "reason": str(error)[:_MOST_SAID]}
    finally:
        torch.set_num_threads(before)
    work = per_prompt * counts.tokens_in + per_step * counts.steps + per_read * counts.tokens_read
    return {
        "seconds": float(f"{loading + work / sharing:.3g}"),
        "seconds_per_step_of_decoding": float(f"{per_step:.3g}"),
    }


def _time_of_replies(subject: Subject, counts: _Counts, *, on_cpu: bool) -> tuple[float, float]:
    """Return the seconds of a token of a prompt, and of a step of the largest batch."""
    chats, how = counts.asked
    if not chats:
        return 0.0, 0.0
    few = chats[:_CHATS_ON_CPU] if on_cpu else chats

    def reply(most: int) -> list[Reply]:
        asked = replace(how, max_new_tokens=min(most, how.max_new_tokens))
        return generate_replies(subject.model, subject.tokenizer, few, asked, seed=0)

    found, first = _timed(lambda: reply(1))
    more, whole = _timed(lambda: reply(1 + _STEPS))
    steps = max(reply.tokens_out for reply in more) - 1
    per_step = max(0.0, whole - first) / max(1, steps) * len(chats) / len(few)
    return first / sum(reply.tokens_in for reply in found), per_step


def _time_of_reading(subject: Subject, counts: _Counts) -> float:
    """Return the seconds of a token of a finished chat."""
    few = counts.read[:_CHATS_ON_CPU]
    if not few:
        return 0.0
    _, seconds = _timed(lambda: subject.log_likelihood(few, len(few)))
    return seconds / int(encode_chats(subject.tokenizer, few).attention_mask.sum())


def _timed(call: Callable[[], T]) -> tuple[T, float]:
    """Return what a call returns, and its seconds; those of a second call if it is short."""
    started = time.monotonic()
    found = call()
    if (seconds := time.monotonic() - started) < _WARM_SECONDS:
        started = time.monotonic()
        found = call()
        seconds = time.monotonic() - started
    return found, seconds
