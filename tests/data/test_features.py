"""What a classifier sees: words and their parts, or the hidden states of a model."""

import pytest
import torch

from personality_vector.data.features import StateFeatures, WordFeatures
from personality_vector.subject.models import decoder_blocks
from personality_vector.subject.subject import Subject

TEXTS = ["I like tea a lot. I do not like rain.", "Oh.", "It rains. " * 300]


@pytest.fixture(scope="module")
def path(pico):
    return str(pico("llama"))


@pytest.fixture
def features(path, monkeypatch, tmp_path):
    monkeypatch.setenv("PVEC_CACHE", str(tmp_path / "cache"))
    return StateFeatures(path)


def expected(path, text, begin=0, end=None):
    """Return the mean state half-way of the tokens between two characters, from a whole pass."""
    subject = Subject.load(path)
    encoded = subject.tokenizer(text, return_offsets_mapping=True, return_tensors="pt")
    ids = encoded["input_ids"][:, : subject.tokenizer.most_tokens]
    with torch.no_grad():
        states = subject.model(input_ids=ids, output_hidden_states=True).hidden_states
    ends = encoded["offset_mapping"][0, : ids.shape[1], 1]
    kept = (ends > begin) & (ends <= (end or len(text)))
    kept[0] = len(kept) == 1
    return states[len(states) // 2][0, kept].mean(0)


def test_a_text_has_its_mean_state_and_a_sentence_that_of_its_own_tokens(features, path):
    whole, first, second = features.read(TEXTS[:1])[0]
    assert torch.allclose(whole, expected(path, TEXTS[0]), atol=1e-5)
    assert torch.allclose(first, expected(path, TEXTS[0], 0, 17), atol=1e-5)
    assert torch.allclose(second, expected(path, TEXTS[0], 18), atol=1e-5)


def test_texts_in_a_batch_are_read_as_alone_and_cut_where_the_model_ends(features, path):
    alone = [StateFeatures(features._model).read([text])[0] for text in TEXTS]
    together = features.read(TEXTS)
    for one, other in zip(alone, together, strict=True):
        assert torch.allclose(one, other, atol=1e-5)
    assert torch.allclose(together[-1][0], expected(path, TEXTS[-1]), atol=1e-5)


def test_blocks_above_do_not_run_and_a_text_is_read_once(features):
    blocks, passes = decoder_blocks(features._subject.model), []
    blocks[1].register_forward_hook(lambda *_: passes.append("half-way"))
    blocks[2].register_forward_hook(lambda *_: passes.append("above"))
    for _ in range(2):
        features.read(TEXTS[:2])
    assert passes == ["half-way"]


def test_kept_states_come_from_the_disk(features, path, monkeypatch):
    first = features.read(TEXTS[:2], keep=True)
    again = StateFeatures(path)
    monkeypatch.setattr(again, "_states", None)
    assert all(map(torch.equal, first, again.read(TEXTS[:2], keep=True)))


def test_words_see_a_text_and_each_sentence():
    features = WordFeatures()
    read = features.read(TEXTS[:2])
    assert read == [[TEXTS[0], "I like tea a lot.", "I do not like rain."], ["Oh.", "Oh."]]
    whole = features.learned(read)
    assert (whole.shape[0], features(read).shape[0]) == (2, 5)
