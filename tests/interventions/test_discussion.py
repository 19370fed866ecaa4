"""A discussion: one reply that is made of many calls."""

from dataclasses import replace
from functools import partial

import pytest

from personality_vector.errors import DataError, LengthError, ModelError, RecipeError
from personality_vector.interventions.decoding import Decoding
from personality_vector.interventions.discussion import Discussion
from personality_vector.interventions.prompts import SystemPrompt
from personality_vector.subject.batch import Share, together
from personality_vector.subject.chat import answered, question
from personality_vector.subject.draws import Draw
from personality_vector.subject.protocols import Reply
from personality_vector.subject.spec import Sampling
from personality_vector.subject.subject import Subject

ROLES = ("a futurist", "a cook", "a judge")
CHATS = [question("Uses of a cork?"), question("Uses of a net?", system="Be brief.")]
SHORT = Sampling(max_new_tokens=6, temperature=1.0)


class Script:
    """Answers with a number, and keeps what it was asked."""

    def __init__(self, *empty):
        self.asked, self.empty = [], empty

    def __call__(self, draws):
        self.asked.append(draws)
        return [[self.reply() for _ in draw.chats] for draw in draws]

    def reply(self):
        self.number = getattr(self, "number", 0) + 1
        return Reply("" if self.number in self.empty else f"#{self.number}#", 10, 2, 0.5)


@pytest.mark.parametrize(("roles", "rounds"), [(2, 1), (3, 3)])
def test_a_reply_is_a_call_for_each_role_and_round_and_one_more(roles, rounds):
    script = Script()
    discussion = Discussion(ROLES[:roles], rounds)
    [found] = discussion.replies(script, [Draw(CHATS, 7)])
    assert len(script.asked) == rounds + 1, "the calls of a round are asked together"
    calls = discussion.calls
    assert calls == roles * rounds + 1
    assert script.number == calls * len(CHATS)
    for reply in found:
        assert (reply.tokens_in, reply.tokens_out) == (10 * calls, 2 * calls)
        assert reply.seconds == pytest.approx(0.5 * calls)
    assert [reply.text for reply in found] == [f"#{script.number - 1}#", f"#{script.number}#"]
    seeds = [draw.seed for draws in script.asked for draw in draws]
    assert len(set(seeds)) == calls
    again = Script()
    discussion.replies(again, [Draw(CHATS, 7)])
    assert again.asked == script.asked
    discussion.replies(other := Script(), [Draw(CHATS, 8)])
    assert not set(seeds) & {draw.seed for draws in other.asked for draw in draws}


def test_each_role_reads_its_own_last_answer_and_those_of_the_others():
    script = Script(3)
    Discussion(ROLES, 2).replies(script, [Draw(CHATS, 0)])
    first, second, joining = script.asked
    assert [draw.chats[0][0]["content"] for draw in first] == [
        f"You are {role}, one of 3 people who work on an answer together. Speak as {role}."
        for role in ROLES
    ]
    assert first[0].chats[1][0]["content"].endswith("Speak as a futurist. Be brief.")
    # Answers 1 and 2 are those of the futurist, one to each chat; 3 is empty, and the cook's.
    cook = second[1].chats[0]
    assert [one["role"] for one in cook] == ["system", "user", "assistant", "user"]
    assert cook[2]["content"] == "(no answer)"
    assert "a futurist:\n#1#\n\na judge:\n#5#" in cook[3]["content"]
    assert "a cook" not in cook[3]["content"]
    [last] = joining
    assert last.chats[1][0] == CHATS[1][0]
    told = last.chats[1][1]["content"]
    assert told.startswith("Uses of a net?\n\n3 people")
    assert all(f"{role}:\n#{n}#" in told for role, n in zip(ROLES, (8, 10, 12), strict=True))


@pytest.fixture
def discussing(llama):
    """Return pico llama after a discussion of two roles in two rounds is applied."""
    with Discussion(ROLES[:2], 2).applied(replace(llama, sampling=SHORT), 1.0) as subject:
        yield subject


