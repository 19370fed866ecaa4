"""Texts without a label: their words, repetition and language, without a model."""

import re
import zlib
from collections.abc import Sequence
from pathlib import Path

from personality_vector.data.rows import keys_of, raw_rows
from personality_vector.errors import DataError

_CURLY = "\N{RIGHT SINGLE QUOTATION MARK}"
_WORD = re.compile(r"\w+(?:'\w+)*")
_SENTENCE = re.compile(r"(?<=[.!?])\s+|\n+")


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


_FIRST_PERSON = frozenset(words("i me my mine myself i'm i've i'd i'll"))
_ENGLISH = frozenset(
    words(
        """the of and to a in is it you that was for on are with as i my me at be this have from or
        had by but not what all were we when your can there an she he they do his her if will so no
        about would them been who more its am don't i'm it's"""
    )
)
_OTHER = (
    frozenset(
        words(
            """der das und ist ein eine nicht mit den dem im von zu auf sich ich es le la les des et
            est un une dans du pour que qui au ne pas je il el los las y por con se del lo una gli
            di che non alla nel sono della e o os um uma para com da em na ao de het een en van op
            voor dat niet jest nie z się och att det som på är av bir ve bu"""
        )
    )
    - _ENGLISH
)
_FEWEST_WORDS, _FEWEST_ENGLISH, _MOST_ACCENTED = 6, 0.15, 0.05


def sentences(text: str) -> list[str]:
    """Return the sentences of a text that have three words or more; the text itself if none has.

    >>> sentences("Oh. I do like tea! Do you?")
    ['I do like tea!']
    """
    return [one for one in _SENTENCE.split(text) if len(words(one)) >= 3] or [text]


def is_other_language(text: str) -> bool:
    """Return whether a text is in another script than Latin, or its short words are not English.

    A text of fewer than six words in Latin letters is taken for English, and so is one that has
    hardly any short words of either kind, such as code or a list.

    >>> is_other_language("Der Bus kommt heute zehn Minuten zu spät."), is_other_language("Oui.")
    (True, False)
    """
    letters = [letter for letter in text if letter.isalpha()]
    latin = sum(letter < "\u0250" or "\u1e00" <= letter <= "\u1eff" for letter in letters)
    if latin * 2 < len(letters):
        return True
    found = words(text)
    english, other = (sum(w in known for w in found) for known in (_ENGLISH, _OTHER))
    accented = sum(letter > "\x7f" for letter in letters) / max(1, len(letters))
    looks_other = other > english or accented > _MOST_ACCENTED
    return len(found) >= _FEWEST_WORDS and english < _FEWEST_ENGLISH * len(found) and looks_other


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


def repetition(texts: Sequence[str]) -> float | None:
    """Return the share of word 4-grams that occurred before: 1 - distinct-4, in [0, 1)."""
    distinct = distinct_n(texts, 4)
    return None if distinct is None else 1 - distinct


def moving_type_token(found: Sequence[str], window: int = 50) -> float | None:
    """Return the mean share of different words over all windows of this many words.

    ``None`` for fewer words than a window.

    Source:
        The moving-average type-token ratio of Covington and McFall 2010, J Quant Linguist 17.

    >>> moving_type_token(["a", "b", "a", "a"], window=2)
    0.8333333333333334
    """
    starts = range(len(found) - window + 1)
    shares = [len(set(found[start : start + window])) / window for start in starts]
    return sum(shares) / len(shares) if shares else None


def compression(texts: Sequence[str]) -> float | None:
    """Return how many times smaller zlib makes the texts, joined by line breaks; UTF-8.

    ``None`` for texts without a character. It grows with the amount of text.
    """
    raw = "\n".join(texts).encode(errors="replace")
    return len(raw) / len(zlib.compress(raw, 9)) if raw.strip() else None


def mean_words(texts: Sequence[str]) -> float | None:
    """Return the mean number of words; an empty text counts as 0. ``None`` for no texts."""
    return sum(len(words(text)) for text in texts) / len(texts) if texts else None


def first_person(texts: Sequence[str]) -> float | None:
    """Return the share of words that speak of the speaker, pooled over texts: I, me, my, I'm."""
    found = [word for text in texts for word in words(text)]
    return sum(word in _FIRST_PERSON for word in found) / len(found) if found else None
