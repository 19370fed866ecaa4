"""Personas from a description, and uncreative twins of prompts: ours, or written by a model."""

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from personality_vector.data.creativity import CreativityPair
from personality_vector.data.personas import Instrument, Persona
from personality_vector.data.statements import normalised
from personality_vector.errors import DataError, RecipeError
from personality_vector.files.reading import parse_json
from personality_vector.lab import BUILTIN, builtin
from personality_vector.progress import progress
from personality_vector.recipes.reading import read_recipe
from personality_vector.recipes.schema import Recipe, sentence
from personality_vector.subject import Chat, Sampling, question
from personality_vector.subject.endpoint import Endpoint
from personality_vector.subject.subject import Subject

PAIRS, QUESTIONS = 5, 40
"""How many of each to ask for, as in persona vectors; half of the questions are for evaluation."""

_EVERYDAY = f"{BUILTIN}eval/instruments/everyday.yaml"

_REQUEST = """\
I study how a language model behaves when it takes on a certain manner, and need material for an \
experiment.

The manner is called: {name}
It means: {description}
{opposite}
Write two things.

1. "instructions": {pairs} pairs of system prompts. In each pair, "positive" makes an assistant \
show the manner in whatever it says, and "negative" makes it show {negative}. Address the \
assistant as "you". The two prompts of a pair are of similar length and form. The pairs differ in \
wording: some name qualities, some describe habits, some set a scene.

2. "questions": {questions} different questions or short requests that a user could send. They are \
about ordinary matters of all kinds. An assistant with the manner would answer each of them in a \
visibly different way from one without it. None of them names the manner, asks for it or makes \
one kind of answer the only natural one.

Reply with one JSON object and nothing else:
{{"instructions": [{{"positive": "...", "negative": "..."}}, ...], "questions": ["...", ...]}}"""


# Stands for what the generator will write while the rest of a persona is checked.
_STAND_IN = {
    "instructions": [{"positive": "a", "negative": "b"}],
    "questions": {"extract": ["a"]},
}


class _Pair(Recipe):
    positive: str
    negative: str


class Draft(Recipe):
    """What a generator writes: the JSON object that it is asked for."""

    instructions: list[_Pair]
    questions: list[str]


_SEEN = (
    "Answer every message as a person of this kind: {}",
    "You are somebody with this character, and it shows in whatever you say: {}",
    "This is what you are like. {} Speak as yourself.",
    "You have always been like this: {} Reply the way such a person would.",
    "Play a person like this, and stay in the role: {}",
)
"""Pairs of system prompts, for a description and for its opposite."""
_ORDINARY = "Is an ordinary person without any striking manner."


def described(
    name: str, description: str, *, opposite: str | None = None, pole: str | None = None
) -> Persona:
    """Return a persona with our own forms of system prompts and our own everyday questions.

    No model is asked. Every second question is for evaluation.

    Args:
        name: Lower case, such as ``stoic``.
        description: What positive answers show, a sentence such as "Stays calm whatever happens."
        opposite: What negative answers show; by default nothing in particular.
        pole: Such as ``extraversion:high``, if it is one end of a trait; needs ``opposite``.

    Raises:
        RecipeError: The name, description or pole is not valid.
    """
    asked = [item.text for item in read_recipe(builtin(_EVERYDAY), Instrument).items]
    sides = {"positive": description, "negative": opposite or _ORDINARY}
    content = {
        "name": name,
        "description": description,
        "opposite": opposite,
        "pole": pole,
        "instructions": [
            {side: form.format(_sentence(text)) for side, text in sides.items()} for form in _SEEN
        ],
        "questions": {"extract": asked[::2], "evaluate": asked[1::2]},
    }
    return Persona.parse(content, origin=name, folder=Path())


def _sentence(text: str) -> str:
    """Return a text that ends like a sentence."""
    whole = " ".join(text.split())
    return whole if whole.endswith((".", "!", "?")) else f"{whole}."


Generator = Callable[[Chat, Mapping[str, Any]], str]
"""Writes a reply to a chat, following a JSON schema as well as it can."""

LONG = Sampling(max_new_tokens=4096, temperature=0.7)
"""How a model in memory writes a persona."""


def endpoint_generator(endpoint: Endpoint, what: str = "persona") -> Generator:
    """Return a generator that asks an OpenAI-compatible server, which enforces the schema."""
    return lambda chat, schema: endpoint.write(chat, what, schema)


def local_generator(subject: Subject, sampling: Sampling = LONG, seed: int = 0) -> Generator:
    """Return a generator that asks a model in memory, which cannot enforce the schema."""
    asked = replace(subject, sampling=sampling)
    return lambda chat, _schema: asked.replies([chat], seed)[0].text


