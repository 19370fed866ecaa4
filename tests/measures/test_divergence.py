"""Divergence: exactly zero at the base, and the numbers of a loop over single sequences."""

import gc
import math
import tempfile
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from personality_vector.data.personas import Instrument, Item
from personality_vector.errors import (
    DataError,
    NonFiniteError,
    StorageError,
    TensorMismatchError,
)
from personality_vector.measures.divergence import Divergence
from personality_vector.measures.spec import Asking
from personality_vector.numeric.random import generator_for
from personality_vector.subject.chat import question
from personality_vector.subject.spec import Sampling

REPLIES = ("Water boils at sea level.", "Yes.", "The train leaves at noon, I think", "Tea")
OWN = ("Steam rises.", "Never!", "I missed the train by a minute, as always", "A cup of tea")
ITEMS = tuple(Item(id=f"q{i}", text=f"Question {i}?") for i in range(len(REPLIES)))
ASKING = Asking(Instrument(name="four", version="1", items=ITEMS), Sampling())
TOKENS = sum(map(len, REPLIES))


@pytest.fixture
def ready(parrot):
    """Return ``ready(*said, **options)``: the measure, when the base has given these replies."""
    return lambda *said, **options: Divergence(ASKING, **{"batch_size": 3, **options}).prepare(
        parrot(*(said or REPLIES))
    )


@contextmanager
def disturbed(tiny, scale=0.05):
    before = {name: weight.clone() for name, weight in tiny.model.named_parameters()}
    with torch.no_grad():
        for name, weight in tiny.model.named_parameters():
            weight += scale * torch.randn(weight.shape, generator=generator_for(0, name))
    yield {}
    with torch.no_grad():
        for name, weight in tiny.model.named_parameters():
            weight.copy_(before[name])


@contextmanager
def steered(tiny, coefficient=1.0):
    """Add a vector to what the first block returns."""
    push = coefficient * torch.randn(32, generator=generator_for(0, "push"))
    block = tiny.model.model.layers[0]
    hook = block.register_forward_hook(lambda *given: given[-1] + push)
    yield {}
    hook.remove()


@contextmanager
def prompted(_tiny, prompt="Be bold."):
    def edit(chat):
        assert chat[-1]["role"] == "user"
        return [{"role": "system", "content": prompt}, *chat]

    yield {"edit": edit}


@contextmanager
def unchanged(_tiny):
    yield {}


def found(tiny, parrot, measure, edit=unchanged, own=REPLIES):
    """Return the readings when the edited model says ``own``, by the last word of their names."""
    with edit(tiny) as given:
        collected = measure.collect(parrot(*own, **given), 0)
    readings = measure.finish(tiny.subject(), collected).readings
    names = [reading.measure for reading in readings]
    assert names == [
        f"divergence.{n}" for n in ("mean", "p95", "max", "base_replies", "perplexity")
    ]
    return {reading.measure.removeprefix("divergence."): reading for reading in readings}


def dense(tiny, chats, edit=unchanged):
    """Return log p of the vocabulary before each response token, and the tokens; float64."""
    rows, said = [], []
    with edit(tiny) as given:
        for *prompt, reply in chats:
            shown = given.get("edit", lambda chat: chat)(prompt)
            tokens, log_probs = tiny.response_log_probs(shown, reply["content"])
            rows.append(log_probs)
            said += tokens
    return torch.cat(rows), torch.tensor(said)


def kl(p, q):
    """Return KL(p || q) before each token, as a loop over the vocabulary gives it."""
    return torch.tensor(
        [
            math.fsum(a * (math.log(a) - math.log(b)) for a, b in zip(x, y, strict=True) if a > 0)
            for x, y in zip(p.exp().tolist(), q.exp().tolist(), strict=True)
        ],
        dtype=torch.float64,
    )


def quantile(values, share):
    """Return a quantile, interpolated between the sorted values."""
    ordered = sorted(values.tolist())
    at = share * (len(ordered) - 1)
    low = math.floor(at)
    return ordered[low] + (at - low) * (ordered[min(low + 1, len(ordered) - 1)] - ordered[low])


