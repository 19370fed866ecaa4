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


@pytest.mark.parametrize("family", FAMILIES)
def test_first_tokens_are_the_same_where_prompts_begin_alike(pico, family, monkeypatch):
    """What they begin with is read once, and not where a hook may look at the whole prompt."""
    subject = Subject.load(pico(family), device="cpu")
    texts = ["calm", "is quiet", "likes to be alone at home", "shouts"]
    chats = [question(f"{'How well does this fit you? ' * 3}{text}") for text in texts]
    alone = torch.cat([subject.next_token([chat], range(200)) for chat in chats])
    whole, generate = [], subject.model.generate
    monkeypatch.setattr(subject.model, "generate", lambda **how: whole.append(1) or generate(**how))
    together = subject.next_token(chats, range(200), 4)
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=0)
    assert whole == [] or family != "llama"
    hook = subject.model.get_input_embeddings().register_forward_hook(lambda *_: None)
    hooked = subject.next_token(chats, range(200), 4)
    hook.remove()
    torch.testing.assert_close(hooked, alone, atol=1e-4, rtol=0)
    assert whole
