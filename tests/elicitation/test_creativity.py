"""The direction of creativity is that of its pairs of prompts."""

import pytest
import torch

from personality_vector.data.creativity import CreativityPair
from personality_vector.elicitation.extract import creativity_direction
from personality_vector.steering.activations import Reader
from personality_vector.subject.chat import question

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