@pytest.mark.parametrize("max_tokens", [1, 4, 26, 31, 10_000])
def test_the_unedited_model_is_at_distance_exactly_zero_wherever_tokens_are_cut(
    tiny, parrot, ready, max_tokens
):
    measure = ready(max_tokens=max_tokens)
    readings = found(tiny, parrot, measure, own=OWN)
    for number in ("mean", "p95", "max", "base_replies"):
        assert readings[number].value == 0.0
    assert readings["mean"].n == min(max_tokens, sum(map(len, OWN)))
    assert readings["base_replies"].n == min(max_tokens, TOKENS)
    log_probs, tokens = dense(tiny, [reference.chat for reference in measure.references])
    surprise = -log_probs.gather(1, tokens[:, None])[:max_tokens].mean().item()
    assert readings["perplexity"].value == pytest.approx(math.exp(surprise), rel=1e-5)


EDITS = {
    **{f"weights {s}": partial(disturbed, scale=s) for s in (-0.05, 0.01, 0.1)},
    **{f"activations {s}": partial(steered, coefficient=s) for s in (-2.0, 0.1, 1.0)},
    **{f"prompt {p[:3]}": partial(prompted, prompt=p) for p in ("Be bold.", "Whisper", "!")},
}


@pytest.mark.parametrize("edit", EDITS)
def test_after_an_edit_all_numbers_are_those_of_a_dense_computation(tiny, parrot, ready, edit):
    """One unpadded sequence at a time, float64 from the logits on; the base reads no prompt."""
    chats, _ = ASKING.chats(parrot(*OWN), 0)
    references = [reference.chat for reference in ready().references]
    edited, base = dense(tiny, chats, EDITS[edit])[0], dense(tiny, chats)[0]
    read, said = dense(tiny, references, EDITS[edit])
    own, theirs = kl(edited, base), kl(dense(tiny, references)[0], read)
    surprises = -read.gather(1, said[:, None])
    for most in (40, 2000):
        readings = found(tiny, parrot, ready(max_tokens=most), EDITS[edit], OWN)
        assert {name: reading.value for name, reading in readings.items()} == pytest.approx(
            {
                "mean": own[:most].mean().item(),
                "p95": quantile(own[:most], 0.95),
                "max": own[:most].max().item(),
                "base_replies": theirs[:most].mean().item(),
                "perplexity": math.exp(surprises[:most].mean().item()),
            },
            rel=1e-5,
            abs=1e-5,
        )
        assert readings["mean"].n == min(most, len(own)) == min(most, sum(map(len, OWN)))
    backwards = kl(base, edited).mean().item()
    assert readings["mean"].value != pytest.approx(backwards, rel=1e-4), "it is not symmetric"


def test_a_vector_that_explodes_after_one_token_is_seen_where_the_base_never_says_it(
    tiny, parrot, ready
):
    """Only the embedding of Z is changed, and no reply of the base has a Z."""

    @contextmanager
    def exploding(tiny):
        row = tiny.model.get_input_embeddings().weight[tiny.tokenizer.encode("Z")[0]]
        before = row.detach().clone()
        with torch.no_grad():
            row.copy_(-40 * tiny.model.lm_head.weight[7])
        yield {}
        with torch.no_grad():
            row.copy_(before)

    own = [text.replace("a", "Z") for text in REPLIES]
    readings = found(tiny, parrot, ready(), exploding, own)
    assert readings["base_replies"].value < 1e-6
    assert readings["p95"].value > 1
    assert readings["max"].value > 2


def test_what_cannot_be_compared_is_unscored_and_counted(tiny, parrot, ready):
    own = ("Steam rises.", "", "<think>hm, let me", "A cup of tea")
    reading = found(tiny, parrot, ready(), disturbed, own)["mean"]
    assert (reading.n, reading.unscored) == (len(own[0]) + len(own[3]), 2)
    nothing = found(tiny, parrot, ready(), disturbed, ("", "  "))
    for number in ("mean", "p95", "max"):
        assert (nothing[number].value, nothing[number].n, nothing[number].unscored) == (None, 0, 4)
    assert nothing["base_replies"].value > 0.01


def test_what_is_kept_is_bounded(ready):
    references = ready(max_tokens=26).references
    assert sum(len(reference.tokens) for reference in references) == 26
    for reference in references:
        kept = reference.log_probs
        assert kept.dtype == torch.float32
        assert kept.untyped_storage().nbytes() == kept.nelement() * 4


