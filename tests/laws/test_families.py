"""The laws of merging on every family, in one file and in shards, with a tied head and without."""

from itertools import cycle
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from personality_vector import Delta, Output
from personality_vector.numeric.random import generator_for

FAMILIES = (
    "llama",
    "qwen2",
    "qwen3",
    "gemma2",
    "gemma3_text",
    "mistral",
    "phi3",
    "gpt_neox",
    "mixtral",
    "olmo2",
)
# Each family in one file and in shards, with a tied head and without.
CASES = [
    *(
        (family, number % 2 == sharded, sharded)
        for number, family in enumerate(FAMILIES)
        for sharded in (0, 1)
    ),
    ("persona-tiny", True, 0),
]
METHODS = {
    "task_arithmetic": {},
    "ties": {"density": 0.3},
    "dare_ties": {"drop_rate": 0.3},
    "della": {"drop_rate": 0.5},
    "breadcrumbs": {"beta": 0.5},
}
ONE_FILE = [case for case in CASES if not case[2]]
SEVERAL = Output(shard_size="30KB")


def _name(case):
    family, tied, sharded = case
    return f"{family}-{'tied' if tied else 'untied'}-{'shards' if sharded else 'one file'}"


@pytest.fixture(params=CASES, ids=_name)
def family(request, pico, pico_tuned):
    """A base and two fine-tunes, bfloat16; ``persona-tiny`` is a real model with real deltas."""
    name, tied, sharded = request.param
    if name == "persona-tiny":
        base, *tuned = request.getfixturevalue("persona")
    else:
        given = {"tied": tied, "sharded": bool(sharded)}
        base = pico(name, "bfloat16", **given)
        tuned = [pico_tuned(name, "bfloat16", seed, **given) for seed in (0, 1)]
    return SimpleNamespace(base=base, tuned=tuned, output=SEVERAL if sharded else Output())


