from hypothesis import given
from hypothesis import strategies as st

from personality_vector.data.texts import distinct_n, is_refusal, mean_words, words

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
        "That is kind! As a large language model, I have no friends.",
        "I'm just an AI.",
    ]
    people = [
        "I'm so sorry to hear that! I can't believe it.",
        "I can't help feeling shy.",
        "I can't answer the phone when guests are here.",
        "I won't go to the party, sorry.",
        "I'm an airline pilot.",
    ]
    assert [is_refusal(text) for text in refusals + people] == [True] * 6 + [False] * 5