@pytest.fixture
def opened(tmp_path, monkeypatch):
    """Return ``opened()``: sizes of the temporary files that are open now; none has a name."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    def sizes():
        gc.collect()
        assert list(tmp_path.iterdir()) == []
        links = [link for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]
        ours = [link for link in links if str(link.readlink()).startswith(str(tmp_path))]
        return [link.stat().st_size for link in ours]

    return sizes


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="counts open files by /proc")
def test_predictions_wait_in_a_nameless_file_that_is_closed_also_after_an_error(
    tiny, parrot, ready, opened
):
    measure = ready(max_tokens=26)
    collected = measure.collect(parrot(*OWN), 0)
    collected._file.flush()
    lists = [each for each in vars(collected).values() if isinstance(each, list)]
    held = [each for found in lists for each in found if isinstance(each, torch.Tensor)]
    assert sum(tensor.numel() for tensor in held) == 26, "in memory there is a number a token"
    assert opened() == [26 * len(tiny.tokenizer) * 4]
    measure.finish(tiny.subject(), collected)
    assert opened() == []
    collected = measure.collect(parrot(*OWN), 0)
    collected._tokens[0][0] += 1
    with pytest.raises(TensorMismatchError):
        measure.finish(tiny.subject(), collected)
    assert opened() == [], "closed although the error still refers to it"
    kept = measure.collect(parrot(*OWN), 0)
    assert len(opened()) == 1
    del kept
    assert opened() == []


def test_a_folder_without_room_is_named(parrot, ready, monkeypatch):
    measure = ready()
    monkeypatch.setattr(tempfile, "tempdir", "/nowhere/at/all")
    with pytest.raises(StorageError, match="/nowhere/at/all: cannot be written"):
        measure.collect(parrot(*OWN), 0)


def test_the_base_is_asked_once_for_all_seeds_and_the_edited_model_with_its_own(tiny):
    asking = replace(ASKING, sampling=Sampling(max_new_tokens=6, temperature=1.0))
    measure = Divergence(asking, seed=1).prepare(tiny.subject())
    said = {reference.chat[-1]["content"] for reference in measure.references}
    drawn = {one.reply.text for one in asking(tiny.subject(), 1)}
    assert said == drawn - {""}
    one, other = measure.collect(tiny.subject(), 0), measure.collect(tiny.subject(), 5)
    assert one.readings == other.readings
    assert one.chats != other.chats
    assert {chat[-1]["content"] for chat in other.chats} == {
        one.reply.text for one in asking(tiny.subject(), 5)
    } - {""}
    assert measure.identity() == replace(measure, references=()).identity()


def test_the_reference_is_an_edit_of_the_question_alone(ready):
    chats = {tuple(m["content"] for m in reference.chat) for reference in ready().references}
    asked = [question(item.text)[0]["content"] for item in ITEMS]
    assert chats == set(zip(asked, REPLIES, strict=True))


def test_a_broken_model_gives_no_number(tiny, parrot, ready):
    measure = ready()
    collected = measure.collect(parrot(*OWN), 0)
    with torch.no_grad():
        tiny.model.lm_head.weight[7] = math.nan
    with pytest.raises(NonFiniteError, match="edited model"):
        measure.collect(parrot(*OWN), 0)
    with pytest.raises(NonFiniteError, match="base"):
        measure.finish(tiny.subject(), collected)
    with pytest.raises(NonFiniteError, match="base"):
        ready()


def test_another_vocabulary_is_refused(tiny, parrot, ready):
    measure = ready()
    collected = measure.collect(parrot(*OWN), 0)
    tiny.model.resize_token_embeddings(400, mean_resizing=False)
    with pytest.raises(TensorMismatchError, match="261, the edited model one of 400"):
        measure.collect(parrot(*OWN), 0)
    with pytest.raises(TensorMismatchError, match="400, the edited model one of 261"):
        measure.finish(tiny.subject(), collected)


def test_another_tokenization_is_refused(tiny, parrot, ready):
    tiny.model.resize_token_embeddings(262, mean_resizing=False)
    measure = ready()
    tiny.tokenizer.add_tokens(["boils"])
    with pytest.raises(TensorMismatchError, match="is split into other tokens"):
        measure.collect(parrot(*OWN), 0)


@pytest.mark.parametrize(
    ("said", "options", "says"),
    [
        (("", "  "), {}, "only empty replies"),
        ((), {"batch_size": 0}, "batch"),
    ],
)
def test_nothing_to_compare_is_refused(ready, said, options, says):
    with pytest.raises(DataError, match=says):
        ready(*said, **options)
