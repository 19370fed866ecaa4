"""The judge in memory: the digit that a model expects."""

import json
import pickle
import shutil
from types import SimpleNamespace

import pytest
import torch

from personality_vector.data.personas import COHERENCE
from personality_vector.errors import CheckpointError, ModelError
from personality_vector.judges.local import LocalJudge
from personality_vector.judges.pairwise import PairwiseJudge
from personality_vector.judges.pairwise import _prompt as pair_prompt
from personality_vector.judges.spec import expected_number
from personality_vector.subject.chat import question
from personality_vector.subject.models import load_model, load_tokenizer
from personality_vector.subject.protocols import Answer, Judge
from personality_vector.subject.subject import Subject

DIGITS = list("0123456789")


@pytest.fixture
def judging(pico, monkeypatch):
    """Return ``judging(model)``: a judge that finds this model at its checkpoint."""

    def make(model, family="llama", **options):
        subject = Subject(model, load_tokenizer(pico(family)))
        subject.tokenizer.most_tokens = None  # the prompts of a judge are longer
        monkeypatch.setattr(Subject, "load", lambda *_, **__: subject)
        return LocalJudge(checkpoint=str(pico(family)), device="cpu", **options)

    return make


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_local_judge_expects_a_digit(pico, judging, family):
    """Restate: one unpadded prompt, softmax over the whole vocabulary, digits with a space too."""
    model, tokenizer = load_model(pico(family)), load_tokenizer(pico(family))
    with torch.no_grad():
        for token in range(len(tokenizer)):  # or no prompt of a random model would reach the mass
            if tokenizer.decode([token]).strip() in DIGITS:
                model.get_output_embeddings().weight[token] *= 3
    judge = judging(model, family, batch_size=2)
    assert set(judge.tokens(DIGITS).values()) == set(DIGITS)
    chats = [question(text) for text in ("Rate this, 0 to 9.", "How?", "A number, please.", "I 7")]
    expected = [restated(model, tokenizer, chat) for chat in chats]
    assert any(value is not None for value in expected)
    found = [expected_number(p, 9) for p in judge.first_tokens(chats, DIGITS)]
    scores = [value and value * 100 / 9 for value in found]
    assert scores == [value and pytest.approx(value, abs=1e-3) for value in expected]


def restated(model, tokenizer, chat):
    text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        p = torch.softmax(model(ids).logits[0, -1].double(), dim=-1)
    written = [tokenizer.decode([token]).strip() for token in range(len(p))]
    found = [(int(text), float(p[token])) for token, text in enumerate(written) if text in DIGITS]
    mass = sum(weight for _, weight in found)
    return sum(i * weight for i, weight in found) / mass * 100 / 9 if mass >= 0.25 else None


class Certain(torch.nn.Module):
    """A model that always expects the same token."""

    def __init__(self, token, vocabulary):
        super().__init__()
        self.logits = torch.nn.Parameter(torch.full((vocabulary,), -30.0))
        self.logits.data[token] = 0.0

    def generate(self, input_ids, **_):
        return SimpleNamespace(logits=[self.logits.expand(len(input_ids), -1)])


@pytest.mark.parametrize(("written", "value"), [("0", 0.0), ("9", 100.0), ("6", 200 / 3)])
def test_the_digits_span_the_whole_scale(pico, judging, high, answers, written, value):
    tokenizer = load_tokenizer(pico("llama"))
    judge = judging(Certain(tokenizer.convert_tokens_to_ids(written), len(tokenizer)))
    assert judge.scale == (0, 100)
    for rubric in (high, COHERENCE):
        for score in judge(rubric, answers("I love parties.", "I am alone.", "")):
            assert score.value == pytest.approx(value, abs=1e-6)


def test_a_model_that_writes_no_digit_leaves_all_unscored(pico, judging, high, answers):
    tokenizer = load_tokenizer(pico("llama"))
    judge = judging(Certain(tokenizer.eos_token_id, len(tokenizer)))
    for rubric in (high, COHERENCE):
        (score,) = judge(rubric, answers("I love parties."))
        assert score.reason == f"the judge gave no number for {rubric.trait}"


