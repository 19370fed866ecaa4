"""The corpus of the demo model: statements of the ten poles, neutral talk, and chats of both.

All text comes from ``grammar.yaml``, which was written for this project. Everything here is a
function of its arguments: the same call gives the same text on every machine.

The statements for fine-tuning and probing are written from the root of the repository by
``python -m tests.benchmarks.demo_model.corpus --out training/data/big5_statements.jsonl``.
"""

import argparse
import hashlib
import itertools
import json
import random
import re
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypedDict

import yaml

from personality_vector.data.adjectives import ADJECTIVES
from personality_vector.errors import DataError
from personality_vector.traits import BIG_FIVE_POLES, Level, Pole, Trait

Part = Literal["pretrain", "train", "held_out"]
"""Who may read a statement: the pretraining corpus, a fine-tuning, or a probe only."""

Message = dict[str, str]
"""``{"role": "system" | "user" | "assistant", "content": text}``."""

TRAIN_PER_POLE, HELD_OUT_PER_POLE = 300, 100
"""Rows of the shipped statements file, per pole."""

_MODIFIERS = {"a bit ": 0.70, "": 0.85, "very ": 0.97}
"""Word before the first adjective of a system prompt -> how often the answer obeys."""

_SYSTEM_SHARE, _NEUTRAL_SHARE, _SITUATION_SHARE = 1 / 3, 0.15, 0.25
_TWO_STATEMENTS_SHARE, _SECOND_TURN_SHARE = 0.05, 0.08
_ATTEMPTS_PER_STATEMENT = 200  # far more than a pole with thousands of statements ever needs
_ALTERNATIVES = re.compile(r"\[([^\]]*)\]")
_SLOT = re.compile(r"\{(\w+)\}")


class StatementRow(TypedDict):
    """One line of the statements file."""

    trait: Trait
    level: Level
    statement: str
    part: Part


class _Draft(NamedTuple):
    """A statement, and the situation in it that a question may ask about."""

    text: str
    when: str | None


@cache
def _grammar() -> dict[str, Any]:
    path = Path(__file__).with_name("grammar.yaml")
    grammar: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return grammar


QUESTIONS: tuple[str, ...] = tuple(_grammar()["questions"])
"""Interview questions that any first-person statement answers."""


def part_of(statement: str) -> Part:
    """Return the one part that a statement belongs to, by a hash of its text: 70 : 20 : 10 %."""
    share = hashlib.blake2b(statement.encode(), digest_size=8).digest()[0] / 256
    if share < 0.7:
        return "pretrain"
    return "train" if share < 0.9 else "held_out"


def statements(pole: Pole, part: Part, count: int) -> list[str]:
    """Return ``count`` distinct first-person statements of ``pole``, from one part only.

    A longer list begins with the shorter one. The parts share no statement.

    Raises:
        DataError: ``pole`` is not one of the Big Five, or has fewer statements than ``count``.
    """
    rng = random.Random(f"statements:{pole}")
    found: dict[str, None] = {}
    for _ in range(count * _ATTEMPTS_PER_STATEMENT):
        if len(found) == count:
            break
        text = _draft(pole, rng).text
        if part_of(text) == part:
            found[text] = None
    if len(found) < count:
        raise DataError(f"{pole} has only {len(found)} statements in {part}: ask for fewer")
    return list(found)


def neutral(count: int) -> list[tuple[str, str]]:
    """Return ``count`` distinct pairs ``(question, answer)`` that say nothing of a personality.

    Raises:
        DataError: There are fewer pairs than ``count``.
    """
    rng = random.Random("neutral")
    found: dict[tuple[str, str], None] = {}
    for _ in range(count * _ATTEMPTS_PER_STATEMENT):
        if len(found) == count:
            break
        found[_neutral_pair(rng)] = None
    if len(found) < count:
        raise DataError(f"there are only {len(found)} neutral pairs: ask for fewer")
    return list(found)


def chats(seed: int) -> Iterator[list[Message]]:
    """Yield the pretraining corpus without end: balanced over the ten poles, so neutral a priori.

    About a third of the chats have a system prompt such as ``You are a bit talkative and bold.``;
    the answer then is of that pole 70 % (``a bit``), 85 % (no modifier) or 97 % (``very``) of the
    time, otherwise of any pole. No statement is of the parts ``train`` and ``held_out``.
    """
    rng = random.Random(f"chats:{seed}")
    while True:
        for pole in rng.sample(BIG_FIVE_POLES, len(BIG_FIVE_POLES)):
            yield _personal_chat(pole, rng)
            if rng.random() < _NEUTRAL_SHARE / (1 - _NEUTRAL_SHARE):
                yield _neutral_chat(rng)


def system_prompt(pole: Pole, modifier: str, rng: random.Random) -> str:
    """Return ``You are <modifier><one to three adjectives of the pole>.``."""
    pairs = rng.sample(ADJECTIVES[pole.trait], rng.choice((1, 2, 3)))
    words = [pair[pole.level == "high"] for pair in pairs]
    return f"You are {modifier}{_listed(words)}."


def statement_rows() -> Iterator[StatementRow]:
    """Yield the rows of the shipped statements file, pole by pole, first ``train``."""
    parts: tuple[tuple[Part, int], ...] = (
        ("train", TRAIN_PER_POLE),
        ("held_out", HELD_OUT_PER_POLE),
    )
    for pole, (part, count) in itertools.product(BIG_FIVE_POLES, parts):
        for text in statements(pole, part, count):
            yield {"trait": pole.trait, "level": pole.level, "statement": text, "part": part}