def write_persona(
    name: str,
    description: str,
    generator: Generator,
    *,
    opposite: str | None = None,
    pole: str | None = None,
) -> Persona:
    """Return a persona whose instructions and questions ``generator`` wrote.

    Every second question is for evaluation, so that both lists are alike.

    Args:
        name: Lower case, such as ``extraversion``.
        description: What positive answers show.
        generator: Asked once.
        opposite: What negative answers show; by default those of a neutral assistant.
        pole: Such as ``extraversion:high``, if it is one end of a trait; needs ``opposite``.

    Raises:
        DataError: It did not write the JSON object, or one with too few or repeated items.
        RecipeError: The name, description or pole is not valid.

    Source:
        Persona vectors, Chen et al. 2025, arXiv:2507.21509: 5 pairs and 40 questions by a strong
        model. Deviation: our own request, without the judge's prompt, which is the same for all.
    """
    given = {"name": name, "description": description, "opposite": opposite, "pole": pole}
    Persona.parse(
        {**given, **_STAND_IN}, origin="persona", folder=Path()
    )  # before a model is asked
    request = _REQUEST.format(
        name=name,
        description=description,
        opposite=f"Its opposite means: {opposite}\n" if opposite else "",
        negative="the opposite" if opposite else "nothing of it: a neutral, helpful assistant",
        pairs=PAIRS,
        questions=QUESTIONS,
    )
    draft = parse_draft(generator(question(request), Draft.model_json_schema()))
    asked = draft.questions[:QUESTIONS]
    written = {
        **given,
        "instructions": [pair.model_dump() for pair in draft.instructions[:PAIRS]],
        "questions": {"extract": asked[::2], "evaluate": asked[1::2]},
    }
    try:
        return Persona.parse(written, origin="what the generator wrote", folder=Path())
    except RecipeError as error:
        raise DataError(str(error)) from error


def parse_draft(text: str) -> Draft:
    """Return the JSON object in ``text``, which may stand among other words or in a code fence.

    Surplus items are left out later; too few are refused.

    Raises:
        DataError: There is no JSON object, or it does not have the form asked for.
    """
    begin, end = text.find("{"), text.rfind("}")
    if begin < 0 or end < begin:
        raise DataError(f"the generator wrote {text[:80]!r} instead of a JSON object")
    try:
        draft = Draft.model_validate(parse_json(text[begin : end + 1]))
    except json.JSONDecodeError as error:
        raise DataError(
            f"the generator wrote broken JSON ({error.msg} at character {error.pos} of "
            f"{end + 1 - begin}); a longer limit of tokens or a larger model may help"
        ) from error
    except ValidationError as error:
        raise DataError(f"the generator's JSON: {sentence(Draft, error)}") from error
    except ValueError as error:
        raise DataError(f"the generator's JSON cannot be read: {error}") from error
    for what, found, wanted in (
        ("instruction pairs", len(draft.instructions), PAIRS),
        ("questions", len(draft.questions), QUESTIONS),
    ):
        if found < wanted:
            raise DataError(f"the generator wrote {found} {what}, {wanted} are needed")
    return draft


SHORT = Sampling(max_new_tokens=160, temperature=0.7)
"""How a model in memory writes a twin."""

_TWIN = """\
Here is a prompt that asks a writer for something creative:

{prompt}

Write its plain counterpart: a prompt that asks for the same kind of text about the same subject, \
but for a version in which everything is ordinary and goes as one would expect. Leave out whatever \
is original in the prompt, and do not mention creativity. Keep it to one or two sentences, no \
longer than the prompt. Write the new prompt and nothing else."""

_MOST, _SPARE = 2, 8
"""A twin has at most this many times the words of its prompt, and some to spare."""


class Twin(Recipe):
    """What a generator writes, if it keeps to the schema."""

    prompt: str


class Twins(NamedTuple):
    """What came of asking for the uncreative twins of prompts.

    Attributes:
        pairs: The prompts with a usable twin, in order.
        unusable: The other prompts, to what was wrong.
    """

    pairs: Sequence[CreativityPair]
    unusable: Mapping[str, str]


def write_twins(prompts: Sequence[str], generator: Generator) -> Twins:
    """Return pairs of each prompt and the uncreative twin that ``generator`` wrote.

    A twin is unusable if it is empty, the prompt itself, or more than twice as long and 8 words.

    Args:
        prompts: What asks for something creative, each once.
        generator: Asked once for each prompt.

    Raises:
        DataError: A prompt is given twice, or no twin is usable.

    Source:
        Olson et al. 2024, arXiv:2412.06060, let GPT-4 negate 500 story prompts. Deviation: our own
        request.
    """
    counts = Counter(map(normalised, prompts))
    if repeated := [prompt for prompt in prompts if counts[normalised(prompt)] > 1]:
        raise DataError(f"the prompt {repeated[0][:60]!r} is given twice; give each once")
    pairs, unusable = list[CreativityPair](), dict[str, str]()
    for prompt in progress(prompts, "write twins"):
        chat, twin = question(_TWIN.format(prompt=prompt)), ""
        try:
            twin = _twin(generator(chat, Twin.model_json_schema()))
            why = _why_unusable(prompt, twin)
        except DataError as error:  # one reply that cannot be had takes no other with it
            why = str(error)
        if why:
            unusable[prompt] = why
        else:
            pairs.append(CreativityPair(creative=prompt, uncreative=twin))
    if not pairs:
        first, why = next(iter(unusable.items()))
        raise DataError(f"no twin is usable, that of {first[:60]!r} because {why}")
    return Twins(pairs, unusable)


_QUOTES = " \"'\N{LEFT DOUBLE QUOTATION MARK}\N{RIGHT DOUBLE QUOTATION MARK}"


def _twin(text: str) -> str:
    """Return the prompt in a reply: that of a JSON object, or all of it without quotes."""
    with suppress(ValueError):  # a model in memory writes plain text
        text = Twin.model_validate(parse_json(text)).prompt
    return " ".join(text.split()).strip(_QUOTES)


def _why_unusable(prompt: str, twin: str) -> str:
    if not twin or twin.startswith("{"):
        return "it is JSON of another form" if twin else "it is empty"
    if normalised(twin) == normalised(prompt):
        return "it is the prompt itself"
    most, words = _MOST * len(prompt.split()) + _SPARE, len(twin.split())
    return f"it has {words} words and may have {most}" if words > most else ""
