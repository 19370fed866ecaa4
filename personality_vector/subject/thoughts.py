"""Thoughts: what a model writes between think marks before it answers. They are not the answer."""

import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

OPEN, CLOSE = "<think>", "</think>"
"""The marks around a thought in what is stored, whatever those of the model are."""
UNFINISHED = "the reply ends inside a thought"
"""Why a reply without an answer is unscored."""

_WORD = r"(?:think|thinking|thought|thoughts|reasoning)"
_CLOSERS = (
    # </think>, [/THINK], </seed:think>, and the white triangles of some models
    re.compile(rf"[<\[\u25c1]/\|?(?:\w+[:_])?{_WORD}\|?[>\]\u25b7]", re.IGNORECASE),
    # <|END_THINKING|>, <|end_of_thought|>
    re.compile(rf"<\|end(?:_of)?_{_WORD}\|>", re.IGNORECASE),
)
_OPENED = re.compile(
    # the mark with which a template ends a prompt, where it never names what closes the thought
    rf"([<\[\u25c1])(\|?(?:\w+[:_])?{_WORD}\|?[>\]\u25b7])(?=(?:\s|\\n)*(?:['\"]|{{%))",
    re.IGNORECASE,
)
_CHANNELS = ("<|channel|>analysis<|message|>", "<|channel|>final<|message|>")
"""What stands before a thought and before an answer where a reply has channels."""
Marks = tuple[str, str]


class Said(NamedTuple):
    """A reply in two parts.

    Attributes:
        answer: What stands outside of thoughts; "" if the last thought was never closed.
        thought: What stands inside of them.
        is_finished: Whether every thought was closed.
    """

    answer: str
    thought: str = ""
    is_finished: bool = True

    @property
    def text(self) -> str:
        """Both parts, with the marks of this module around the thought."""
        if not self.is_finished:
            return f"{OPEN}\n{self.thought}"
        return f"{OPEN}\n{self.thought}\n{CLOSE}\n\n{self.answer}" if self.thought else self.answer


def said(text: str, marks: Sequence[Marks] = ((OPEN, CLOSE),), *, inside: bool = False) -> Said:
    """Return a reply as answer and thought.

    Args:
        text: The reply.
        marks: Pairs of what opens and what closes a thought.
        inside: Whether the prompt has opened a thought already.
    """
    if not inside and not any(mark in text for pair in marks for mark in pair):
        return Said(text.strip())
    openers, closers = [mark for mark, _ in marks], [mark for _, mark in marks]
    answer, thoughts, rest = "", list[str](), text
    while True:
        opened, closed = _first(rest, openers), _first(rest, closers)
        # A thought that is closed and never opened was opened by the prompt.
        inside = inside or (closed is not None and (opened is None or closed < opened))
        if not inside and opened is None:
            return Said((answer + rest).strip(), "\n".join(filter(None, thoughts)))
        if not inside and opened is not None:
            answer, rest = answer + rest[: opened[0]], rest[opened[1] :]
            closed = _first(rest, closers)
        if closed is None:
            return Said("", "\n".join([*thoughts, rest.strip()]).strip(), is_finished=False)
        thoughts.append(rest[: closed[0]].strip())
        rest, inside = rest[closed[1] :], False


def _first(text: str, marks: Sequence[str]) -> tuple[int, int] | None:
    """Return where the first of some marks begins and ends, if there is one."""
    found = [(text.index(mark), text.index(mark) + len(mark)) for mark in marks if mark in text]
    return min(found, default=None)


def marks_of(tokenizer: Any) -> list[Marks]:
    """Return the think marks that a tokenizer or its template names, and the usual ones."""
    closers = dict.fromkeys([CLOSE, *_closers(tokenizer)])
    found = [(_opener(mark), mark) for mark in closers]
    return [*found, _CHANNELS] if _CHANNELS[0] in str(tokenizer.chat_template) else found


def names_marks(tokenizer: Any) -> bool:
    """Return whether a tokenizer or its template has think marks."""
    return len(marks_of(tokenizer)) > 1 or any(_closers(tokenizer))


def _closers(tokenizer: Any) -> Iterator[str]:
    for text in (str(tokenizer.chat_template), *tokenizer.get_added_vocab()):
        for pattern in _CLOSERS:
            yield from pattern.findall(text)
    for bracket, rest in _OPENED.findall(str(tokenizer.chat_template)):
        yield f"{bracket}/{rest}"


def _opener(closer: str) -> str:
    """Return what opens a thought, by what closes it."""
    if "/" in closer:
        return closer.replace("/", "", 1)
    # END_THINKING has START_THINKING, end_of_thought has begin_of_thought
    if "_of_" in closer.lower():
        return closer.replace("end", "begin").replace("END", "BEGIN")
    return closer.replace("end", "start").replace("END", "START")


def left_open(prompt: str, marks: Sequence[Marks]) -> Marks | None:
    """Return the marks of the thought that a prompt opens for the reply, if it does."""
    end = prompt.rstrip()
    return next((pair for pair in marks if end.endswith(pair[0])), None)


def closed(prompt: str, marks: Sequence[Marks]) -> str:
    """Return a prompt after which the answer stands: a thought that it opens is empty."""
    pair = left_open(prompt, marks)
    if pair is None:
        return prompt
    return f"{prompt}{'' if prompt.endswith(chr(10)) else chr(10)}\n{pair[1]}\n\n"


def visible(tokenizer: Any, rows: Any, marks: Sequence[Marks]) -> list[str]:
    """Return rows of tokens as texts without special tokens, except think marks.

    Args:
        tokenizer: The model's.
        rows: Token ids of replies, on any device.
        marks: Those of the model, which may be special tokens.
    """
    parts = "".join(mark for pair in marks for mark in pair)
    special = {
        token: text
        for text, token in tokenizer.get_added_vocab().items()
        if text in parts and not tokenizer.decode([token], skip_special_tokens=True)
    }
    if not special:
        return list(tokenizer.batch_decode(rows, skip_special_tokens=True))
    texts = []
    for row in rows.tolist():
        cuts = [i for i, token in enumerate(row) if token in special]
        pieces = [row[a + 1 : b] for a, b in zip([-1, *cuts], [*cuts, len(row)], strict=True)]
        words = [tokenizer.decode(piece, skip_special_tokens=True) for piece in pieces]
        names = [*(special[row[cut]] for cut in cuts), ""]
        texts.append("".join(word + name for word, name in zip(words, names, strict=True)))
    return texts
