"""Texts that are longer than a model reads: refused by every door, before the model runs."""

import json
import time

import pytest

import personality_vector as pv
from personality_vector.cli.main import run
from personality_vector.data.statements import read_statements
from personality_vector.errors import DataError, LengthError, TrainingError
from personality_vector.finetuning.recipe import TrainRecipe
from personality_vector.finetuning.sft import train
from personality_vector.interventions.neurons.find import find_neurons
from personality_vector.judges.local import LocalJudge
from personality_vector.measures.spec import first_tokens
from personality_vector.steering.activations import Reader
from personality_vector.study.choose.layers import examine
from personality_vector.subject.chat import answered, question
from personality_vector.subject.encoding import most_tokens
from personality_vector.subject.models import load_model, load_tokenizer
from personality_vector.subject.spec import Sampling
from personality_vector.subject.subject import Subject
from personality_vector.traits import Pole

LONG = "I love parties and people. " * 40
ASKED = question(LONG)
SAID = answered(question("Who are you?"), LONG)


@pytest.fixture(scope="module")
def subject(pico, request):
    path = pico(request.param)
    return Subject(load_model(path), load_tokenizer(path), sampling=Sampling(2, temperature=0.0))


def layers(subject):
    vector = pv.SteeringVector(
        {0: subject.model.get_input_embeddings().weight[0].detach()},
        *("", Pole("openness", "high"), "v", "response_mean", (1, 1)),
    )
    return examine(subject, vector, [0], [SAID], [SAID], pv.Positions.parse("all"), 1)


def pooled(pooling):
    chat = SAID if pooling == "response_mean" else ASKED
    return lambda subject: Reader(subject.model, subject.tokenizer, None, pooling).pooled([chat])


DOORS = {
    "likelihood": lambda subject: subject.log_likelihood([SAID]),
    "predictions": lambda subject: list(subject.predictions([SAID])),
    "divergence": lambda subject: first_tokens(subject, [SAID], 9),
    "replies": lambda subject: subject.replies([ASKED], 0),
    "later replies": lambda subject: subject.replies([question("Hi?"), ASKED], 0),
    "first tokens": lambda subject: subject.next_token([ASKED], [1]),
    "layers": layers,
    "neurons": lambda subject: find_neurons(subject.model, subject.tokenizer, [SAID], [SAID]),
    **{pooling: pooled(pooling) for pooling in ("response_mean", "prompt_mean", "last")},
}


@pytest.mark.parametrize("subject", ["llama", "gpt2"], indirect=True)
@pytest.mark.parametrize("door", DOORS)
def test_what_is_too_long_is_refused_by_every_door(subject, door, monkeypatch):
    def read(*_, **__):
        raise AssertionError("the model reads what it will refuse")

    if door != "later replies":
        monkeypatch.setattr(type(subject.model), "forward", read)
    with pytest.raises(LengthError) as error:
        DOORS[door](subject)
    assert str(error.value).startswith(f"the chat with {LONG[:60]!r} has ")
    assert "tokens, and the model reads at most 256; shorten it" in str(error.value)


def test_a_judge_refuses_too(pico):
    with pytest.raises(LengthError, match="at most 256"):
        LocalJudge(checkpoint=str(pico("llama")), device="cpu").first_tokens([ASKED], ["1"])


@pytest.mark.parametrize("subject", ["llama"], indirect=True)
def test_as_many_tokens_as_the_model_has_positions_are_read(subject):
    chat = answered(question("a"), "b")
    most = len(subject.tokenizer.apply_chat_template(chat, tokenize=True)["input_ids"])
    subject.tokenizer.most_tokens = most
    assert subject.log_likelihood([chat]).isfinite().all()
    subject.tokenizer.most_tokens = most - 1
    with pytest.raises(LengthError, match=f"has {most} tokens"):
        subject.log_likelihood([chat])
    subject.tokenizer.most_tokens = 256


@pytest.mark.parametrize("subject", ["llama"], indirect=True)
def test_a_huge_text_is_refused_before_it_is_split(subject):
    start, huge = time.process_time(), "x" * 4_000_000
    with pytest.raises(LengthError, match="has more than 256 tokens"):
        subject.log_likelihood([answered(question("Hi?"), huge)])
    with pytest.raises(LengthError, match="has more than 256 tokens"):
        subject.replies([question(huge)], 0)
    assert time.process_time() - start < 2


