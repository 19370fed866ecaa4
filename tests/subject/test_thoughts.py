"""Thoughts are not answers: where they begin and end, and what a reply without an end is."""

import pytest
import torch

from personality_vector.subject import Answer, Reply, Rubric, Score, rated
from personality_vector.subject.chat import question
from personality_vector.subject.encoding import before_answer
from personality_vector.subject.models import load_model, load_tokenizer
from personality_vector.subject.spec import Sampling
from personality_vector.subject.subject import generate_replies
from personality_vector.subject.thoughts import UNFINISHED, closed, left_open, marks_of, said
from tests.subject import families

THINK = [("<think>", "</think>")]
TWO = [*THINK, ("[THINK]", "[/THINK]")]


@pytest.fixture
def tokenizer(pico):
    return load_tokenizer(pico("llama"))


@pytest.mark.parametrize(
    ("text", "inside", "answer", "thought"),
    [
        (" I am quiet.\n", False, "I am quiet.", ""),
        ("<think>\n\n</think>\n\nHi", False, "Hi", ""),
        ("<think>hm</think> Hi", False, "Hi", "hm"),
        ("hm</think>Hi", True, "Hi", "hm"),
        ("hm</think>Hi", False, "Hi", "hm"),  # where the prompt opened it unseen
        ("So. <think>a</think>Hi <think>b</think>there", False, "So. Hi there", "a\nb"),
        ("[THINK]a[/THINK]Hi", False, "Hi", "a"),
        ("a > b and </b>", False, "a > b and </b>", ""),
    ],
)
def test_a_reply_is_an_answer_and_a_thought(text, inside, answer, thought):
    assert said(text, TWO, inside=inside) == (answer, thought, True)


@pytest.mark.parametrize(
    ("text", "inside"),
    [("<think>hm", False), ("hm", True), ("Hi <think>a</think> <think>b", False)],
)
def test_a_reply_that_ends_inside_a_thought_has_no_answer(text, inside):
    found = said(text, THINK, inside=inside)
    assert (found.answer, found.is_finished) == ("", False)
    assert said(found.text) == found  # as it is stored
    assert Reply("", 1, 1, 0.0, found.thought, is_finished=False).raw == found.text


@pytest.mark.parametrize(
    ("close", "opening"),
    [
        ("[/THINK]", "[THINK]"),
        ("</reasoning>", "<reasoning>"),
        ("</seed:think>", "<seed:think>"),
        ("<|END_THINKING|>", "<|START_THINKING|>"),
        ("<|end_of_thought|>", "<|begin_of_thought|>"),
        ("\u25c1/think\u25b7", "\u25c1think\u25b7"),
    ],
)
def test_marks_are_those_that_a_template_or_a_tokenizer_names(tokenizer, close, opening):
    assert marks_of(tokenizer) == THINK
    plain = tokenizer.chat_template
    tokenizer.chat_template = plain + "{# " + close + " #}"
    assert marks_of(tokenizer) == [*THINK, (opening, close)]
    tokenizer.chat_template = plain
    tokenizer.add_tokens([opening, close])
    assert marks_of(tokenizer) == [*THINK, (opening, close)]


def test_a_mark_that_ends_a_prompt_opens_a_thought_whose_end_is_never_named(tokenizer):
    plain = tokenizer.chat_template
    for ending in ("<reasoning>\n{% endif %}", "{{ '<reasoning>\\n' }}{% endif %}"):
        tokenizer.chat_template = plain + "{% if add_generation_prompt %}" + ending
        assert marks_of(tokenizer) == [*THINK, ("<reasoning>", "</reasoning>")]
        prompt = before_answer(tokenizer, question("Hi"))
        assert prompt.endswith("<reasoning>\n\n</reasoning>\n\n")
    tokenizer.chat_template = plain + "{# a word such as [thinking] in a text #}"
    assert marks_of(tokenizer) == THINK


def test_a_prompt_is_closed_only_if_it_opens_a_thought():
    assert closed("Hi", TWO) == "Hi"
    assert closed("<think>a</think>", TWO) == "<think>a</think>"
    assert closed("<think>", TWO) == "<think>\n\n</think>\n\n"
    assert closed("[THINK]\n", TWO) == "[THINK]\n\n[/THINK]\n\n"
    assert left_open("<think>\n", TWO) == THINK[0]


def test_a_reply_in_channels_is_its_final_one(tokenizer):
    marks = ["<|channel|>", "<|message|>", "<|start|>"]
    tokenizer.add_tokens(marks, special_tokens=True)
    tokenizer.chat_template = families.PHI4 + "{# <|channel|>analysis<|message|> #}"
    text = (
        "<|channel|>analysis<|message|>hm<|end|>"
        "<|start|>assistant<|channel|>final<|message|>I am quiet.<|end|>"
    )
    for cut, answer in ((text, "I am quiet."), (text[text.index("<|start|>") :], "I am quiet.")):
        row = tokenizer(cut, add_special_tokens=False)["input_ids"]
        (found,) = generate_replies(Written(row), tokenizer, [question("Hi?")], Sampling(), seed=0)
        assert (found.text, found.is_finished) == (answer, True)


