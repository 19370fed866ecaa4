"""Laws over every kind of measure, also over those that are still to be written."""

import json
import os
import subprocess
import sys
from importlib.machinery import ModuleSpec
from itertools import product
from statistics import fmean
from types import ModuleType

import pytest
import torch

from personality_vector.errors import RecipeError
from personality_vector.lab import builtin
from personality_vector.measures.spec import KINDS, QUESTION, AnyMeasure
from personality_vector.recipes.schema import Recipe, schema_of
from personality_vector.steering import SteeringVector
from personality_vector.subject.models import load_model, load_tokenizer
from personality_vector.subject.protocols import Measure
from personality_vector.subject.subject import Subject

HIDDEN = 160
"""Width of the embedded model."""

GIVEN = {
    "likelihood": {"statements": "s.jsonl", "traits": ["openness", "humour"]},
    "guards": {"statements": "s.jsonl"},
    "interview": {"traits": ["openness"], "question": QUESTION},
    "cost": {"price_in": 1.0, "price_out": 2.0},
    "activations": {"vectors": ["v"], "layer": 1},
    "tasks": {"files": ["q.jsonl"]},
    "self_report": {"questionnaire": "s.txt", "scoring_key": "s.yaml", "answers": "generated"},
    "creativity": {"tasks": ["v.yaml"]},
}
"""What a kind needs, or what its other options would do nothing without."""

ANOTHER = {
    "about": ["openness"],
    "name": "mine",
    "traits": ["humour"],
    "statements": "t.jsonl",
    "held_out": 0.6,
    "part": "train",
    "limit": 1,
    "question": "Why?",
    "turns": 2,
    "system": "Be brief.",
    "instrument": "builtin:eval/instruments/acquaintance.yaml",
    "persona": "builtin:training/steering/personas/openness.yaml",
    "pairs": "builtin:training/steering/creativity.jsonl",
    "max_tokens": 5,
    "batch_size": 3,
    "judges": ["classifier"],
    "vectors": ["w"],
    "layer": 2,
    "price_in": 3.0,
    "price_out": 4.0,
    "benign": "builtin:eval/instruments/benign.yaml",
    "files": ["u.jsonl"],
    "harness": ["arc_easy"],
    "include": "h",
    "questionnaire": "t.txt",
    "scoring_key": "t.yaml",
    "facets": True,
    "answers": "likelihood",
    "tasks": ["w.yaml"],
}
"""Another value of every option."""

OF_KIND = {
    "instructions": {"instrument": "i.yaml"},
    "creativity": {"judges": ["infrequency"]},
    "linguistic": {"traits": ["openness"], "dictionary": "d.dic"},
}
"""Another value where that of the other kinds does not fit."""

DRAWN = {"max_new_tokens": 9, "temperature": 0.5, "top_p": 0.9, "batch_size": 2, "samples": 2}
NEUTRAL = {("interview", "traits"), ("interview", "judges"), ("creativity", "judges")}
"""What is done to stored answers, at any time. ``batch_size`` is the speed of a measure."""


