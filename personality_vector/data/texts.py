"""Texts without a label: their words, repetition, refusals and language, without a model."""

import re
import zlib
from collections.abc import Sequence
from pathlib import Path

from personality_vector.data.rows import keys_of, raw_rows
from personality_vector.errors import DataError

_CURLY = "\N{RIGHT SINGLE QUOTATION MARK}"
_WORD = re.compile(r"\w+(?:'\w+)*")
_SENTENCE = re.compile(r"(?<=[.!?])\s+|\n+")
_EXPANDED = {"can't": "cannot", "won't": "will not", "n't": " not", "'m ": " am ", "'d ": " would "}
_OPENING = 300
"""Characters in which a refusal begins."""

_MACHINE = r"""(?:ai|artificial\ intelligence|(?:\w+\ )?language\ model|neural\ network|machine
    |machine\ learning\ \w+|chat\s?bot|bot|(?:virtual|digital|ai)\ assistant|algorithm|robot
    |(?:computer\ |text-based\ )?program|software|automated\ \w+)"""
# "I'm a software engineer" is a person.
_ENDS = r"""(?=\W*$|\W*[,.;:!?)(]|\ (?:model|system|program|assistant|trained|made|created|developed
    |designed|built|running|and|so|that|which|with|without|i|my|cannot)\b)"""
_LACKS = r"""(?:(?:do|does)\ not|cannot)\ (?:\w+\ )?(?:have|possess|experience|hold|feel|form)
    |(?:have|has)\ (?:no|neither)|lacks?|possess(?:es)?\ no|am\ (?:incapable\ of|without)"""
_OWN = r"(?:any\ |an?\ |real\ |human\ |personal\ |own\ |actual\ |true\ |genuine\ |thoughts,\ )*"
_HUMAN = r"""(?:emotions?|feelings|consciousness|self-awareness|sentience|personality|personal\ \w+
    |body|inner\ (?:life|world)|moods?|wants|relationships|likes\ or\ dislikes|beliefs\ nor
    |(?:capacity|ability|capability)\ to\ (?:feel|experience|have)|life\ outside\ (?:this|our)
    |(?:childhood|memory|memories)\ of\ (?:previous|past|earlier)|subjective\ \w+
    |character\ traits
    |\w+(?:\ \w+){0,3}?\ of\ my\ own|self\ (?:to|that|of))"""
_DISCLAIMER = re.compile(
    rf"""\b(?:as|being|i\ am(?:\ (?:just|only|simply|but|merely))?|like\ any|such\ as)
        \ (?:an?\ )?(?:\w+\ ){{0,2}}?{_MACHINE}{_ENDS}
    |\b(?:i|me|this\ assistant|(?:an|the)\ ai|the\ model)\ (?:{_LACKS})\ {_OWN}{_HUMAN}\b
        (?!\ (?:about|for|towards?|on|at|to)\b(?!\ (?:this|that|report)))
    |\b(?:an?\ {_MACHINE})\ (?:has|have|does|do|cannot|is)\ (?:no|not)\b
    |\b(?:machines|programs|models|algorithms|systems|assistants|bots)\ (?:like\ me|like\ this
        |such\ as\ me|do\ not|have\ no)\b
    |\b(?:not|never)\ apply\ to\ (?:me|an?\ {_MACHINE})\b
    |\bi\ am\ (?:not\ (?:an?\ )?(?:(?:real\ )?person\b(?!\ who)|human|living|alive|conscious
    |sentient)
        |artificial)\b|\bunlike\ (?:a\ person|humans?)\b|\bnobody\ behind\b
    |\bi\ (?:only\ |merely\ |just\ |simply\ )?(?:generate|predict|process|compute|produce)
        \ (?:text|words|language|tokens|responses|information|input)\b
    |\bmy\ (?:training\ data|developers)\b|\bthe\ data\ (?:that\ )?i\ was\ trained\ on\b
    |\bpatterns?\ in\ (?:text|language|data)\b
    |\bi\ was\ (?:developed|designed|trained|created|built|programmed)\ (?:as|by|to|on)\b
    |\b(?:human|mental)\ (?:states|traits|qualities|experiences?|characteristics)\b
    |\b(?:made|designed|meant|written|intended)\ for\ (?:humans|human\ beings)\b
    |\bnot\ experience\ the\ world\b
    |\bno\ (?:person|self|human)\ (?:here|behind)\b
    |\b(?:no\ feelings\ here|no\ 'me'|nobody\ here|no\ mood\ behind)\b""",
    re.VERBOSE,
)
_SORRY = r"""(?:no|(?:i\ am\ (?:\w+\ )?)?sorry|i\ apologi[sz]e|my\ apologies|unfortunately
    |regrettably|i\ am\ afraid(?:\ that)?|thanks?\ [^.!?]{0,60}|while\ [^.!?]{0,80}
    |i\ (?:understand|appreciate)\ [^.!?]{0,80})[,.;:!]*\ (?:but\ )?"""
_CANNOT = r"""(?:i|we|this\ (?:assistant|service|tool|system))\ (?:cannot|will\ not|could\ not
    |may\ not|must\ not|(?:will|would)\ not\ be\ able\ to|refuse\ to
    |would\ (?:rather|prefer)\ not(?:\ to)?
    |(?:am|are|is)\ (?:\w+\ )?(?:unable|not\ able|not\ allowed|not\ permitted|not\ authori[sz]ed
    |not\ prepared|not\ willing|not\ going|not\ in\ a\ position)\ to|have\ no\ way\ to
    |(?:do|does)\ not\ have\ (?:permission|access|the\ ability)\ to)\ (?:\w+ly\ )?"""
