"""Where prompts end: said by whoever runs the model, or by generate() itself."""

import pytest
import torch

from personality_vector.errors import DataError
from personality_vector.subject.models import load_model
from personality_vector.subject.prompts import CURRENT, Prompts, reading, tracking_generate


def test_padding_on_the_left_is_no_prompt():
    ids = torch.tensor([[0, 0, 5], [5, 6, 7]])
    prompts = Prompts.of(ids, torch.tensor([[0, 0, 1], [1, 1, 1]]))
    assert (prompts.begins, prompts.ends) == ((2, 0), (3, 3))


def test_what_was_said_is_forgotten_also_after_an_error():
    outer, inner = Prompts((0,), (1,)), Prompts((0,), (2,))
    heard = []

    def fail() -> None:
        heard.append(CURRENT.get())
        raise KeyError

    with reading(outer):
        with pytest.raises(KeyError), reading(inner):
            fail()
        heard.append(CURRENT.get())
    assert heard == [inner, outer]
    assert CURRENT.get() is None


@pytest.mark.parametrize(
    ("begins", "ends", "ids"),
    [((), (), None), ((0,), (1, 2), None), ((0,), (1,), torch.zeros(2, 3, dtype=torch.int64))],
)
def test_rows_that_do_not_agree_are_refused(begins, ends, ids):
    with pytest.raises(DataError, match="rows"):
        Prompts(begins, ends, ids)


@pytest.mark.parametrize(("begin", "end"), [(3, 2), (-1, 2)])
def test_a_prompt_cannot_end_before_it_begins(begin, end):
    with pytest.raises(DataError, match="row 0"):
        Prompts((begin,), (end,))


@pytest.fixture
def model(pico):
    return load_model(pico("llama"))


def heard_by(model, *args, **given):
    """Return the prompts that a block hears of during ``generate``."""
    heard = []
    handle = model.model.layers[0].register_forward_pre_hook(lambda *_: heard.append(CURRENT.get()))
    with tracking_generate(model):
        model.generate(*args, max_new_tokens=3, min_new_tokens=3, do_sample=False, **given)
    handle.remove()
    assert len(heard) == 3
    assert len(set(map(id, heard))) == 1
    return heard[0]


IDS = torch.tensor([[0, 5, 6, 7], [5, 6, 7, 8]])
MASK = torch.tensor([[0, 1, 1, 1], [1, 1, 1, 1]])


def test_generate_says_what_its_prompts_are(model):
    for prompts in (
        heard_by(model, IDS, attention_mask=MASK),
        heard_by(model, inputs=IDS, attention_mask=MASK),
        heard_by(model, input_ids=IDS, attention_mask=MASK),
    ):
        assert (prompts.begins, prompts.ends) == ((1, 0), (4, 4))
        assert torch.equal(prompts.input_ids, IDS)


def test_generate_from_embeddings_says_it_too(model):
    embeddings = model.get_input_embeddings()(IDS)
    prompts = heard_by(model, inputs_embeds=embeddings, attention_mask=MASK)
    assert (prompts.begins, prompts.ends, prompts.input_ids) == ((1, 0), (4, 4), None)


def test_what_the_caller_of_generate_said_counts(model):
    said = Prompts((0, 0), (2, 2), IDS)
    with reading(said):
        assert heard_by(model, IDS, attention_mask=MASK) is said


def test_generate_is_itself_again(model):
    with tracking_generate(model):
        with tracking_generate(model):
            assert "generate" in vars(model)
        assert "generate" in vars(model)
    assert "generate" not in vars(model)
    assert model.generate.__func__ is type(model).generate


def test_a_generate_without_a_prompt_is_refused(model):
    with (
        tracking_generate(model),
        pytest.raises(DataError, match="neither input_ids nor inputs_embeds"),
    ):
        model.generate(max_new_tokens=1)
