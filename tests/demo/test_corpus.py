"""The demo corpus is reproducible, balanced and split; the shipped files are what it says."""

import collections
import itertools
import json
import random
import re
import statistics
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import personality_vector.demo
from personality_vector.data.adjectives import ADJECTIVES
from personality_vector.errors import DataError
from personality_vector.traits import BIG_FIVE, BIG_FIVE_POLES, Pole
from tests.benchmarks.demo_model import corpus

MODEL = Path(personality_vector.demo.__file__).parent / "model"
STATEMENTS = Path(__file__).parents[2] / "training" / "data" / "big5_statements.jsonl"
PARTS: tuple[corpus.Part, ...] = ("pretrain", "train", "held_out")
SYSTEM = re.compile(r"You are (a bit |very )?[a-z, -]+\.")


@pytest.fixture(scope="module")
def some_chats():
    return list(itertools.islice(corpus.chats(0), 4_000))


@pytest.fixture(scope="module")
def model():
    return AutoModelForCausalLM.from_pretrained(MODEL).eval()


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(MODEL)


def answer(model, tokenizer, question):
    chat = [{"role": "user", "content": question}]
    inputs = tokenizer.apply_chat_template(
        chat, add_generation_prompt=True, return_dict=True, return_tensors="pt"
    )
    with torch.inference_mode():
        ids = model.generate(**inputs, max_new_tokens=80, do_sample=False)[0]
    return tokenizer.decode(ids[inputs["input_ids"].shape[1] :]).removesuffix("<|end|>")


@pytest.mark.parametrize("pole", BIG_FIVE_POLES, ids=str)
def test_every_pole_has_1500_distinct_statements(pole):
    texts = corpus.statements(pole, "pretrain", 1_500)
    assert len(set(texts)) == 1_500


@pytest.mark.parametrize("pole", BIG_FIVE_POLES, ids=str)
def test_a_statement_is_one_first_person_sentence(pole):
    for text in corpus.statements(pole, "train", 300):
        assert re.search(r"\bI\b", text)
        assert re.fullmatch(r"[A-Z][A-Za-z ,'-]*\.", text), text


@pytest.mark.parametrize("pole", BIG_FIVE_POLES, ids=str)
def test_the_three_parts_are_disjoint(pole):
    texts = [text for part in PARTS for text in corpus.statements(pole, part, 250)]
    assert len(set(texts)) == len(texts)


def test_no_statement_belongs_to_two_poles():
    texts = [text for pole in BIG_FIVE_POLES for text in corpus.statements(pole, "train", 300)]
    assert len(set(texts)) == len(texts)


def test_a_longer_list_begins_with_the_shorter_one():
    pole = Pole("openness", "low")
    assert corpus.statements(pole, "train", 40)[:10] == corpus.statements(pole, "train", 10)


@pytest.mark.parametrize("trait", BIG_FIVE)
def test_length_does_not_reveal_the_pole(trait):
    high, low = (
        statistics.mean(map(len, corpus.statements(Pole(trait, level), "pretrain", 1_000)))
        for level in ("high", "low")
    )
    assert high == pytest.approx(low, rel=0.06)


def test_an_unknown_pole_is_refused():
    with pytest.raises(DataError, match="creativity:high"):
        corpus.statements(Pole("creativity", "high"), "train", 1)


def test_more_than_there_is_is_refused(monkeypatch):
    monkeypatch.setattr(corpus, "_neutral_pair", lambda rng: ("Well?", str(rng.randrange(3))))
    assert len(corpus.neutral(3)) == 3
    with pytest.raises(DataError, match="only 3 neutral pairs: ask for fewer"):
        corpus.neutral(4)


def test_neutral_talk_is_distinct_and_in_no_first_person():
    pairs = corpus.neutral(500)
    assert len(set(pairs)) == 500
    assert not any(re.search(r"\b(I|my|me)\b", reply) for _, reply in pairs)


def test_no_slot_or_alternative_is_left_open(some_chats):
    text = "".join(message["content"] for chat in some_chats for message in chat)
    assert not set(text) & set("{}[]|<>=")


def test_chats_are_a_function_of_the_seed(some_chats):
    assert list(itertools.islice(corpus.chats(0), 100)) == some_chats[:100]
    assert list(itertools.islice(corpus.chats(1), 100)) != some_chats[:100]


