"""Questionnaires: three shapes of files, keys that say what items measure, and their faults."""

import json
from collections import Counter
from pathlib import Path

import pytest
import yaml

from personality_vector.data.personas import Instrument
from personality_vector.data.questionnaires import Key, read_questionnaire, shipped_key
from personality_vector.errors import DataError, RecipeError
from personality_vector.lab import lab_folder
from personality_vector.recipes.reading import read_recipe
from personality_vector.traits import BIG_FIVE

KEYS = {file.stem: read_recipe(file, Key) for file in (lab_folder() / "eval/keys").glob("*.yaml")}
HEADER = "label_raw,text,label_ocean,key"
TABLE = f'{HEADER}\nAnger,"Shout, at times",N,1\nActivity Level,Sit still,E,-1\n'
TEXTS = ["Shout, at times", "Sit still", "Laugh"]
OWN = {
    "name": "own",
    "source": "a test",
    "traits": {"neuroticism": [1], "extraversion": [2, 3]},
    "reversed": [2],
    "facets": {"anger": [1], "activity-level": [2]},
    "norms": {"who": "a class", "n": 20, "traits": {"extraversion": [3.5, 0.5]}},
}
FORM = {
    "questions": [{"id": n, "text": text} for n, text in enumerate(TEXTS, 1)],
    "select": [{"id": n, "text": f"option {n}"} for n in range(1, 6)],
}


@pytest.fixture
def read(tmp_path):
    """Return ``read(name, content, key)``: what a file of this content says under a key."""

    def read(name, content, key=OWN):
        path, own = tmp_path / name, tmp_path / "key.yaml"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        if isinstance(key, dict):
            own.write_text(yaml.safe_dump(key))
            key = own
        return read_questionnaire(path, key)

    return read


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("q.json", json.dumps(FORM, indent=1)),
        ("q.txt", "\n".join(TEXTS)),
        ("q.txt", "\r\n\r\n".join(f" {n}. {text} " for n, text in enumerate(TEXTS, 1))),
        ("q", "".join(f"{n}) {text}\n" for n, text in [*enumerate(TEXTS, 1)][::-1])),
    ],
)
def test_every_shape_gives_the_same_items_with_what_the_key_says(read, name, content):
    found = read(name, content)
    items = {one.id: (one.text, one.trait, one.keyed, one.facet) for one in found.items}
    assert items == {
        "1": ("Shout, at times", "neuroticism", 1, "anger"),
        "2": ("Sit still", "extraversion", -1, "activity-level"),
        "3": ("Laugh", "extraversion", 1, None),
    }
    assert len(found.options) == 5
    assert (found.options[0] == "option 1") == name.endswith("json")
    assert found.scale == (1, 5)
    assert found.norms.traits == {"extraversion": (3.5, 0.5)}


def test_a_table_holds_its_own_key_and_another_must_agree(read):
    alone = read("q.csv", TABLE, None)
    rows = [(one.trait, one.keyed, one.facet) for one in alone.items]
    assert rows == [("neuroticism", 1, "anger"), ("extraversion", -1, "activity-level")]
    assert alone.norms is None
    two = {**OWN, "traits": {"neuroticism": [1], "extraversion": [2]}}
    both = read("q.csv", TABLE, two)
    assert both.items == alone.items
    assert both.norms is not None
    with pytest.raises(DataError, match=r"q\.csv: item 2 is extraversion:low, and extraversion:hi"):
        read("q.csv", TABLE, {**two, "reversed": []})


def test_items_of_other_traits_are_left_out(read):
    found = read("q.txt", "\n".join(TEXTS))
    assert [one.id for one in found.about(["extraversion"]).items] == ["2", "3"]
    with pytest.raises(DataError, match="no item is about humour; there are extraversion, neuroti"):
        found.about(["extraversion", "humour"])


