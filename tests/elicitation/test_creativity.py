"""The direction of creativity is that of its pairs of prompts."""

from pathlib import Path

import pytest
import torch

from personality_vector.elicitation.extract import (
    CreativityPair,
    creativity_direction,
    read_creativity_pairs,
)
from personality_vector.errors import DataError
from personality_vector.steering.activations import Reader
from personality_vector.subject.chat import question

PAIRS_FILE = Path(__file__).parents[2] / "training/steering/creativity.jsonl"

PAIRS = [
    CreativityPair(creative="Write about a party of clouds.", uncreative="Write about a party."),
    CreativityPair(creative="What does the moon love?", uncreative="What is the time?"),
]


@pytest.mark.parametrize("pooling", ["prompt_last", "prompt_mean"])
def test_the_direction_of_creativity_is_the_unit_difference_of_its_prompts(subject, pooling):
    model, tokenizer = subject.model, subject.tokenizer
    vector = creativity_direction(model, tokenizer, PAIRS, pooling=pooling, batch_size=1)
    creative, uncreative = (
        Reader(model, tokenizer, None, pooling).mean(
            [question(getattr(pair, side)) for pair in PAIRS]
        )
        for side in ("creative", "uncreative")
    )
    for layer in vector.layers:
        difference = creative[layer] - uncreative[layer]
        expected = (difference / difference.norm()).float()
        torch.testing.assert_close(vector[layer], expected, rtol=0, atol=1e-5)
    assert (vector.label, vector.pooling, vector.counts) == ("creativity", pooling, (2, 2))


def test_the_pairs_that_are_shipped_can_be_read():
    pairs = read_creativity_pairs(PAIRS_FILE)
    assert len(pairs) == 12
    texts = [text for pair in pairs for text in (pair.creative, pair.uncreative)]
    assert len(set(texts)) == 24


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no pair"),
        ('{"creative": "a"}', "line 1: the key 'uncreative' is missing"),
        ('\n{"creative": "a", "uncreative": " "}', "line 2: uncreative"),
        (
            '{"creative": "a", "uncreative": "b", "dull": "c"}',
            "line 1: unknown key 'dull'; known keys are creative, uncreative",
        ),
        ("{", "line 1: is not JSON"),
    ],
)
def test_unreadable_pairs_are_refused_by_line(tmp_path, text, message):
    file = tmp_path / "pairs.jsonl"
    file.write_text(text)
    with pytest.raises(DataError, match=message):
        read_creativity_pairs(file)
    with pytest.raises(DataError, match="cannot be read"):
        read_creativity_pairs(tmp_path / "absent.jsonl")
