"""Words by category: counting, indices, the shipped list and dictionaries of LIWC."""

import json
from dataclasses import replace

import pytest

from personality_vector.data.lexicon import (
    ENGLISH,
    Lexicon,
    LexiconFile,
    read_lexicon,
    reference_of,
)
from personality_vector.data.liwc import read_dic
from personality_vector.errors import DataError, RecipeError
from personality_vector.lab import builtin
from personality_vector.recipes.reading import read_recipe

DIC = """%
1\tposemo
2\tTentat (Tentative)
3\ti
%
happ*\t1
kind of\t2
self-doubt*\t2
I\t3
maybe 2
like\t(2 3)1/2
sort\t<of>2/1
right\t(2)1 3
"""


@pytest.fixture
def dic(tmp_path):
    (tmp_path / "mine.dic").write_text(DIC)
    return tmp_path / "mine.dic"


@pytest.mark.parametrize(
    ("text", "shares"),
    [
        ("I happily smile", {"posemo": 1, "i": 1, "long_words": 1}),
        ("kind of", {"tentat": 1}),
        ("kind, of", {"tentat": 1}),
        ("a kind", {}),
        ("Self-doubting maybe", {"tentat": 2, "long_words": 1}),
        ("like sort right unhappy", {"posemo": 1, "tentat": 1, "i": 1, "long_words": 1}),
    ],
)
def test_words_beginnings_and_phrases_are_counted(dic, text, shares):
    lexicon = Lexicon(read_dic(dic), {}, {})
    count = len(text.replace("-", " ").split())
    assert lexicon.shares(text) == pytest.approx(
        {
            name: 100 * shares.get(name, 0) / count
            for name in ("posemo", "tentat", "i", "long_words")
        }
    )


def test_a_dictionary_of_liwc_has_the_indices_of_the_categories_it_knows(dic):
    lexicon = read_lexicon(dic)
    assert lexicon.signs["extraversion"] == {"posemo": 1, "tentat": -1}
    assert lexicon.signs["neuroticism"] == {"i": 1, "posemo": -1}
    assert "conscientiousness" not in lexicon.signs  # none of its categories
    assert lexicon.reference["i"] == reference_of(lexicon)["i"]


def test_the_shipped_numbers_are_those_of_the_shipped_texts():
    lexicon = read_lexicon()
    counted = reference_of(lexicon)
    assert lexicon.reference.keys() == counted.keys() == set(lexicon.names)
    for name, numbers in counted.items():
        assert lexicon.reference[name] == pytest.approx(numbers, abs=1e-4)


def test_an_index_is_the_mean_of_signed_z_scores_that_end_at_three():
    lexicon = Lexicon({}, {"humour": {"a": 1, "b": -1}}, {"a": (10.0, 2.0), "b": (5.0, 4.0)})
    assert lexicon.index("humour", {"a": 12.0, "b": 3.0}) == pytest.approx((1.0 + 0.5) / 2)
    assert lexicon.index("humour", {"a": 10.0, "b": 5.0}) == 0.0
    assert lexicon.index("humour", {"a": 99.0, "b": 99.0}) == 0.0
    assert lexicon.index("humour", {"a": 99.0, "b": -99.0}) == 3.0
    turned = replace(lexicon, signs={"humour": {"a": -1, "b": 1}})
    assert turned.index("humour", {"a": 12.0, "b": 3.0}) == pytest.approx(-0.75)


def test_every_index_of_the_shipped_list_names_the_literature():
    indices = read_recipe(builtin(ENGLISH), LexiconFile).indices
    assert len(indices) == 5
    for index in indices.values():
        assert "Pennebaker and King 1999" in index.source
        assert not set(index.high) & set(index.low)


def test_a_word_that_the_reference_texts_never_have_is_in_no_index(tmp_path):
    file = tmp_path / "mine.yaml"
    body = {
        "name": "mine",
        "version": "1",
        "categories": {"rare": {"words": "qzx*"}, "us": {"words": "We"}},
        "indices": {
            "humour": {"high": ["rare"], "source": "me"},
            "warmth": {"high": ["rare"], "low": ["us"], "source": "me"},
        },
    }
    file.write_text(json.dumps(body))
    lexicon = read_lexicon(file)
    assert lexicon.signs == {"warmth": {"us": -1}}
    assert lexicon.shares("we") == {"rare": 0, "us": 100, "long_words": 0}


@pytest.mark.parametrize(
    ("index", "says"),
    [
        ({"high": ["us"], "low": ["us"]}, "us cannot be a sign of both ends"),
        ({}, "names no category; give high, low or both"),
    ],
)
def test_an_index_says_one_thing(tmp_path, index, says):
    body = {"name": "mine", "version": "1", "categories": {"us": {"words": "we"}}}
    body["indices"] = {"warmth": {**index, "source": "me"}}
    (tmp_path / "mine.yaml").write_text(json.dumps(body))
    with pytest.raises(RecipeError, match=says):
        read_lexicon(tmp_path / "mine.yaml")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("happy 1\n", "is not a dictionary of LIWC: a line of % alone"),
        ("%\n1 posemo\n", "is not a dictionary of LIWC"),
        ("%\nposemo 1\n%\nhappy 1\n", "line 2: a category is a number and a name"),
        ("%\n1\n%\nhappy 1\n", "line 2: a category is a number and a name"),
        ("%\n1 a\n1 b\n%\nhappy 1\n", "line 3: the category '1 b' is given twice"),
        ("%\n1 a\n2 A\n%\nhappy 1\n", "line 3: the category '2 A' is given twice"),
        ("%\n1 a\n%\n\nhappy 2\n", "line 5: '2' is not one of the categories 1 a"),
        ("%\n1 a\n%\nhappy\n", "line 4: a word needs the number of a category behind it"),
        ("%\n1 a\n%\nha*py 1\n", "line 4: 'ha*py' is not a word, or the start"),
        ("%\n1 a\n%\n:) 1\n", "line 4: ':)' is not a word"),
        ("%\n1 a\n%\n", "has no words"),
    ],
)
def test_a_wrong_dictionary_is_refused_in_one_sentence(tmp_path, text, says):
    file = tmp_path / "bad.dic"
    file.write_text(text)
    with pytest.raises(DataError) as refused:
        read_lexicon(file)
    assert says in str(refused.value)
    assert str(file) in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_dictionary_that_cannot_be_read_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"none\.dic: cannot be read: No such file"):
        read_lexicon(tmp_path / "none.dic")
    (tmp_path / "old.dic").write_bytes(DIC.replace("happ", "fr\xf6hlich").encode("latin-1"))
    with pytest.raises(DataError, match="save it as UTF-8"):
        read_lexicon(tmp_path / "old.dic")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"indices": {"humour": {"high": ["jokes"], "source": "me"}}}, "no category jokes"),
        ({"reference": {"us": {"mean": 1.0, "sd": 1.0}}}, "reference: needs every category"),
        ({"categories": {}}, "categories: needs at least one"),
        ({"categories": {"us": {"words": "we *"}}}, "us: '*' is not a word"),
    ],
)
def test_a_wrong_list_is_refused_in_one_sentence(tmp_path, change, says):
    file = tmp_path / "mine.yaml"
    body = {"name": "mine", "version": "1", "categories": {"us": {"words": "we"}}, **change}
    file.write_text(json.dumps(body))
    with pytest.raises((DataError, RecipeError)) as refused:
        read_lexicon(file)
    assert says in str(refused.value)
    assert "\n" not in str(refused.value)