@pytest.mark.parametrize(
    ("name", "content", "key", "says"),
    [
        ("q.txt", "Laugh\n", None, r"q\.txt: does not say what its items measure; give a key"),
        ("q.json", json.dumps(FORM), None, "does not say what its items measure; give a key"),
        ("q.csv", TABLE.replace(",E,", ",X,"), None, "line 3: label_ocean is 'X'; it must be O or"),
        ("q.csv", TABLE.replace("-1", "0"), None, "line 3: key is '0'; it must be 1 or -1"),
        ("q.csv", TABLE.replace("Sit still", ""), None, "line 3: has no text"),
        ("q.csv", "a,b\n1,2\n", None, "is not a questionnaire: give a CSV with the columns label_"),
        ("q.csv", f"{HEADER}\n", None, "is not a questionnaire"),
        ("q.json", "[1]", OWN, "is not a questionnaire"),
        ("q.json", '{"items": []}', OWN, "is not a questionnaire"),
        ("q.json", "{", OWN, "is not JSON"),
        ("q.txt", " \n", OWN, "is empty, and is not a questionnaire"),
        (
            "q.json",
            json.dumps({**FORM, "select": FORM["select"][:4]}),
            OWN,
            "has 4 options, and a scale from 1 to 5 needs 5, which is that of the key own",
        ),
        (
            "q.json",
            json.dumps({**FORM, "select": FORM["select"][::-1]}),
            OWN,
            "select: the options",
        ),
        ("q.json", json.dumps({**FORM, "questions": FORM["questions"] * 2}), OWN, "two items have"),
        ("q.json", json.dumps({**FORM, "questions": [{"id": 1}]}), OWN, "questions.0.text"),
        ("q.txt", "Shout\nSit\n", OWN, r"q\.txt: lacks the items 3 of the key own"),
        ("q.txt", "\n".join([*TEXTS, "Run"]), OWN, "has the items 4, which the key own does not"),
        (
            "q.txt",
            "1. Shout\nSit\n3. Laugh\n",
            OWN,
            "'Sit' has no number in front, and other lines",
        ),
        ("q.txt", "Gef\xfchl\n".encode("latin-1"), OWN, "is not UTF-8"),
        ("q.csv", TABLE.replace("Shout", "Gef\xfchl").encode("latin-1"), None, "is not UTF-8"),
    ],
)
def test_a_wrong_file_is_refused_in_one_sentence(read, name, content, key, says):
    with pytest.raises(DataError, match=says) as refused:
        read(name, content, key)
    assert name in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"scale": [1, 4]}, "options: has 5 options, and a scale from 1 to 4 needs 4"),
        ({"scale": [5, 1]}, "does not rise"),
        ({"traits": {"openness": [1, 2, 3], "neuroticism": [3]}}, "traits: item 3 is given twice"),
        ({"traits": {}}, "traits"),
        ({"reversed": [9]}, "reversed: item 9 belongs to no trait"),
        ({"facets": {"calm": [1, 2]}}, "calm: needs items, all of them of one trait"),
        ({"norms": {"who": "x", "traits": {"humour": [1.0, 1.0]}}}, "norms: humour is not among"),
        ({"fasets": {}}, "unknown key 'fasets'; did you mean 'facets'?"),
    ],
)
def test_a_wrong_key_is_refused_in_one_sentence(read, change, says):
    with pytest.raises(RecipeError, match=says.replace("?", r"\?")) as refused:
        read("q.txt", "\n".join(TEXTS), {**OWN, **change})
    assert "key.yaml" in str(refused.value)


def test_a_key_that_does_not_exist_is_refused(read):
    with pytest.raises(RecipeError, match="bfi-45"):
        read("q.txt", "Laugh", "bfi-45")


@pytest.mark.parametrize(
    ("name", "items", "reversals"), [("ipip-neo-120", 120, 55), ("bfi-44", 44, 16)]
)
def test_a_shipped_key_covers_every_item_once_and_has_norms(name, items, reversals):
    key = KEYS[name]
    assert key.name == name == shipped_key(name).stem
    assert sorted(key.of_item) == [*range(1, items + 1)]
    assert set(key.traits) == set(key.norms.traits) == set(BIG_FIVE)
    assert len(set(key.reversed)) == reversals
    for trait, numbers in key.traits.items():
        assert 0 < len(set(numbers) & set(key.reversed)) < len(numbers), "both directions"
        mean, sd = key.norms.traits[trait]
        assert 2.5 < mean < 4.5
        assert 0.4 < sd < 1.0


def test_facets_are_six_of_each_trait_with_four_items_and_those_of_the_interview():
    key = KEYS["ipip-neo-120"]
    of = {facet: {key.of_item[number] for number in group} for facet, group in key.facets.items()}
    assert {len(group) for group in key.facets.values()} == {4}
    assert Counter(trait for traits in of.values() for trait in traits) == dict.fromkeys(
        BIG_FIVE, 6
    )
    asked = read_recipe(lab_folder() / "eval/instruments/facets.yaml", Instrument).items
    assert {item.facet: {item.trait} for item in asked} == of


def test_the_shipped_key_agrees_with_a_public_file_on_every_item(shared: Path):
    """They come from two sources; the other public file holds the same items in this order."""
    theirs = read_questionnaire(shared / "data/instruments/mpi_120.csv")
    ours = read_questionnaire(shared / "data/instruments/ipip_neo_120.json", "ipip-neo-120")
    rows = [
        (one.trait, one.keyed, one.facet) == (other.trait, other.keyed, other.facet)
        for one, other in zip(ours.items, theirs.items, strict=True)
    ]
    assert sum(rows) == len(rows) == 120