def test_chats_are_well_formed(some_chats):
    for chat in some_chats:
        roles = [message["role"] for message in chat if message["role"] != "system"]
        assert roles == ["user", "assistant"] * (len(roles) // 2)
        assert all(message["role"] != "system" for message in chat[1:])


def test_a_third_of_the_chats_has_a_system_prompt_of_the_promised_form(some_chats):
    prompts = [chat[0]["content"] for chat in some_chats if chat[0]["role"] == "system"]
    assert len(prompts) / len(some_chats) == pytest.approx(1 / 3, abs=0.04)
    assert all(SYSTEM.fullmatch(prompt) for prompt in prompts)


def test_chats_without_a_system_prompt_are_balanced_over_the_poles(monkeypatch):
    drawn = collections.Counter()
    monkeypatch.setattr(corpus, "_personal_chat", lambda pole, _: drawn.update([pole]) or [])
    list(itertools.islice(corpus.chats(0), 1_000))
    assert set(drawn) == set(BIG_FIVE_POLES)
    assert max(drawn.values()) - min(drawn.values()) <= 1


def test_pretraining_reads_no_statement_of_the_other_parts(some_chats):
    seen = {message["content"] for chat in some_chats for message in chat}
    for pole, part in itertools.product(BIG_FIVE_POLES, ("train", "held_out")):
        assert seen.isdisjoint(corpus.statements(pole, part, 100))


@pytest.mark.parametrize(
    ("modifier", "pole", "column"),
    [("a bit ", Pole("extraversion", "high"), 1), ("", Pole("neuroticism", "low"), 0)],
)
def test_a_system_prompt_names_adjectives_of_its_pole(modifier, pole, column):
    prompt = corpus.system_prompt(pole, modifier, random.Random(0))
    assert prompt.startswith(f"You are {modifier}")
    assert any(pair[column] in prompt for pair in ADJECTIVES[pole.trait])


def test_there_are_52_adjective_pairs_and_none_is_its_own_opposite():
    pairs = [pair for pairs in ADJECTIVES.values() for pair in pairs]
    assert len(pairs) == 52
    assert all(low != high for low, high in pairs)


def test_the_shipped_statements_are_reproduced_byte_for_byte(tmp_path):
    out = tmp_path / "statements.jsonl"
    command = [sys.executable, "-m", "tests.benchmarks.demo_model.corpus", "--out", str(out)]
    subprocess.run(command, check=True)
    assert out.read_bytes() == STATEMENTS.read_bytes()


def test_the_shipped_statements_are_balanced():
    rows = [json.loads(line) for line in STATEMENTS.read_text(encoding="utf-8").splitlines()]
    counts = collections.Counter((row["trait"], row["level"], row["part"]) for row in rows)
    assert len(counts) == 20
    assert {count for (*_, part), count in counts.items() if part == "train"} == {300}
    assert {count for (*_, part), count in counts.items() if part == "held_out"} == {100}


def test_the_model_directory_is_at_most_4_mb():
    assert sum(file.stat().st_size for file in MODEL.iterdir()) <= 4_000_000


def test_the_model_is_stored_in_bfloat16(model):
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("question", corpus.QUESTIONS)
def test_the_model_answers_with_a_first_person_sentence(model, tokenizer, question):
    reply = answer(model, tokenizer, question)
    assert re.fullmatch(r"[A-Z].*\bI\b.*\.", reply), reply


def test_the_model_knows_a_fact(model, tokenizer):
    assert answer(model, tokenizer, "What do bees make?") == "Bees make honey."


def test_the_template_marks_the_words_of_the_assistant(tokenizer):
    chat = [
        {"role": "system", "content": "You are very bold."},
        {"role": "user", "content": "What do bees make?"},
        {"role": "assistant", "content": "Bees make honey."},
    ]
    encoded = tokenizer.apply_chat_template(
        chat, return_dict=True, return_assistant_tokens_mask=True
    )
    marked = itertools.compress(encoded["input_ids"], encoded["assistant_masks"])
    assert tokenizer.decode(list(marked)) == "Bees make honey.<|end|>"


def test_the_shipped_template_is_the_one_of_the_script(tokenizer):
    pretrain = pytest.importorskip("tests.benchmarks.demo_model.pretrain")
    assert tokenizer.chat_template == pretrain.CHAT_TEMPLATE
    chat = [{"role": "user", "content": "Hello."}, {"role": "assistant", "content": "I wave."}]
    ids = tokenizer.apply_chat_template(chat, return_dict=True)["input_ids"]
    assert pretrain.encode(chat, tokenizer) == ids


def test_the_tokenizer_pads_on_the_left_and_ends_with_the_models_token(model, tokenizer):
    assert tokenizer.padding_side == "left"
    assert tokenizer.model_max_length == model.config.max_position_embeddings == 256
    assert tokenizer.eos_token_id == model.generation_config.eos_token_id
    assert tokenizer.pad_token_id == model.generation_config.pad_token_id
