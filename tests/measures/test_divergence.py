"""Divergence: exactly zero at the base, and the numbers of a loop over single sequences."""

import math
from dataclasses import replace

import pytest
import torch

from personality_vector.data.personas import Instrument, Item
from personality_vector.errors import DataError, NonFiniteError, TensorMismatchError
from personality_vector.measures.divergence import Divergence
from personality_vector.measures.spec import Asking
from personality_vector.numeric.random import generator_for
from personality_vector.subject.chat import question
from personality_vector.subject.spec import Sampling

REPLIES = ("Water boils at sea level.", "Yes.", "The train leaves at noon, I think", "Tea")
ITEMS = tuple(Item(id=f"q{i}", text=f"Question {i}?") for i in range(len(REPLIES)))
ASKING = Asking(Instrument(name="four", version="1", items=ITEMS), Sampling())
TOKENS = sum(map(len, REPLIES))


@pytest.fixture
def ready(parrot):
    """Return ``ready(**options)``: the measure, when the base has given these replies."""
    return lambda *said, **options: Divergence(ASKING, **{"batch_size": 3, **options}).prepare(
        parrot(*(said or REPLIES))
    )


def found(tiny, measure, **given):
    kl, perplexity = tiny.readings(measure, **given).values()
    assert (kl.measure, perplexity.measure) == (
        "divergence.kl_base_edited",
        "divergence.perplexity",
    )
    assert kl.n == perplexity.n
    return kl.value, perplexity.value, kl.n


def disturb(tiny, scale=0.05):
    with torch.no_grad():
        for name, weight in tiny.model.named_parameters():
            weight += scale * torch.randn(weight.shape, generator=generator_for(0, name))


def restated(tiny, measure, edit=lambda prompt: prompt):
    """Return, for each response token, log p of the vocabulary and the token, chat by chat."""
    rows = []
    for reference in measure.references:
        *prompt, reply = reference.chat
        tokens, log_probs = tiny.response_log_probs(edit(prompt), reply["content"])
        kept = len(reference.tokens)
        rows += list(zip(log_probs[:kept], tokens[:kept], strict=True))
    return rows


def mean_kl(base, edited):
    terms = [(p.exp() * (p - q)).sum().item() for (p, _), (q, _) in zip(base, edited, strict=True)]
    return sum(terms) / len(terms)


def perplexity(rows):
    return math.exp(-sum(row[token].item() for row, token in rows) / len(rows))


@pytest.mark.parametrize("max_tokens", [1, 4, 26, 31, 10_000])
def test_the_unedited_model_is_at_distance_exactly_zero_wherever_tokens_are_cut(
    tiny, ready, max_tokens
):
    measure = ready(max_tokens=max_tokens)
    kl, surprise, n = found(tiny, measure)
    assert (kl, n) == (0.0, min(max_tokens, TOKENS))
    assert surprise == pytest.approx(perplexity(restated(tiny, measure)), rel=1e-5)


@pytest.mark.parametrize("max_tokens", [26, 2000])
def test_after_an_edit_both_numbers_are_those_of_a_loop_over_single_sequences(
    tiny, ready, max_tokens
):
    measure = ready(max_tokens=max_tokens)
    base = restated(tiny, measure)
    disturb(tiny)
    (kl, surprise, n), edited = found(tiny, measure), restated(tiny, measure)
    assert n == len(edited) == min(max_tokens, TOKENS)
    assert kl > 0.01
    assert kl == pytest.approx(mean_kl(base, edited), rel=1e-4)
    assert kl != pytest.approx(mean_kl(edited, base), rel=1e-2)  # not symmetric
    assert surprise == pytest.approx(perplexity(edited), rel=1e-4)


def test_what_is_kept_is_bounded(ready):
    references = ready(max_tokens=26).references
    assert sum(len(reference.tokens) for reference in references) == 26
    for reference in references:
        kept = reference.log_probs
        assert kept.dtype == torch.float32
        assert kept.untyped_storage().nbytes() == kept.nelement() * 4


def test_the_base_is_asked_once_for_all_seeds_and_not_with_the_edit(tiny):
    asking = replace(ASKING, sampling=Sampling(max_new_tokens=6, temperature=1.0))
    measure = Divergence(asking, seed=1).prepare(tiny.subject())
    said = {reference.chat[-1]["content"] for reference in measure.references}
    drawn = {reply.text for _, _, reply in asking(tiny.subject(), 1)}
    assert said == drawn - {""}
    assert measure.collect(tiny.subject(), 0) == measure.collect(tiny.subject(), 5)
    assert measure.identity() == replace(measure, references=()).identity()


def test_a_prompt_is_an_edit_too_and_leaves_the_response_alone(tiny, ready):
    def edit(chat):
        assert chat[-1]["role"] == "user"
        return [{"role": "system", "content": "Be bold."}, *chat]

    measure = ready()
    kl, _, _ = found(tiny, measure, edit=edit)
    expected = mean_kl(restated(tiny, measure), restated(tiny, measure, edit))
    assert expected > 1e-3
    assert kl == pytest.approx(expected, rel=1e-3)


def test_the_reference_is_an_edit_of_the_question_alone(ready):
    chats = {tuple(m["content"] for m in reference.chat) for reference in ready().references}
    asked = [question(item.text)[0]["content"] for item in ITEMS]
    assert chats == set(zip(asked, REPLIES, strict=True))


def test_a_broken_model_gives_no_number(tiny, ready):
    measure = ready()
    with torch.no_grad():
        tiny.model.lm_head.weight[7] = math.nan
    with pytest.raises(NonFiniteError, match="edited model"):
        found(tiny, measure)
    with pytest.raises(NonFiniteError, match="base"):
        ready()


def test_another_vocabulary_is_refused(tiny, ready):
    measure = ready()
    tiny.model.resize_token_embeddings(400, mean_resizing=False)
    with pytest.raises(TensorMismatchError, match="261, the edited model one of 400"):
        found(tiny, measure)


def test_another_tokenization_is_refused(tiny, ready):
    tiny.model.resize_token_embeddings(262, mean_resizing=False)
    measure = ready()
    tiny.tokenizer.add_tokens(["boils"])
    with pytest.raises(TensorMismatchError, match="is split into other tokens"):
        found(tiny, measure)


@pytest.mark.parametrize(
    ("said", "options", "says"),
    [
        (("", "  "), {}, "only empty replies"),
        ((), {"batch_size": 0}, "batch"),
    ],
)
def test_nothing_to_compare_is_refused(ready, said, options, says):
    with pytest.raises(DataError, match=says):
        ready(*said, **options)