class Written(torch.nn.Module):
    """Writes given tokens, whatever it is asked."""

    def __init__(self, *rows):
        super().__init__()
        self.rows, self.weight = rows, torch.nn.Parameter(torch.zeros(1))

    def generate(self, input_ids, **_):
        width = max(map(len, self.rows))
        rows = [[*row, *[0] * (width - len(row))] for row in self.rows]
        return torch.cat([input_ids, torch.tensor(rows)], dim=1)


@pytest.mark.parametrize("special", [False, True])
@pytest.mark.parametrize("opens", [False, True])
def test_thoughts_are_no_part_of_a_reply_whether_or_not_their_marks_are_special(
    tokenizer, special, opens
):
    tokenizer.chat_template = families.R1 if opens else families.PHI4
    tokenizer.add_tokens(["<think>", "</think>"], special_tokens=special)
    first = "" if opens else "<think>"
    texts = [f"{first}hm</think>I am quiet.<|end|>", f"{first}I am quiet.<|end|>"]
    rows = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    asked = [question("Hi?")] * 2
    found = generate_replies(Written(*rows), tokenizer, asked, Sampling(), seed=0)
    assert [(one.text, one.thought, one.is_finished) for one in found] == [
        ("I am quiet.", "hm", True),
        ("", "I am quiet.", False),
    ]
    assert [one.tokens_out for one in found] == [len(row) for row in rows]


class Longest:
    """Rates a reply by its length, and remembers what it saw."""

    name, scale = "longest", (0.0, 100.0)

    def identity(self):
        return ""

    def prepare(self, _base):
        return self

    def __call__(self, _rubric, answers):
        self.seen = answers
        return [Score(float(len(answer.reply))) for answer in answers]


def test_a_judge_sees_answers_only_and_an_unfinished_thought_is_unscored():
    judge = Longest()
    replies = ["four", "<think>\nhm", "<think>\nhm\n</think>\n\nsix six"]
    answers = [
        Answer(str(i), 0, "Hi?", reply, base_reply=replies[2]) for i, reply in enumerate(replies)
    ]
    scores = rated(judge, Rubric("extraversion"), answers)
    assert scores == [Score(4.0), Score(None, UNFINISHED), Score(7.0)]
    assert [(one.reply, one.base_reply) for one in judge.seen] == [
        ("four", "six six"),
        ("six six", "six six"),
    ]


SETTINGS = {
    "do_sample": True,
    "temperature": 0.1,
    "top_k": 1,
    "top_p": 0.1,
    "min_p": 0.5,
    "typical_p": 0.3,
    "epsilon_cutoff": 0.1,
    "eta_cutoff": 0.1,
    "repetition_penalty": 3.0,
    "no_repeat_ngram_size": 1,
    "encoder_repetition_penalty": 2.0,
    "bad_words_ids": [[token] for token in range(20, 120)],
    "suppress_tokens": list(range(120, 200)),
    "begin_suppress_tokens": list(range(200, 280)),
    "sequence_bias": {(50,): 99.0},
    "forced_bos_token_id": 60,
    "forced_eos_token_id": 61,
    "exponential_decay_length_penalty": (1, 2.0),
    "min_length": 400,
    "min_new_tokens": 400,
    "num_beams": 2,
    "renormalize_logits": True,
    "guidance_scale": 2.0,
    "max_time": 0.0001,
    "cache_implementation": "static",
    "watermarking_config": None,
}


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_no_setting_of_the_model_itself_changes_a_reply(pico, tokenizer, temperature):
    asked = [question("Who are you?"), question("Hi?")]
    drawn = Sampling(max_new_tokens=12, temperature=temperature)
    model = load_model(pico("llama"))
    plain = generate_replies(model, tokenizer, asked, drawn, seed=3)
    own = model.generation_config
    own.update(**SETTINGS)
    settings = own.to_dict()
    found = generate_replies(model, tokenizer, asked, drawn, seed=3)
    assert [one.text for one in found] == [one.text for one in plain]
    assert model.generation_config is own
    assert own.to_dict() == settings


def test_a_reply_ends_where_the_tokenizer_says_if_the_model_names_no_end(pico, tokenizer):
    model, drawn = load_model(pico("llama")), Sampling(max_new_tokens=40, temperature=0.0)
    (plain,) = generate_replies(model, tokenizer, [question("Hi?")], drawn, seed=0)
    with torch.no_grad():  # the end mark becomes the likeliest token
        model.lm_head.weight[tokenizer.eos_token_id] *= 50
    ended = generate_replies(model, tokenizer, [question("Hi?")] * 1, drawn, seed=0)
    model.generation_config.eos_token_id = None
    assert [(one.text, one.tokens_out) for one in ended] == [
        (one.text, one.tokens_out)
        for one in generate_replies(model, tokenizer, [question("Hi?")], drawn, seed=0)
    ]
    assert plain.tokens_out == 40