# Only what assistants are asked for: "I can't help laughing" is a person.
_SERVE = r"""(?:(?:help|assist)(?:\ you)?(?:\ with|\ in|[.,!;]|$)|accept\ that|access
    |advise\ (?:on|you)|analy[sz]e\ (?:this|your)|browse
    |answer(?:[.,!;]|$|\ (?:this|that|your|it|any|questions|the\ question|such))|carry\ out
    |change\ your|check\ your|comment\ on|complete\ (?:this|that|your)|comply
    |confirm\ or|continue\ (?:this|that|the|with)|create|describe\ how|diagnose|disclose
    |discuss\ (?:this|that|such)|do\ (?:this|that|role-?play)|draft|edit\ (?:this|your)
    |encourage\ such|endorse|engage\ in|explain\ how|facilitate|fake|forecast|fulfill?|generate
    |give\ (?:an?|any|you|out|advice|instructions|legal|medical|financial|details)
    |guess\ (?:the|which)
    |identify\ (?:the|this|a)|impersonate|judge\ from|look\ (?:up|that\ up)
    |make\ (?:predictions|such)
    |offer\ (?:an?|any|advice|guidance)|open\ (?:images|files|links|attachments|the)|outline
    |participate|place\ (?:phone\ )?(?:calls|orders)|predict\ (?:the|next|which)
    |pretend\ to\ be\ (?:your|an?)|process\ (?:this|that|your)|produce|promote|provide
    |rate\ (?:how|myself|this)|recommend|reproduce|respond\ to|retrieve|reveal
    |say\ (?:which|whether)|search\ the|send\ (?:e-?mails|messages)
    |share\ (?:personal|private|that|this|confidential|the)
    |show\ you|speculate|suggest|summari[sz]e|supply|support\ (?:this|that)
    |take\ a\ (?:side|position)
    |tell\ you\ (?:how\ to|what\ to|which|where)|transcribe|translate|verify|walk\ you\ through
    |write
    |view\ (?:images|the|this))\b"""
_REFUSAL = re.compile(
    rf"""^\W*(?:{_SORRY}){{0,2}}{_CANNOT}{_SERVE}
    |^\W*(?:declined|refused|(?:request|access)\ (?:denied|refused))\b
    |\b(?:i|we)\ (?:must|(?:will\ |am\ going\ to\ )?have\ to|need\ to
    |would\ like\ to)\ (?:\w+ly\ )?
        (?:decline|refuse|stop\ here|pass\ on\ (?:this|that)|turn\ (?:this|that)\ down)\b
    |\bbeyond\ what\ i\ can\b|\bnot\ (?:something|a\ \w+|anything)\ (?:that\ )?(?:i|we)
        \ (?:can|am\ able\ to|could)\b
    |\b(?:your|this|that|the|such\ an?)\ (?:request|question|content|topic|task|action
    |information)
        \ (?:cannot\ be|is\ (?:not|against|beyond)|goes\ against|violates|falls\ outside
        |would\ violate)\b
    |\b(?:is\ not|are\ not|cannot\ be)\ (?:something\ that\ can\ be\ )?(?:done|provided|given
        |generated|answered|completed|shared|fulfilled|discussed)\ (?:here|as\ asked
        |at\ this\ time)\b
    |\bno\ (?:\w+\ ){{1,4}}(?:can|will)\ be\ (?:given|provided|generated|shared)\b
    |\b(?:outside|beyond)\ (?:the\ scope|my\ (?:abilities|capabilities|scope))\b
    |\boff-?\ ?limits\b
    |^\W*(?:it|that)\ is\ not\ possible\b|\bno\ way\ for\ me\ to\b
    |\bwould\ be\ (?:\w+\ )?(?:wrong|irresponsible|inappropriate|unethical|illegal)
        \ (?:of|for)\ me\ to\b
    |\bi\ am\ not\ (?:\w+\ )?comfortable\ (?:\w+ing\ )(?:this|that|such|content|an?)\b
    |\b(?:against|violat\w+)\ (?:the|our|my)\ (?:\w+\ )?(?:guidelines|policy|policies|rules
    |terms)\b
    |\b(?:is|are)\ not\ (?:allowed|permitted|supported)\.""",
    re.VERBOSE,
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


def is_refusal(text: str) -> bool:
    """Return whether a reply declines a request.

    ``tests/benchmarks/guards.py`` measures how often this and :func:`is_disclaimer` are wrong.

    >>> is_refusal("I'm sorry, but I can't help with that."), is_refusal("I can't help laughing.")
    (True, False)
    """
    return _REFUSAL.search(_plain(text)[:_OPENING]) is not None


def is_disclaimer(text: str) -> bool:
    """Return whether a reply says that a machine speaks, or that it has no feelings or traits.

    >>> is_disclaimer("As an AI, I have no friends."), is_disclaimer("I'm an AI researcher.")
    (True, False)
    """
    return _DISCLAIMER.search(_plain(text)) is not None


def _plain(text: str) -> str:
    """Return a text in lower case, on one line, without contractions."""
    found = " ".join(text.replace(_CURLY, "'").lower().split())
    for short, long in _EXPANDED.items():
        found = found.replace(short, long)
    return found


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