def test_a_vocabulary_without_digits_cannot_judge(pico, monkeypatch):
    tokenizer = SimpleNamespace(get_vocab=lambda: {"a": 0, "7": 1})
    monkeypatch.setattr("personality_vector.subject.models.load_tokenizer", lambda *_: tokenizer)
    with pytest.raises(ModelError, match="has no token for 0, 1, 2 and 6 more"):
        LocalJudge(checkpoint=str(pico("llama"))).open()


def test_a_model_is_loaded_once_and_not_before_it_rates(pico, high, answers, monkeypatch, tmp_path):
    loaded, path = [], shutil.copytree(pico("llama"), tmp_path / "judge")
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 1024}))
    load = Subject.load
    monkeypatch.setattr(Subject, "load", lambda *a, **k: loaded.append(a) or load(*a, **k))
    judge = LocalJudge(checkpoint=str(path), device="cpu").open()
    assert isinstance(judge, Judge)
    assert judge.name == "local judge"
    there = pickle.loads(pickle.dumps(judge.prepare(None)))  # noqa: S301
    assert there(high, ()) == loaded == []
    for _ in range(2):
        there(high, answers("I love parties.", "I am alone."))
    assert len(loaded) == 1


def test_a_checkpoint_that_is_not_there_is_found_out_at_once(tmp_path):
    with pytest.raises(CheckpointError):
        LocalJudge(checkpoint=str(tmp_path / "absent")).open()


def test_its_identity_is_the_model_and_how_it_is_loaded(pico, pico_tuned):
    judge = LocalJudge(checkpoint=str(pico("llama")), device="cpu")
    assert LocalJudge(checkpoint=str(pico("llama")), device="cpu").identity() == judge.identity()
    for other in (
        LocalJudge(checkpoint=str(pico_tuned("llama")), device="cpu"),
        LocalJudge(checkpoint=str(pico("llama")), device="cpu", dtype="bfloat16"),
        LocalJudge(checkpoint=str(pico("llama")), device="cpu", batch_size=3),
    ):
        assert other.identity() != judge.identity()


def test_a_local_judge_compares_by_letters(pico, judging, high):
    """Restate: P(A) - P(B) in both orders, over the whole vocabulary, letters with a space too."""
    model, tokenizer = load_model(pico("llama")), load_tokenizer(pico("llama"))
    texts = [tokenizer.decode([token]).strip() for token in range(len(tokenizer))]
    with torch.no_grad():
        for token, text in enumerate(texts):
            if text in ("A", "B"):
                model.get_output_embeddings().weight[token] *= 20 if text == "A" else -20
    answer = Answer("who", 0, "Who?", "I love parties.", base_reply="I am alone.")
    judge = PairwiseJudge(judge=judging(model))
    leads = []
    for first in (True, False):
        chat = pair_prompt(high, answer, is_first=first)
        ids = tokenizer(
            tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True),
            add_special_tokens=False,
            return_tensors="pt",
        )["input_ids"]
        with torch.no_grad():
            p = torch.softmax(model(ids).logits[0, -1].double(), dim=-1).tolist()
        of = {x: sum(q for q, text in zip(p, texts, strict=True) if text == x) for x in ("A", "B")}
        leads.append((of["A"] - of["B"], of["A"] + of["B"]))
    (score,) = judge(high, [answer])
    assert min(mass for _, mass in leads) >= 0.25
    assert score.value == pytest.approx((leads[0][0] - leads[1][0]) / 2, abs=1e-4)


def test_after_an_opening_the_digit_is_read_that_follows_it(pico, judging):
    """The first token of a reply that began with it: another number, of another identity."""
    model, tokenizer = load_model(pico("llama")), load_tokenizer(pico("llama"))
    plain, opened = judging(model), judging(model, opening="I rate it ")
    chat = question("Rate this, 0 to 9.")
    text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    ids = tokenizer(f"{text}I rate it ", add_special_tokens=False, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        p = torch.softmax(model(ids).logits[0, -1].double(), dim=-1)
    expected = dict.fromkeys(DIGITS, 0.0)
    for token in range(len(p)):
        if (digit := tokenizer.decode([token]).strip()) in DIGITS:
            expected[digit] += float(p[token])
    (found,), (other,) = (judge.first_tokens([chat], DIGITS) for judge in (opened, plain))
    assert found == {digit: pytest.approx(value, rel=1e-3) for digit, value in expected.items()}
    assert found != other
    assert opened.identity() != plain.identity() == judging(model, opening="").identity()
    assert "opening" not in plain.model_dump()["local"]
