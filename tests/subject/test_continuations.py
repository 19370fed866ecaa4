"""Several replies to one chat: what they share is read once, and nothing else changes."""

import pytest
import torch

from personality_vector.subject import answered, question
from personality_vector.subject.continuations import reply_likelihoods
from personality_vector.subject.subject import Subject
from tests.laws.test_families import FAMILIES

REPLIES = ["I like tea.", "I like tea with friends, and no sugar.", "Never!", "x"]


@pytest.mark.parametrize("family", FAMILIES)
def test_they_are_as_likely_as_when_each_is_read_whole(pico, family):
    subject = Subject.load(pico(family))
    so_far = [*answered(question("What do you drink?"), "I like water."), *question("And else?")]
    found = reply_likelihoods(subject.model, subject.tokenizer, so_far, REPLIES)
    whole = subject.log_likelihood([answered(so_far, reply) for reply in REPLIES])
    torch.testing.assert_close(found, whole, atol=1e-4, rtol=1e-4)
