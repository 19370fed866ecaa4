"""A few lines of a recipe as many interventions: one for each value, pole, or combination of poles.

``{vectors}`` stands for the path that the recipe gives under ``vectors``. ``each`` repeats an
intervention for every value of a word of its own, ``{trait}`` and ``{level}`` repeat it for every
pole, and ``composed`` for every combination of one pole of each trait.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import Any

from personality_vector.errors import TraitError
from personality_vector.recipes.schema import distinct
from personality_vector.traits import BIG_FIVE, BIG_FIVE_POLES, Pole

TRAIT, LEVEL = "{trait}", "{level}"
"""In an intervention: it is repeated for each pole, or for each trait."""

SIGNS, VECTORS = "{signs}", "{vectors}"
_TAKEN = {TRAIT, LEVEL, SIGNS, VECTORS, "{seed}"}
Row = Mapping[str, Any]


def expanded(interventions: Any, info: Any) -> Any:
    """Return the interventions that those of a recipe stand for.

    Args:
        interventions: As they are written; anything but a list is returned as it is.
        info: Of the validation: ``vectors`` has been read before.

    Raises:
        ValueError: A word stands for nothing, or a list of poles, traits or values is wrong.
    """
    if not isinstance(interventions, list | tuple):
        return interventions
    vectors, is_named = info.data.get("vectors"), VECTORS in str(interventions)
    if is_named and vectors is None:
        raise ValueError(
            f"{VECTORS} stands for the path under vectors; give one, such as "
            "vectors=runs/llama/{trait}-{level}"
        )
    if vectors is not None and not is_named:
        raise ValueError(f"vectors is given, but no intervention contains {VECTORS}")
    return [
        row
        for given in filled(list(interventions), {VECTORS: str(vectors)} if is_named else {})
        for one in _for_each_value(given)
        for row in (_for_each_combination(one) if _has(one, "composed") else _for_each_pole(one))
    ]


def names_pole(given: Any) -> bool:
    """Return whether an intervention is repeated for each of its poles."""
    is_one = isinstance(given, Mapping) and "composed" not in given
    return is_one and any(word in str(given) for word in (TRAIT, LEVEL))


def _has(given: Any, key: str) -> bool:
    return isinstance(given, Mapping) and key in given


def filled(data: Any, words: Mapping[str, Any]) -> Any:
    """Return data with words filled into its texts; a text that is only a word becomes its value.

    The type of a text is kept: it knows where a relative path starts.
    """
    if isinstance(data, str):
        found = words.get(data, data)
        if not isinstance(found, str):
            return found
        for word, value in words.items():
            found = found.replace(word, f"{value:g}" if isinstance(value, float) else str(value))
        return type(data)(found)
    if isinstance(data, Mapping):
        return {key: filled(value, words) for key, value in data.items()}
    return [filled(each, words) for each in data] if isinstance(data, list | tuple) else data


def _for_each_value(given: Any) -> list[Any]:
    """Return an intervention for every combination of the values under ``each``."""
    if not _has(given, "each"):
        return [given]
    each, row = given["each"], {key: value for key, value in given.items() if key != "each"}
    if not isinstance(each, Mapping) or not each:
        raise ValueError(
            f"each: a word with a list of its values, such as {{alpha: [0.5, 1.0]}}, "
            f"not {each!r:.40}"
        )
    for name, values in each.items():
        _require_values(str(name), values, row)
    words = [f"{{{name}}}" for name in each]
    return [filled(row, dict(zip(words, own, strict=True))) for own in product(*each.values())]


def _require_values(name: str, values: Any, row: Row) -> None:
    word = f"{{{name}}}"
    if not re.fullmatch("[a-z_]+", name) or word in _TAKEN:
        raise ValueError(
            f"each: {name!r} cannot be a word of your own; take lower-case letters, and not "
            f"{', '.join(sorted(taken.strip('{}') for taken in _TAKEN))}"
        )
    is_plain = isinstance(values, list | tuple) and all(
        isinstance(value, str | int | float) for value in values
    )
    if not is_plain or not values or len(set(values)) < len(values):
        raise ValueError(f"each.{name}: a list of different numbers or texts, not {values!r:.40}")
    if word not in str(row):
        raise ValueError(f"each.{name}: {word} occurs nowhere else in this intervention")


def _for_each_pole(given: Any) -> list[Any]:
    """Return an intervention for each pole, or for each trait, which is then meant to rise."""
    if not isinstance(given, Mapping):
        return [given]
    named = ("label", "group", "poles")
    inside = str({key: value for key, value in given.items() if key not in named})
    words = [word for word in (TRAIT, LEVEL) if word in inside]
    for word in (TRAIT, LEVEL):
        if word in str(given.get("label")) and word not in words:
            raise ValueError(
                f"{given['label']}: {word} is in the label, but in no path or text of the same "
                "intervention"
            )
    if not words:
        return [given]
    row = {"label": ":".join(words), **given}
    found: list[Any] = []
    for pole in _poles_of(given):
        aim = pole if LEVEL in words else Pole(pole.trait, "high")
        filled = _aimed(row, {TRAIT: pole.trait, LEVEL: pole.level}, [aim])
        # What names the trait alone is the same for both of its poles.
        if filled not in found:
            found.append(filled)
    return found


def _poles_of(given: Row) -> Sequence[Pole]:
    poles = given.get("poles")
    if poles is None:
        return BIG_FIVE_POLES
    if not isinstance(poles, list | tuple) or not poles:
        raise ValueError(f"poles: a list of poles, such as [extraversion:high], not {poles!r:.40}")
    try:
        return [Pole.parse(str(pole)) for pole in poles]
    except TraitError as error:
        raise ValueError(f"poles: {error}") from error


def _aimed(row: Row, words: Mapping[str, Any], poles: Sequence[Pole]) -> dict[str, Any]:
    """Return a filled row that says which poles it is meant to move, and whom it belongs with."""
    group = filled(row["group"], words) if "group" in row else _group_of(str(row["label"]))
    aim = {"poles": [str(pole) for pole in poles], "group": group}
    return {**filled(dict(row), words), **aim}


def _group_of(label: str) -> str:
    """Return what all interventions of one label are called: ``all poles on domain 0.5``."""
    for words, name in ((f"{TRAIT}:{LEVEL}", "all poles"), (TRAIT, "all traits"), (LEVEL, "")):
        label = label.replace(words, name)
    return " ".join(label.replace(SIGNS, "").split()) or "all"


def _for_each_combination(given: Row) -> Iterator[Any]:
    """Yield a merge for every combination of one pole of each trait.

    Each term has alpha 1, and the strength, which is lambda, is the alpha of all of them. A path
    without ``{level}`` holds half differences, which are subtracted for a low pole.
    """
    if "terms" in given or "poles" in given:
        raise ValueError("composed writes terms and poles itself; give its traits instead")
    path, signed = given["composed"], LEVEL not in str(given["composed"])
    if TRAIT not in str(path):
        raise ValueError(f"composed: a path with {TRAIT}, such as {VECTORS}, not {path!r:.60}")
    traits = _traits_of(given)
    row = {key: value for key, value in given.items() if key not in ("composed", "traits")}
    for levels in product(("high", "low"), repeat=len(traits)):
        poles = [Pole.parse(f"{t}:{level}") for t, level in zip(traits, levels, strict=True)]
        terms = [
            {
                "tuned": filled(path, {TRAIT: pole.trait, LEVEL: pole.level}),
                "alpha": float(pole.sign) if signed else 1.0,
            }
            for pole in poles
        ]
        named = {"label": SIGNS, **row, "terms": terms}
        yield _aimed(named, {SIGNS: signs_of(poles)}, poles)


def _traits_of(given: Row) -> Sequence[str]:
    traits = given.get("traits", BIG_FIVE)
    try:
        if not isinstance(traits, list | tuple) or not traits:
            raise ValueError(f"a list of traits, such as [extraversion], not {traits!r:.40}")
        return [Pole.parse(f"{trait}:high").trait for trait in distinct(tuple(traits))]
    except (ValueError, TraitError) as error:
        raise ValueError(f"traits: {error}") from error


def signs_of(poles: Sequence[Pole]) -> str:
    """Return poles in short, by the initials of their traits where these differ.

    >>> signs_of([Pole.parse("openness:high"), Pole.parse("neuroticism:low")])
    'O+N-'
    >>> signs_of([Pole.parse("calm:high"), Pole.parse("care:low")])
    'calm+care-'
    """
    initials = [pole.trait[0].upper() for pole in poles]
    is_clear = len(set(initials)) == len(poles)
    names = initials if is_clear else [pole.trait for pole in poles]
    return "".join(
        f"{name}{'+' if pole.sign > 0 else '-'}" for name, pole in zip(names, poles, strict=True)
    )
