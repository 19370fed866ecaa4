"""What a study will take: tokens are counted, memory is computed, and time is measured briefly."""

import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from personality_vector.checkpoint import FLOATS
from personality_vector.errors import LengthError, PersonalityVectorError
from personality_vector.finetuning.memory import require_room
from personality_vector.interventions.stacked import Stacked
from personality_vector.study.batches import Batches, shares
from personality_vector.study.counting import CountingSubject, Counts, TooManyError
from personality_vector.study.design import Point, grid_of
from personality_vector.study.matched import Matched
from personality_vector.study.shards import Shard
from personality_vector.subject import Reply
from personality_vector.subject.config import read_config
from personality_vector.subject.encoding import MOST_LOGITS, encode_chats
from personality_vector.subject.models import load_tokenizer, resolve_device
from personality_vector.subject.subject import Subject, generate_replies

if TYPE_CHECKING:
    from personality_vector.study.study import Study

T = TypeVar("T")

_FLOAT32 = 4
_STEPS = 8
"""Steps of decoding that are timed."""
_CHATS_ON_CPU = 16
"""Most chats in a batch that is timed on a CPU, which takes longer for more of them."""
_MOST_SAID = 300
_WARM_SECONDS = 0.5
"""What takes less is timed again, since the first call of anything takes longer."""
_WITH_MODEL = "can be counted only with the model"


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
) -> tuple[Counts, int, dict[str, str]]:
    """Count what is asked of the base, and at the other points, in groups that share batches.

    Returns:
        The counts, the tokens whose predictions measures keep, and those measures that could not be
        counted, each with the reason.
    """
    tokenizer = load_tokenizer(study.base.path, study.template)
    counter = CountingSubject(torch.nn.Linear(1, 1), tokenizer, memory={})
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
    # Each call counts as one of the base; those of a discussion have longer prompts.
    calls = [_calls_of(study.arm(one[0].label).at(one[0].seed)) for one in groups]
    sizes = Counter(zip(map(len, groups), calls, strict=True))
    shared = [(swept, size, number * each) for (size, each), number in sizes.items()]
    alone = [(ready, 1, len(base) - 1)] if len(base) > 1 else []
    for measures, size, number in [*alone, *shared]:
        one = replace(counter, memory={}, counts=Counts(), points=size)
        skipped |= _collected(measures, one, 0)
        total.add(one.counts, size * number)
    return total, references, skipped


def _collected(ready: Sequence[Any], counter: CountingSubject, seed: int) -> dict[str, str]:
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
    is_fact = isinstance(error, TooManyError) or LengthError in (
        type(error),
        type(error.__cause__),
    )
    return str(error) if is_fact else _WITH_MODEL


def _memory(study: "Study", counts: Counts, references: int) -> dict[str, int]:
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


def _calls_of(intervention: Any) -> int:
    """Return how many calls of the model make one reply."""
    if isinstance(intervention, Stacked):
        every = [intervention.top, *(one for one, _ in intervention.below)]
        return math.prod(map(_calls_of, every))
    return int(getattr(intervention, "calls", 1))


def _time(study: "Study", counts: Counts, peak: int, workers: int, sharing: int) -> dict[str, Any]:
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


def _time_of_replies(subject: Subject, counts: Counts, *, on_cpu: bool) -> tuple[float, float]:
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


def _time_of_reading(subject: Subject, counts: Counts) -> float:
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
