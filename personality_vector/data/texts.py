"""Texts without a label: reading them, their words and their repetition, without a model."""

import re
from collections.abc import Sequence
from pathlib import Path

from personality_vector.data.rows import keys_of, raw_rows
from personality_vector.errors import DataError

_CURLY = "\N{RIGHT SINGLE QUOTATION MARK}"
_WORD = re.compile(r"\w+(?:'\w+)*")
_SENTENCE = re.compile(r"(?<=[.!?])\s+|\n+")
_SORRY = r"(?:i(?:'m|\ am)\ (?:\w+\ )?sorry|sorry|i\ apologi[sz]e|unfortunately),?\ (?:but\ )?"
_CANNOT = r"i(?:\ can't|\ cannot|\ won't|\ will\ not|(?:'m|\ am)\ (?:unable|not\ able)\ to)\ "
# Without an apology only what assistants say: "I can't help laughing" is a person.
_REFUSAL = re.compile(
    rf"""^\W*(?:{_SORRY})?{_CANNOT}(?:(?:help|assist)(?:\ you)?(?:\ with|[.,!;]|$)|fulfil|comply
            |provide|generate|engage\ in|participate\ in|create\ content)
    |^\W*{_SORRY}{_CANNOT}(?:do\ that|answer|respond|continue|discuss|write|create|support)
    |\bas\ an?\ (?:ai|artificial\ intelligence|(?:\w+\ )?language\ model)\b
    |\bi(?:'m|\ am)\ (?:just\ |only\ )?an?\ (?:ai|(?:\w+\ )?language\ model)\b""",
    re.VERBOSE | re.IGNORECASE,
)


def read_texts(path: Path, part: str | None = None) -> list[str]:
    """Return the ``text`` of every row of a data file; other keys but ``part`` are not read.

    Args:
        path: Anything that :func:`raw_rows` reads.
        part: Only rows whose ``part`` is this one; a row that names no part is ``train``.

    Raises:
        DataError: The file cannot be read, a row has no text (file and line are named), or no row
            is left.
    """
    rows = raw_rows(path)
    for place, row in rows.items():
        if not isinstance(row.get("text"), str):
            raise DataError(f"{place}: needs a text under the key text; {keys_of(row)}")
    found = [r["text"] for r in rows.values() if part in (None, r.get("part") or "train")]
    if not rows:
        raise DataError(f'{path}: has no rows; write one text a line, as {{"text": "..."}}')
    return found


def words(text: str) -> list[str]:
    """Return the words of ``text`` in lower case; an apostrophe inside a word belongs to it.

    >>> words("Don't panic!")
    ["don't", 'panic']
    """
    return _WORD.findall(text.replace(_CURLY, "'").lower())


def sentences(text: str) -> list[str]:
    """Return the sentences of a text that have three words or more; the text itself if none has.

    >>> sentences("Oh. I do like tea! Do you?")
    ['I do like tea!']
    """
    return [one for one in _SENTENCE.split(text) if len(words(one)) >= 3] or [text]


def is_refusal(text: str) -> bool:
    """Return whether a reply begins by declining, or says that it is an AI.

    >>> is_refusal("I'm sorry, but I can't help with that."), is_refusal("I can't help laughing.")
    (True, False)
    """
    return _REFUSAL.search(text.replace(_CURLY, "'")) is not None


def distinct_n(texts: Sequence[str], n: int) -> float | None:
    """Return the share of distinct word ``n``-grams among all of them, in (0, 1].

    Pooled over ``texts``; no n-gram spans two texts. ``None`` if there is no n-gram at all. The
    share falls with the amount of text, so compare equal numbers of replies of similar length.

    Source:
        distinct-1 and distinct-2, Li et al. 2016, arXiv:1510.03055.
    """
    grams = [
        tuple(tokens[start : start + n])
        for tokens in map(words, texts)
        for start in range(len(tokens) - n + 1)
    ]
    return len(set(grams)) / len(grams) if grams else None


def mean_words(texts: Sequence[str]) -> float | None:
    """Return the mean number of words; an empty text counts as 0. ``None`` for no texts."""
    return sum(len(words(text)) for text in texts) / len(texts) if texts else None