def texts(replies):
    return [(reply.text, reply.tokens_in, reply.tokens_out) for reply in replies]


def test_samples_that_share_batches_are_those_asked_alone(discussing):
    draws = [Draw(CHATS, 1), Draw(CHATS, 2), Draw(CHATS[:1], 3)]
    found = discussing.replies_of(draws)
    assert [texts(one) for one in found] == [texts(discussing.replies(*draw)) for draw in draws]
    assert texts(found[0]) != texts(found[1])
    alone = replace(discussing, sampling=replace(SHORT, batch_size=1))
    assert len(alone.replies(CHATS, 1)) == 2


def test_points_that_share_batches_are_those_asked_alone(discussing):
    def ask(seed, subject):
        return replace(subject, sampling=SHORT).replies(CHATS, seed)

    found = together(discussing, [Share(partial(ask, seed), None, {}) for seed in (1, 2)])
    assert [texts(one) for one in found] == [texts(discussing.replies(CHATS, s)) for s in (1, 2)]
    assert all(reply.is_shared for one in found for reply in one)


def test_a_discussion_is_remembered_as_a_whole(discussing):
    kept = replace(discussing, memory={})
    first = kept.replies(CHATS, 1)
    assert list(kept.memory.values()) == [first]
    assert kept.replies(CHATS, 1) is first


def test_what_is_on_top_or_below_acts_in_every_call(llama):
    script = Script()
    with (
        SystemPrompt("Rhyme.").applied(llama, 1.0) as below,
        Discussion(ROLES[:2], 1).applied(below, 1.0) as inner,
        Discussion(ROLES[1:], 1).applied(inner, 1.0) as outer,
        Decoding(temperature=0.0).applied(outer, 1.0) as subject,
    ):
        chats = [subject.edit(chat) for chat in CHATS[:1]]
        subject.exchange(script, [Draw(chats, 0)])
        assert subject.decoding == {"temperature": 0.0}
    assert script.number == 9
    system = [draw.chats[0][0]["content"] for draws in script.asked for draw in draws]
    assert all("Rhyme." in text for text in system)


def test_what_needs_one_call_is_refused_and_says_what_to_measure(discussing):
    chat = answered(CHATS[0], "Yes.")
    seat = Share(lambda subject: subject.log_likelihood([chat]), None, {})
    for refused in (
        lambda: discussing.log_likelihood([chat]),
        lambda: list(discussing.predictions([chat])),
        lambda: discussing.next_token(CHATS, [3]),
        lambda: together(discussing, [seat, seat]),
    ):
        with pytest.raises(ModelError, match=r"as in a discussion, has neither .*measure replies"):
            refused()


def test_answers_that_are_too_long_to_read_each_other_say_what_helps(pico):
    short = Subject.load(str(pico("gpt2")), device="cpu")  # it reads 256 tokens
    asked = replace(short, sampling=replace(SHORT, max_new_tokens=80))
    with (
        Discussion(ROLES, 2).applied(asked, 1.0) as subject,
        pytest.raises(LengthError, match="fewer roles or a smaller max_new_tokens"),
    ):
        subject.replies(CHATS[:1], 0)


@pytest.mark.parametrize("given", [(ROLES[:1], 3), (("a cook", "a cook"), 3), (ROLES, 0)])
def test_a_discussion_needs_two_roles_and_a_round(given):
    with pytest.raises(DataError, match="needs two different roles or more and at least one round"):
        Discussion(*given)


def test_a_recipe_says_who_discusses(opened):
    found = opened(discussion={"roles": list(ROLES), "rounds": 2})
    assert found == Discussion(ROLES, 2, "x")
    assert opened(discussion={"roles": list(ROLES)}).rounds == 3
    assert found.identity() != replace(found, rounds=3).identity()
    for given, says in (
        ({"roles": ["a cook"]}, "roles: a discussion has at least two roles"),
        ({"roles": ["a cook", "a cook"]}, "a value is given twice"),
        ({"roles": list(ROLES), "round": 2}, "did you mean 'rounds'"),
    ):
        with pytest.raises(RecipeError, match=says):
            opened(discussion=given)