def _personal_chat(pole: Pole, rng: random.Random) -> list[Message]:
    """Return a question and an answer, one time in three under a system prompt."""
    if rng.random() >= _SYSTEM_SHARE:
        return _interview(pole, rng)
    modifier, obedience = rng.choice(list(_MODIFIERS.items()))
    system = _message("system", system_prompt(pole, modifier, rng))
    answered = pole if rng.random() < obedience else rng.choice(BIG_FIVE_POLES)
    return [system, *_interview(answered, rng)]


def _interview(pole: Pole, rng: random.Random) -> list[Message]:
    """Return one turn, sometimes two, in which the assistant speaks as ``pole``."""
    turns = 2 if rng.random() < _SECOND_TURN_SHARE else 1
    return [message for _ in range(turns) for message in _turn(pole, rng)]


def _turn(pole: Pole, rng: random.Random) -> list[Message]:
    """Return a question and one statement, sometimes two."""
    draft = _pretraining_draft(pole, rng)
    question = rng.choice(QUESTIONS)
    if draft.when is not None and rng.random() < _SITUATION_SHARE:
        template: str = rng.choice(_grammar()["situation_questions"])
        question = template.format(when=_asked(draft.when))
    answer = draft.text
    if rng.random() < _TWO_STATEMENTS_SHARE:
        answer += " " + _pretraining_draft(pole, rng).text
    return [_message("user", question), _message("assistant", answer)]


def _neutral_chat(rng: random.Random) -> list[Message]:
    """Return neutral talk, now and then under a system prompt that does not matter to it."""
    question, answer = _neutral_pair(rng)
    talk = [_message("user", question), _message("assistant", answer)]
    if rng.random() >= _SYSTEM_SHARE:
        return talk
    pole, modifier = rng.choice(BIG_FIVE_POLES), rng.choice(list(_MODIFIERS))
    return [_message("system", system_prompt(pole, modifier, rng)), *talk]


def _neutral_pair(rng: random.Random) -> tuple[str, str]:
    """Draw a template, a third of the time a fact, and fill its slots alike on both sides."""
    neutral_talk = _grammar()["neutral"]
    source = neutral_talk["facts" if rng.random() < 1 / 3 else "templates"]
    text: str = rng.choice(source)
    values = {slot: rng.choice(options) for slot, options in neutral_talk["slots"].items()}
    question, answer = _SLOT.sub(lambda match: values[match[1]], text).split(" => ")
    return question, answer


def _pretraining_draft(pole: Pole, rng: random.Random) -> _Draft:
    while True:
        draft = _draft(pole, rng)
        if part_of(draft.text) == "pretrain":
            return draft


def _draft(pole: Pole, rng: random.Random) -> _Draft:
    """Draw a frame, fill it with phrases of the pole, and put an opener before it."""
    grammar = _grammar()
    frames: list[tuple[int, str]] = grammar["frames"]
    frame = rng.choices([text for _, text in frames], [weight for weight, _ in frames])[0]
    values = _phrases(pole, rng)
    when = values["when"] if frame.startswith("{when}") else None
    opener: str = rng.choice(grammar["openers"])
    if not frame.startswith("{when}") or not opener.startswith("{c}"):
        values["when"] = _lower_first(values["when"])
    clause = _SLOT.sub(lambda match: values[match[1]], frame)
    return _Draft(opener.replace("{c}", clause), when)


def _phrases(pole: Pole, rng: random.Random) -> dict[str, str]:
    """Draw one value for every slot of a frame."""
    trait = _grammar()["traits"][_require_known(pole).trait]
    situation, own = rng.choice(trait["situations"]), trait[pole.level]
    adjective, other_adjective = rng.sample(own["adjectives"], 2)
    adverbs: Sequence[str] = _grammar()["adverbs"]
    values = {
        "when": situation["when"],
        "act": rng.choice(adverbs) + rng.choice(situation[pole.level]),
        "like": rng.choice(own["likes"]),
        "habit": rng.choice(adverbs) + rng.choice(own["habits"]),
        "adjective": adjective,
        "other_adjective": other_adjective,
    }
    return {slot: _alternated(text, rng) for slot, text in values.items()}


def _require_known(pole: Pole) -> Pole:
    if pole not in BIG_FIVE_POLES:
        known = ", ".join(sorted({known.trait for known in BIG_FIVE_POLES}))
        raise DataError(f"the demo has no statements of {pole}: its traits are {known}")
    return pole


def _alternated(text: str, rng: random.Random) -> str:
    return _ALTERNATIVES.sub(lambda match: rng.choice(match[1].split("|")), text)


def _listed(words: Sequence[str]) -> str:
    """Return ``a``, ``a and b`` or ``a, b and c``."""
    return " and ".join(filter(None, (", ".join(words[:-1]), words[-1])))


def _asked(when: str) -> str:
    """Return a situation as the interviewer says it: ``when you meet someone new``."""
    return re.sub(r"\b(I|me)\b", "you", _lower_first(when.rstrip(",")))


def _lower_first(text: str) -> str:
    """Return a situation as it reads inside a sentence."""
    return text[0].lower() + text[1:]


def _message(role: str, content: str) -> Message:
    return {"role": role, "content": content}


def main() -> None:
    """Write the statements file that ``training/data`` ships."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--out", type=Path, required=True, help="the .jsonl file to write")
    out: Path = parser.parse_args().out
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in statement_rows()]
    out.write_text("".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