class Asked(Recipe):
    """A recipe with a measure."""

    measure: AnyMeasure


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return a folder with two files of statements that do not say to which part they belong."""
    folder = tmp_path_factory.mktemp("kinds")
    for name, end in (("s", "for me"), ("t", "to me")):
        rows = [
            {"trait": trait, "level": level, "statement": f"{trait} is {level} {end}, {n}"}
            for trait, level, n in product(("openness", "humour"), ("high", "low"), range(40))
        ]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, direction in (("v", torch.ones(HIDDEN)), ("w", torch.arange(float(HIDDEN)))):
        directions = {1: direction, 2: 2 * direction}
        SteeringVector(directions, "", None, name, "response_mean", (1, 1)).save(folder / name)
    item = {"id": "a", "text": "Two words, please.", "check": {"words": 2}}
    (folder / "i.yaml").write_text(json.dumps({"name": "i", "version": "1", "items": [item]}))
    for name, asked in (("q", "Who are you?"), ("u", "Who?")):
        choices = ["I like people.", "qzx jjq", "%%% ^^", "vvvk zzq"]
        row = {"question": asked, "choices": choices, "answer": 0}
        rows = (json.dumps({"id": str(n), **row}) + "\n" for n in range(12))
        (folder / f"{name}.jsonl").write_text("".join(rows))
    for name, item, reverse in (("s", "Sleep", [2]), ("t", "Shout", [1])):
        (folder / f"{name}.txt").write_text(f"{item}\nRun\nSing\nDance\n")
        key = {"name": "k", "source": "us", "reversed": reverse, "facets": {"zest": [1]}}
        key |= {"traits": {"openness": [1, 2], "humour": [3, 4]}}
        (folder / f"{name}.yaml").write_text(json.dumps(key))
    for name in ("v", "w"):
        task = {"name": name, "version": "1", "request": "Uses of {item}?", "items": ["a", "b"]}
        (folder / f"{name}.yaml").write_text(json.dumps(task))
    (folder / "d.dic").write_text("%\n1 posemo\n2 i\n%\nhappy 1\ni 2\n")
    (folder / "h").mkdir()
    (folder / "h" / "mine.yaml").write_text("task: mine\n")
    return folder


@pytest.fixture(scope="module")
def parsed(folder):
    """Return ``parsed(kind, **options)``: a measure of a recipe."""

    def parse(kind, **given):
        data = {"measure": {kind: {**GIVEN.get(kind, {}), **given}}}
        return Asked.parse(data, origin="r.yaml", folder=folder).measure

    return parse


@pytest.fixture(scope="module")
def base():
    path = builtin("builtin:demo")
    return Subject(load_model(path), load_tokenizer(path), memory={})


@pytest.mark.parametrize("kind", KINDS)
def test_its_identity_is_every_option_that_changes_numbers_and_no_other(parsed, kind, monkeypatch):
    library = ModuleType("lm_eval")  # of an extra
    library.__spec__ = ModuleSpec("lm_eval", None)
    monkeypatch.setitem(sys.modules, "lm_eval", library)
    options = set(schema_of(KINDS, kind).model_fields) - {"generation"}
    another = {**ANOTHER, **OF_KIND.get(kind, {})}
    others = {option: parsed(kind, **{option: another[option]}).open() for option in options}
    if "generation" in schema_of(KINDS, kind).model_fields:
        others |= {
            f"generation.{key}": parsed(kind, generation={key: value}).open()
            for key, value in DRAWN.items()
        }
    plain = parsed(kind).open().identity()
    assert plain == parsed(kind).open().identity()
    seen = {name: one.identity() for name, one in others.items() if one.identity() != plain}
    neutral = {option for found, option in NEUTRAL if found == kind} | {"batch_size"}
    if "about" in options:  # they ask one question, which is about no trait
        neutral |= {"about", "limit"}
    assert set(seen) == set(others) - neutral
    assert len(set(seen.values())) == len(seen)


@pytest.mark.parametrize("kind", KINDS)
def test_its_numbers_are_under_its_name_finite_and_the_same_again(parsed, base, kind):
    options = {"name": "mine", "generation": {"max_new_tokens": 12}}
    given = {k: v for k, v in options.items() if k in schema_of(KINDS, kind).model_fields}
    opened = parsed(kind, **given).open()
    measure = opened.prepare(base)
    assert isinstance(measure, Measure)
    assert measure.name == opened.name == "mine"
    assert measure.identity() == opened.identity(), "what was prepared follows from the base"
    assert measure.unit
    assert measure.better in ("towards_pole", "low", "high", "none")
    one, again = (measure.finish(base, measure.collect(base, 3)) for _ in range(2))
    assert _but_memory(one.readings) == _but_memory(again.readings)
    assert one.readings or one.answers
    for reading in one.readings:
        assert reading.measure == "mine" or reading.measure.startswith("mine.")
        assert reading.value is None or abs(reading.value) < float("inf")
        assert reading.n + reading.unscored > 0
        if measure.scale is not None and reading.value is not None and not reading.unit:
            assert measure.scale[0] <= reading.value <= measure.scale[1]
    assert len({(r.measure, r.trait) for r in one.readings}) == len(one.readings)
    values = {}
    for seen in one.observations:
        values.setdefault((seen.measure, seen.trait), []).append(seen.value)
    readings = {(r.measure, r.trait): r.value for r in one.readings}
    for key, parts in values.items():
        mean = readings.get(key, fmean(parts))
        assert fmean(parts) == pytest.approx(mean, abs=1e-9), "a reading is their mean"


def _but_memory(readings):
    """Leave out the peak of the process, which may rise at any time."""
    return [reading for reading in readings if reading.measure != "mine.memory"]


@pytest.mark.parametrize("kind", KINDS)
def test_what_it_dumps_it_reads(parsed, folder, kind):
    spec = parsed(kind)
    assert (spec.key, spec.called, parsed(kind, name="mine").called) == (kind, kind, "mine")
    dumped = json.loads(Asked.model_validate({"measure": spec}).model_dump_json())
    assert list(dumped["measure"]) == [kind]
    assert Asked.parse(dumped, origin="again", folder=folder).measure == spec


SCRIPT = """
import json, sys
from pathlib import Path
from personality_vector.study.recipe import EvalRecipe
folder, measures = Path(sys.argv[1]), json.loads(sys.argv[2])
data = {"model": "builtin:demo", "measures": measures}
recipe = EvalRecipe.parse(data, origin="r.yaml", folder=folder)
heavy = {"torch", "transformers", "pandas", "scipy", "sklearn"} & set(sys.modules)
print(json.dumps([sorted(heavy), *(spec.open().identity() for spec in recipe.measures)]))
"""


def test_identities_are_those_of_another_process_and_schemas_need_no_torch(parsed, folder):
    given = [{kind: GIVEN.get(kind, {})} for kind in KINDS]
    command = [sys.executable, "-c", SCRIPT, str(folder), json.dumps(given)]
    environment = {**os.environ, "PYTHONHASHSEED": "7"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    heavy, *found = json.loads(done.stdout)
    assert heavy == []
    assert found == [parsed(kind).open().identity() for kind in KINDS]


@pytest.mark.parametrize(
    ("measure", "says"),
    [
        ("probe", "measure: known are activations, coherence, cost"),
        ({"likelyhood": {}}, "unknown key 'likelyhood'; did you mean 'likelihood'?"),
        ({"likelihood": {"traits": []}}, "traits: needs at least one"),
        ({"likelihood": {"traits": ["openness", "openness"]}}, "traits: a value is given twice"),
        ({"likelihood": {"held_out": 1.0}}, "held_out: Input should be less than 1"),
        ({"likelihood": {"batch_size": 0}}, "batch_size: Input should be greater"),
        ({"divergence": {"max_tokens": 0}}, "max_tokens: Input should be greater"),
        ({"guards": {"generation": {"samples": 0}}}, "generation.samples: Input should"),
        ({"guards": {"generation": {"samples": 2, "temperature": 0}}}, "the same reply"),
        ({"guards": {"trait": ["openness"]}}, "unknown key 'trait'; did you mean 'traits'?"),
        ({"coherence": {"persona": "p", "instrument": "i"}}, "not both instrument and persona"),
        ({"guards": {"pairs": "p", "instrument": "i"}}, "not both instrument and pairs"),
        ({"guards": {"pairs": "p", "tasks": ["i"]}}, "not both pairs and tasks"),
        ({"cost": {"price_in": -1.0}}, "price_in: Input should be greater"),
        ({"cost": {"price_in": 1.0}}, "give price_in and price_out together"),
        ({"activations": {"layer": 1}}, "vectors and layer belong together"),
        ({"activations": {"vectors": ["v"]}}, "vectors and layer belong together"),
        ({"interview": {}}, "needs traits to rate the answers for"),
        ({"interview": {"traits": ["openness"], "judges": ["oracle"]}}, "judges.0: known are"),
        ({"self_report": {}}, "the key 'questionnaire' is missing"),
        (
            {"self_report": {"questionnaire": "q", "generation": {"samples": 2}}},
            "generation is for replies; add answers: generated",
        ),
        ({"likelihood": {}, "guards": {}}, "is one key with its options below it"),
    ],
)
def test_a_wrong_measure_is_refused_in_one_sentence(tmp_path, measure, says):
    with pytest.raises(RecipeError) as refused:
        Asked.parse({"measure": measure}, origin="r.yaml", folder=tmp_path)
    assert says in str(refused.value)
    assert "\n" not in str(refused.value)
