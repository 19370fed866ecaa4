import math

import pytest
import torch
from personality_vector.measures.retention import Retention

from personality_vector.errors import DataError, NonFiniteError, TensorMismatchError
from personality_vector.numeric.random import generator_for
from personality_vector.subject.chat import answered, question

REPLIES = ["Water boils at sea level.", "Yes.", "The train leaves at noon, I think", "Tea"]
CHATS = [answered(question(f"Question {i}?"), reply) for i, reply in enumerate(REPLIES)]
TOKENS = sum(len(reply) for reply in REPLIES)


def base_of(tiny, **options):
    return Retention.measure_base(tiny.model, tiny.tokenizer, CHATS, **{"batch_size": 3, **options})


def disturb(tiny, scale=0.05):
    with torch.no_grad():
        for name, weight in tiny.model.named_parameters():
            weight += scale * torch.randn(weight.shape, generator=generator_for(0, name))


def restated(tiny, edited_prompt=lambda prompt: prompt):
    """Return, for each response token, log p of the vocabulary and the token, chat by chat."""
    found = []
    for chat, reply in zip(CHATS, REPLIES, strict=True):
        tokens, rows = tiny.response_log_probs(edited_prompt(chat[:-1]), reply)
        found += list(zip(rows, tokens, strict=True))
    return found


def mean_kl(base, edited):
    terms = [(p.exp() * (p - q)).sum().item() for (p, _), (q, _) in zip(base, edited, strict=True)]
    return sum(terms) / len(terms)


def perplexity(rows):
    return math.exp(-sum(row[token].item() for row, token in rows) / len(rows))


def test_the_unedited_model_is_at_distance_exactly_zero(tiny):
    score = base_of(tiny)(tiny.model, tiny.tokenizer)
    assert score.kl_to_base == 0.0
    assert score.tokens == TOKENS
    assert score.perplexity == pytest.approx(perplexity(restated(tiny)), rel=1e-5)


@pytest.mark.parametrize("max_tokens", [1, 4, 26, 31, 10_000])
def test_zero_stays_exactly_zero_where_the_tokens_are_cut(tiny, max_tokens):
    score = base_of(tiny, max_tokens=max_tokens)(tiny.model, tiny.tokenizer)
    assert (score.kl_to_base, score.tokens) == (0.0, min(max_tokens, TOKENS))


def test_after_an_edit_both_numbers_are_those_of_a_loop_over_single_sequences(tiny):
    retention, base = base_of(tiny), restated(tiny)
    disturb(tiny)
    score, edited = retention(tiny.model, tiny.tokenizer), restated(tiny)
    assert score.kl_to_base > 0.01
    assert score.kl_to_base == pytest.approx(mean_kl(base, edited), rel=1e-4)
    assert score.kl_to_base != pytest.approx(mean_kl(edited, base), rel=1e-2)  # not symmetric
    assert score.perplexity == pytest.approx(perplexity(edited), rel=1e-4)


def test_only_the_first_tokens_are_compared(tiny):
    retention, base = base_of(tiny, max_tokens=26), restated(tiny)
    disturb(tiny)
    score, edited = retention(tiny.model, tiny.tokenizer), restated(tiny)
    assert score.tokens == 26
    assert score.kl_to_base == pytest.approx(mean_kl(base[:26], edited[:26]), rel=1e-4)
    assert score.perplexity == pytest.approx(perplexity(edited[:26]), rel=1e-4)


def test_what_is_kept_is_bounded(tiny):
    references = base_of(tiny, max_tokens=26).references
    assert [len(reference.tokens) for reference in references] == [25, 1]
    for reference in references:
        kept = reference.log_probs
        assert kept.dtype == torch.float32
        assert kept.untyped_storage().nbytes() == kept.nelement() * 4


def test_a_prompt_is_an_edit_too_and_leaves_the_response_alone(tiny):
    def edit(chat):
        assert chat[-1]["role"] == "user"
        return [{"role": "system", "content": "Be bold."}, *chat]

    score = base_of(tiny)(tiny.model, tiny.tokenizer, edit)
    expected = mean_kl(restated(tiny), restated(tiny, edit))
    assert expected > 1e-3
    assert score.kl_to_base == pytest.approx(expected, rel=1e-3)


def test_a_broken_model_gives_no_score(tiny):
    retention = base_of(tiny)
    with torch.no_grad():
        tiny.model.lm_head.weight[7] = math.nan
    with pytest.raises(NonFiniteError, match="edited model"):
        retention(tiny.model, tiny.tokenizer)
    with pytest.raises(NonFiniteError, match="base"):
        base_of(tiny)


def test_another_vocabulary_is_refused(tiny):
    retention = base_of(tiny)
    tiny.model.resize_token_embeddings(400, mean_resizing=False)
    with pytest.raises(TensorMismatchError, match="261, the edited model 400"):
        retention(tiny.model, tiny.tokenizer)


def test_another_tokenization_is_refused(tiny):
    tiny.model.resize_token_embeddings(262, mean_resizing=False)
    retention = base_of(tiny)
    tiny.tokenizer.add_tokens(["boils"])
    with pytest.raises(TensorMismatchError, match="not the same tokens"):
        retention(tiny.model, tiny.tokenizer)


@pytest.mark.parametrize(
    ("chats", "options"),
    [([], {}), (CHATS, {"max_tokens": 0}), (CHATS, {"batch_size": 0}), ([CHATS[0][:1]], {})],
)
def test_nothing_to_compare_is_refused(tiny, chats, options):
    with pytest.raises(DataError):
        Retention.measure_base(tiny.model, tiny.tokenizer, chats, **options)
