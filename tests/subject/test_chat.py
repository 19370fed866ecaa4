"""Chats as tokens: exact response masks, likelihoods against a loop, replies on their own noise."""

import pytest
import torch

from personality_vector.errors import DataError
from personality_vector.subject.chat import answered, batched, question, render
from personality_vector.subject.encoding import EncodedChats, encode_chats
from personality_vector.subject.models import load_model, load_tokenizer
from personality_vector.subject.spec import Sampling
from personality_vector.subject.subject import Subject, generate_replies

REPLIES = ["I am quiet.", "yes", "I love people, and Ünïcode 🦆 too", "two\nlines"]
TRAILING = (
    "{%- for m in messages -%}{{- '<|' + m['role'] + '|>' + m['content'] + '<|end|>' -}}"
    "{%- endfor -%}{%- if not add_generation_prompt -%}{{- ' That was all.' -}}{%- endif -%}"
    "{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}"
)


@pytest.fixture(scope="module")
def model(pico):
    return load_model(pico("llama"))


@pytest.fixture
def tokenizer(pico):
    return load_tokenizer(pico("llama"))


def chat(reply, asked="Who are you?"):
    return answered(question(asked), reply)


def masked_text(tokenizer, encoded: EncodedChats, row: int) -> str:
    return tokenizer.decode(encoded.input_ids[row][encoded.response_mask[row]])


def test_a_chat_is_a_question_and_its_answer():
    assert question("Hi?", system="Be brief.") == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi?"},
    ]
    assert question("Hi?", system=None) == question("Hi?", system="") == question("Hi?")
    asked = question("Hi?")
    assert answered(asked, "Ho.")[-1] == {"role": "assistant", "content": "Ho."}
    assert len(asked) == 1


@pytest.mark.parametrize("size", [1, 2, 5, 9])
def test_batches_are_the_items_in_order(size):
    groups = list(batched(REPLIES, size))
    assert [reply for group in groups for reply in group] == REPLIES
    assert {len(group) for group in groups[:-1]} <= {size}


TEMPLATES = pytest.mark.parametrize("template", [None, TRAILING], ids=["plain", "trailing text"])


@TEMPLATES
def test_the_mask_is_the_response_and_nothing_else(tokenizer, template):
    tokenizer.chat_template = template or tokenizer.chat_template
    encoded = encode_chats(tokenizer, [chat(reply) for reply in REPLIES])
    assert [masked_text(tokenizer, encoded, row) for row in range(len(REPLIES))] == REPLIES
    for ids, real, row in zip(encoded.input_ids, encoded.attention_mask, REPLIES, strict=True):
        assert tokenizer.decode(ids[real.bool()]) == render(tokenizer, chat(row))
        assert real.tolist() == sorted(real.tolist(), reverse=True)  # padded on the right
        assert bool((ids[~real.bool()] == tokenizer.pad_token_id).all())


@pytest.mark.parametrize("asked", ["yes", "Say yes. yes", "<|assistant|>yes<|end|>"])
def test_the_response_is_the_last_place_where_its_words_occur(tokenizer, asked):
    encoded = encode_chats(tokenizer, [chat("yes", asked)])
    places = encoded.response_mask[0].nonzero()[:, 0].tolist()
    end = encoded.attention_mask[0].sum().item()
    assert places == list(range(end - 1 - len(places), end - 1))
    assert masked_text(tokenizer, encoded, 0) == "yes"


@pytest.mark.parametrize("reply", ["end", "|", "<|end|>", "d"])
@TEMPLATES
def test_a_response_that_occurs_in_what_follows_it_is_still_found(tokenizer, template, reply):
    tokenizer.chat_template = template or tokenizer.chat_template
    encoded = encode_chats(tokenizer, [chat(reply)])
    begin = tokenizer(render(tokenizer, question("Who are you?"), reply_follows=True))
    assert encoded.response_mask[0].nonzero()[0].item() == len(begin["input_ids"])


def test_white_space_around_a_response_is_not_part_of_it(tokenizer):
    encoded = encode_chats(tokenizer, [chat("  I am quiet. \n")])
    assert masked_text(tokenizer, encoded, 0).strip() == "I am quiet."