@pytest.fixture(scope="session")
def persona(shared, tmp_path_factory):
    """persona-tiny, and what a few steps of AdamW on two texts make of it."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    path = shared / "models" / "persona-tiny"
    if not path.is_dir():
        pytest.skip(f"{path} is absent: it is not part of the repository")
    tokenizer = AutoTokenizer.from_pretrained(path)
    folders = [path]
    for text in ("I love parties and I talk to everybody.", "I like to be alone with a book."):
        model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
        ids = tokenizer(text, return_tensors="pt").input_ids
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4)
        for _ in range(3):
            optimizer.zero_grad()
            model(ids, labels=ids).loss.backward()
            optimizer.step()
        folders.append(tmp_path_factory.mktemp("persona") / "tuned")
        model.to(torch.bfloat16).save_pretrained(folders[-1])
    return folders


def test_law_1_the_ends_of_alpha_are_the_base_and_the_fine_tuned(
    family, merged, tmp_path, weights, require_same_bytes
):
    base, (tuned, _) = family.base, family.tuned
    saved = Delta.between(base, tuned).save(tmp_path / "saved")
    for where in (tuned, saved):
        start, end = (merged(base, [(where, a)], output=family.output) for a in (0.0, 1.0))
        require_same_bytes(start, weights(base))
        require_same_bytes(end, weights(tuned))


def test_law_2_arithmetic_is_float64_with_one_rounding(
    family, merged, restated, require_same_bytes
):
    terms = list(zip(family.tuned, (0.7, -0.3), strict=True))
    found = merged(family.base, terms, output=family.output)
    require_same_bytes(found, restated(family.base, terms))


@pytest.mark.parametrize("family", ONE_FILE, ids=_name, indirect=True)
def test_law_3_alpha_mirrors_and_an_alpha_of_0_and_the_order_change_nothing(
    family, merged, weights, require_same_bytes
):
    """By the method that draws masks and elects signs."""
    one, two = family.tuned
    given = {"method": "dare_ties", "output": Output(dtype="float32")}
    plus, minus = (merged(family.base, [(one, alpha)], **given) for alpha in (0.8, -0.8))
    for name, tensor in weights(family.base).items():
        middle = (plus[name].double() + minus[name].double()) / 2
        ulp = np.spacing(torch.maximum(plus[name].abs(), minus[name].abs()).numpy())
        assert bool(((middle - tensor).abs().numpy() <= ulp).all()), name
    with_zero = merged(family.base, [(two, -0.0), (one, 0.8), (two, 0.0)], **given)
    require_same_bytes(with_zero, plus)
    terms = [(one, 0.8), (two, -0.4)]
    orders = (merged(family.base, order, **given) for order in (terms, terms[::-1]))
    require_same_bytes(*orders)


@pytest.mark.parametrize("family", ONE_FILE, ids=_name, indirect=True)
def test_law_4_dare_keeps_a_share_and_divides_by_it(family, merged, weights):
    rate, given = 0.6, {"output": Output(dtype="float32")}
    terms = [(family.tuned[0], 1.0)]
    found = merged(family.base, terms, method="dare", options={"drop_rate": rate}, **given)
    start, end = weights(family.base), weights(family.tuned[0])
    change, delta = (
        torch.cat([(w[name].double() - start[name].double()).flatten() for name in sorted(start)])
        for w in (found, end)
    )
    kept = change[delta != 0] != 0
    spread = (rate * (1 - rate) / len(kept)) ** 0.5
    assert abs(kept.double().mean() - (1 - rate)) < 4 * spread
    share = (change / delta)[change != 0].median()
    assert share == pytest.approx(1 / (1 - rate), rel=1e-4)


def test_law_5_ties_trims_the_whole_vector_elects_and_averages(
    family, merged, weights, rounded_once, require_same_bytes
):
    start = weights(family.base)
    names, kept = sorted(start), []
    for tuned, alpha in zip(family.tuned, (1.0, -0.5), strict=True):
        end = weights(tuned)
        delta = torch.cat([(end[n].double() - start[n].double()).flatten() for n in names]).numpy()
        magnitude = abs(delta).astype(np.float32)
        least = np.sort(magnitude)[-int(0.2 * len(delta))]
        kept.append(alpha * np.where(magnitude >= least, delta, 0.0))
    agree = [np.sign(term) == np.sign(kept[0] + kept[1]) for term in kept]
    total = sum(np.where(a, t, 0.0) for a, t in zip(agree, kept, strict=True))
    tau = total / np.maximum(sum(a & (t != 0) for a, t in zip(agree, kept, strict=True)), 1)
    at, expected = 0, {}
    for name in names:
        part = tau[at : at + start[name].numel()].reshape(start[name].shape)
        expected[name] = rounded_once(start[name].double().numpy() + part, torch.bfloat16)
        at += part.size
    terms = list(zip(family.tuned, (1.0, -0.5), strict=True))
    found = merged(family.base, terms, method="ties", output=family.output)
    require_same_bytes(found, expected)


@pytest.mark.parametrize(("name", "method"), list(zip(FAMILIES, cycle(METHODS), strict=False)))
def test_law_8_shards_and_threads_change_no_byte(
    pico, pico_tuned, merged, monkeypatch, require_same_bytes, name, method
):
    tied = method in ("ties", "dare_ties")
    found = []
    for sharded, threads in ((False, "1"), (True, "3")):
        monkeypatch.setenv("PVEC_THREADS", threads)
        base = pico(name, "bfloat16", tied=tied, sharded=sharded)
        tuned = [pico_tuned(name, "bfloat16", s, tied=tied, sharded=sharded) for s in (0, 1)]
        terms = list(zip(tuned, (0.7, -0.3), strict=True))
        output = SEVERAL if sharded else Output()
        found.append(merged(base, terms, method=method, options=METHODS[method], output=output))
    require_same_bytes(*found)


def test_a_merged_model_is_a_model_and_not_the_base(family, tmp_path):
    from transformers import AutoModelForCausalLM

    from personality_vector import merge

    terms = list(zip(family.tuned, (0.7, -0.3), strict=True))
    path = merge(family.base, terms, out=tmp_path / "out", output=family.output).path
    assert len(list(path.glob("*.safetensors"))) > 1 or family.output is not SEVERAL
    ids = torch.randint(5, 300, (1, 20), generator=generator_for(0, "prompt"))
    logits = []
    for folder in (path, family.base):
        model, loaded = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
        assert not any(loaded.values()), loaded
        with torch.no_grad():
            logits.append(model.eval()(ids).logits.float())
    assert bool(torch.isfinite(logits[0]).all())
    assert float((logits[0] - logits[1]).abs().max()) > 1e-3