@pytest.mark.parametrize(
    ("config", "most"),
    [
        ({"max_position_embeddings": 9}, 9),
        ({"n_positions": 9}, 9),
        ({"max_position_embeddings": 5, "text_config": {"max_position_embeddings": 9}}, 9),
        # Scaled positions of which the number in the config is the one before, or that after.
        ({"max_position_embeddings": 8, "rope_scaling": {"type": "dynamic", "factor": 2.0}}, 16),
        (
            {"max_position_embeddings": 40}
            | {"rope_scaling": {"factor": 4.0, "original_max_position_embeddings": 8}},
            40,
        ),
        (
            {"max_position_embeddings": 8}
            | {"rope_parameters": {"full_attention": {"factor": 4.0}, "other": {}}},
            32,
        ),
        ({"max_position_embeddings": 9, "alibi": True}, None),
        *(({"max_position_embeddings": odd}, None) for odd in (0, -1, True, "9", None, 1e9)),
        ({"max_position_embeddings": 9, "rope_scaling": {"factor": float("nan")}}, 9),
        ({"max_position_embeddings": 9, "rope_scaling": [1]}, 9),
        ({}, None),
    ],
)
def test_the_bound_is_in_the_config(config, most):
    assert most_tokens(config) == most


@pytest.mark.parametrize("subject", ["gpt2", "llama"], indirect=True)
def test_a_reply_past_the_last_position_is_named_where_there_is_a_table(subject):
    asked = Subject(subject.model, subject.tokenizer, sampling=Sampling(260, temperature=0.0))
    subject.model.generation_config.eos_token_id = 95
    if "gpt2" not in subject.tokenizer.name_or_path:
        asked.replies([question("Hi?")], 0)  # rotary positions have no end
        return
    with pytest.raises(LengthError, match=r"max_new_tokens is 260, and may be 2[0-9]{2} at most"):
        asked.replies([question("Hi?")], 0)


@pytest.fixture
def broken(tmp_path):
    """Return a CSV in which a quote that is not closed makes one statement of many."""
    rows = [
        f"train,extraversion,{level},I {verb} parties {n} {'very ' * 40}much"
        for level, verb in (("high", "love"), ("low", "leave"))
        for n in range(200)
    ]
    rows[9] = rows[9].replace("I love", '"I love')
    rows[300] += '"'
    (tmp_path / "s.csv").write_text("\n".join(["part,trait,level,statement", *rows, ""]))
    return tmp_path / "s.csv"


def test_a_broken_quote_is_named_by_its_line(broken, pico, tmp_path, capsys, monkeypatch):
    likelihood = {"statements": str(broken), "traits": ["extraversion"], "part": "train"}
    recipe = {"model": str(pico("llama")), "device": "cpu"}
    recipe |= {"measures": [{"likelihood": likelihood}]}
    (tmp_path / "eval.json").write_text(json.dumps(recipe))
    monkeypatch.setattr("personality_vector.subject.subject.mean_log_probs", None)  # never called
    assert run(["eval", str(tmp_path / "eval.json"), "--out", str(tmp_path / "out")]) == 1
    (line,) = (row for row in capsys.readouterr().err.splitlines() if row.startswith("error: "))
    assert line.startswith(f"error: {broken} line 302: the chat with 'I love parties 9 very")
    assert "tokens, and the model reads at most 256; shorten it, or check the quotes" in line


def test_a_cell_of_a_megabyte_is_not_read(tmp_path):
    (tmp_path / "s.csv").write_text(f'trait,level,statement\na,high,b\na,low,"{"c" * (1 << 21)}"\n')
    with pytest.raises(
        DataError, match=r"s.csv line 2: is followed by a cell of more than 1,048,5"
    ):
        read_statements(tmp_path / "s.csv")


def test_training_on_more_than_the_model_reads_is_refused(pico, tmp_path):
    row = {"prompt": "Hi?", "completion": LONG}
    (tmp_path / "chats.jsonl").write_text(json.dumps(row) + "\n")
    recipe = {"base": str(pico("llama")), "pole": "extraversion:high", "device": "cpu"}
    recipe |= {"data": {"source": "chats.jsonl", "part": "all"}}

    def taught(most):
        sft = {"max_length": most, "epochs": 1}
        found = TrainRecipe.parse({**recipe, "sft": sft}, origin="test", folder=tmp_path)
        return train(found, tmp_path / f"out{most}")

    with pytest.raises(TrainingError, match=r"^sft.max_length: allows chats of .* to 256 or less$"):
        taught(1024)
    assert taught(256).manifest["cut"] == 1