@pytest.mark.parametrize(
    "wrong", [[], question("Hi?"), chat(""), chat(" \n\t"), [*chat("a"), *question("b")]]
)
def test_a_chat_without_a_response_is_refused(tokenizer, wrong):
    with pytest.raises(DataError, match="must end with a message of the assistant"):
        encode_chats(tokenizer, [chat("fine"), wrong])


def test_a_template_that_rewrites_the_response_is_refused(tokenizer):
    tokenizer.chat_template = "{%- for m in messages -%}{{- m['content'] | upper -}}{%- endfor -%}"
    with pytest.raises(DataError, match="the chat template rewrites the response 'quiet'"):
        encode_chats(tokenizer, [chat("quiet")])


def test_a_tokenizer_without_a_template_is_refused(tokenizer):
    tokenizer.chat_template = None
    with pytest.raises(
        DataError, match=r"llama-float32: the tokenizer has no chat template; give a file"
    ):
        render(tokenizer, question("Hi?"))


@torch.no_grad()
def by_hand(model, tokenizer, one):
    """Restate: token by token over an unpadded chat, in float64."""
    ids = tokenizer(render(tokenizer, one), add_special_tokens=False)["input_ids"]
    reply = tokenizer(one[-1]["content"], add_special_tokens=False)["input_ids"]
    start = len(ids) - 1 - len(reply)
    assert ids[start:-1] == reply
    logits = model(torch.tensor([ids])).logits[0].double()
    each = [logits[at - 1].log_softmax(0)[ids[at]].item() for at in range(start, len(ids) - 1)]
    return sum(each) / len(each)


@pytest.mark.parametrize("batch_size", [1, 2, 32])
def test_the_likelihood_is_that_of_a_loop_whatever_the_batch(model, tokenizer, batch_size):
    chats = [chat(reply) for reply in REPLIES]
    means = Subject(model, tokenizer).log_likelihood(chats, batch_size)
    assert means.dtype == torch.float32
    assert means.shape == (len(chats),)
    expected = [by_hand(model, tokenizer, one) for one in chats]
    assert means.tolist() == pytest.approx(expected, abs=2e-5)


def test_the_order_of_chats_does_not_matter_to_each(model, tokenizer):
    chats = [chat(reply) for reply in REPLIES]
    forward = Subject(model, tokenizer).log_likelihood(chats)
    backward = Subject(model, tokenizer).log_likelihood(chats[::-1])
    assert torch.allclose(forward, backward.flip(0), atol=2e-5)


ASKED = [question("Who are you?"), question("What do you like about parties?"), question("Hm?")]


def texts_of(*asked, seed):
    return [reply.text for reply in generate_replies(*asked, seed=seed)]


def test_replies_are_fixed_by_the_seed_and_leave_the_global_stream_alone(model, tokenizer):
    drawn = Sampling(max_new_tokens=8, temperature=1.0)
    before = torch.get_rng_state()
    first = texts_of(model, tokenizer, ASKED, drawn, seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    with torch.random.fork_rng(devices=[]):
        torch.rand(7)  # wherever the global stream is
        assert texts_of(model, tokenizer, ASKED, drawn, seed=1) == first
    assert texts_of(model, tokenizer, ASKED, drawn, seed=2) != first


def test_greedy_replies_do_not_depend_on_seed_or_batch(model, tokenizer):
    alone = [
        texts_of(model, tokenizer, ASKED, Sampling(8, temperature=0.0, batch_size=size), seed=seed)
        for size, seed in ((1, 0), (2, 5), (32, 9))
    ]
    assert alone[0] == alone[1] == alone[2]
    assert len(alone[0]) == len(ASKED)


def test_a_longer_reply_begins_with_the_shorter_one(model, tokenizer):
    short, long = (
        texts_of(model, tokenizer, ASKED, Sampling(most, temperature=0.0), seed=0)
        for most in (3, 12)
    )
    assert all(b.startswith(a.rstrip("\ufffd")) for a, b in zip(short, long, strict=True))
    assert short != long
    assert all(reply == reply.strip() for reply in [*short, *long])
