import zlib

from hypothesis import given
from hypothesis import strategies as st

from personality_vector.data.declining import are_of
from personality_vector.data.texts import (
    compression,
    distinct_n,
    first_person,
    is_other_language,
    mean_words,
    repetition,
    words,
)
from tests.benchmarks.guards import held_out, rates

TEXTS = st.lists(st.text(alphabet="ab c", max_size=20), max_size=5)


def test_an_apostrophe_of_either_kind_belongs_to_its_word():
    assert words("It's my friends' idea; don\u2019t!") == ["it's", "my", "friends", "idea", "don't"]


@given(TEXTS, st.integers(1, 3))
def test_the_share_of_distinct_n_grams_equals_a_count_by_hand(texts, n):
    grams = []
    for text in texts:
        tokens = text.split()
        grams += [" ".join(tokens[i : i + n]) for i in range(len(tokens)) if i + n <= len(tokens)]
    expected = len(set(grams)) / len(grams) if grams else None
    assert distinct_n(texts, n) == expected


def test_no_bigram_spans_two_texts():
    assert distinct_n(["a b", "a b"], 2) == 0.5
    assert distinct_n(["a", "b"], 2) is None


def test_the_mean_length_counts_empty_replies():
    assert mean_words(["one two three", ""]) == 1.5
    assert mean_words([]) is None


def test_refusals_are_told_from_people_who_decline():
    refusals = [
        "I can\N{RIGHT SINGLE QUOTATION MARK}t fulfill that request.",
        "\nSorry, I can't do that.",
        "I apologize, but I'm not able to provide this.",
        "I cannot assist you with that.",
    ]
    people = [
        "I'm so sorry to hear that! I can't believe it.",
        "I can't help feeling shy.",
        "I can't answer the phone when guests are here.",
        "I won't go to the party, sorry.",
        "I can't tell you how happy I was.",
    ]
    assert are_of("refusal", refusals) == [True] * 4
    assert sum(are_of("refusal", people)) <= 3  # it reads words


def test_machines_are_told_from_people_who_work_with_them():
    machines = [
        "That is kind! As a large language model, I have no friends.",
        "I'm just an AI.",
        "I do not have personal opinions.",
        "I don\N{RIGHT SINGLE QUOTATION MARK}t experience emotions.",
    ]
    people = [
        "I'm an airline pilot.",
        "I'm an AI researcher, and as a software engineer I write tests.",
        "I use my phone as a tool.",
        "I have no feelings for him.",
    ]
    assert are_of("disclaimer", machines) == [True] * 4
    assert sum(are_of("disclaimer", people)) <= 3  # it reads words


def test_another_script_or_language_is_seen_and_code_is_not_one():
    others = [
        "\u6211\u559c\u6b22\u8336",
        "\u041f\u0440\u0438\u0432\u0435\u0442",
        "Ich gehe heute nicht mit dir in das Kino.",
        "Je ne vais pas au cinéma avec toi ce soir.",
        "Dzisiaj pójdę z tobą na spacer, będę szczęśliwy.",
    ]
    english = [
        "",
        "42",
        "Oui!",
        "I like a café and a naïve joke.",
        "for i in range(3): print(i, n)",
    ]
    assert [is_other_language(text) for text in others + english] == [True] * 5 + [False] * 5


def test_repetition_and_compression_see_a_loop():
    loop = "I am here. " * 20
    assert repetition([loop]) == 1 - 3 / 57
    assert repetition(["one two three"]) is None
    raw = loop.encode()
    assert compression([loop]) == len(raw) / len(zlib.compress(raw, 9)) > 5
    assert compression(["ab", "cd"]) == 5 / len(zlib.compress(b"ab\ncd", 9))
    assert compression(["", ""]) is None


def test_the_first_person_is_a_share_of_words():
    assert first_person(["I'm me.", "You are my friend", ""]) == 3 / 6
    assert first_person([""]) is None


def test_guards_are_rarely_wrong_about_texts_that_nothing_learned_from():
    found = rates(held_out())
    wanted = {"refusals": (0.6, 0.01), "disclaimers": (0.4, 0.01), "other_language": (0.75, 0.01)}
    for guard, (hit, alarm) in wanted.items():
        hits, of, alarms, others = found[guard]
        assert hits >= hit * of > 0
        assert alarms <= alarm * others
