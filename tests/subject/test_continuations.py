"""Several continuations of a reply: what they share is read once, and nothing else changes."""

import pytest
import torch

from personality_vector.subject import answered, question
from personality_vector.subject.continuations import continuation_likelihoods
from personality_vector.subject.subject import Subject
from tests.laws.test_families import FAMILIES

ASKED, BEGUN = "What do you drink?", "I like water."
MORE = ["I like tea.", "Tea with friends, and no sugar.", "Never!", "x"]


@pytest.mark.parametrize("family", FAMILIES)
def test_they_are_as_likely_as_when_each_is_read_whole(pico, family):
    subject = Subject.load(pico(family))
    found = continuation_likelihoods(subject.model, subject.tokenizer, question(ASKED), BEGUN, MORE)
    ((begun, _),) = subject.predictions([answered(question(ASKED), BEGUN)])
    chats = [answered(question(ASKED), f"{BEGUN} {more}") for more in MORE]
    whole = list(subject.predictions(chats))
    rows = [tokens.tolist() for tokens, _ in whole]
    before = len(begun)
    while len({tuple(row[: before + 1]) for row in rows}) == 1:
        before += 1
    expected = [p[before:].gather(1, t[before:, None]).mean() for t, p in whole]
    torch.testing.assert_close(found, torch.stack(expected), atol=1e-4, rtol=1e-4)
