"""What a study will take: what is counted is what is measured, and nothing stops a plan."""

import json
import shutil

import pytest

from personality_vector.finetuning import memory
from personality_vector.study import counting, estimate
from personality_vector.study.estimate import estimated
from personality_vector.study.recipe import CompareRecipe, EvalRecipe, open_study
from personality_vector.study.shards import Shard, sharded
from personality_vector.subject import batch, subject
from personality_vector.subject.models import load_model
from tests.study.conftest import TRAITS


@pytest.fixture
def asked(monkeypatch):
    """Return what the model is asked from now on: replies, tokens in, tokens read, steps."""
    counts = {"replies": 0, "tokens_in": 0, "tokens_read": 0, "steps": 0}
    reply, encode = subject.generate_batch, subject.encode_chats

    def replied(asked, *given):
        found = reply(asked, *given)
        counts["steps"] += asked.sampling.max_new_tokens - 1
        counts["replies"] += len(found)
        counts["tokens_in"] += sum(one.tokens_in for one in found)
        return found

    def encoded(*given):
        found = encode(*given)
        counts["tokens_read"] += int(found.attention_mask.sum())
        return found

    monkeypatch.setattr(subject, "generate_batch", replied)
    monkeypatch.setattr(batch, "generate_batch", replied)
    monkeypatch.setattr(subject, "encode_chats", encoded)
    return counts


@pytest.fixture
def quick(monkeypatch):
    """Measure no time; estimate the steps."""
    monkeypatch.setattr(estimate, "_time", lambda _, counts, *__: {"steps": counts.steps})


@pytest.mark.usefixtures("quick")
def test_what_is_counted_is_what_is_asked(recipe, measures, tmp_path, asked):
    """Measures that ask the same share replies, but cost times its own where points share batches.

    Chats that are read depend on what is said.
    """
    asking = [*measures(*TRAITS), "cost"]
    study = open_study(recipe(measures=asking, strengths=[1.0, 2.0], seeds=[0, 1]))
    plan = estimated(study)
    study = open_study(recipe(measures=asking, strengths=[1.0, 2.0], seeds=[0, 1]))
    asked.update(dict.fromkeys(asked, 0))
    study.run(tmp_path / "run")
    counted = plan["counted"]
    assert plan["cells"] == 10 * len(asking)
    assert (counted["points"], counted["replies"]) == (10, asked["replies"])
    assert counted["replies"] == 2 * 2 + 8 * 4, "two samples of the base, and twice of the others"
    assert counted["tokens_out_at_most"] == 6 * asked["replies"]
    # That strengths of these weights do not share a batch is seen only in the model.
    assert plan["estimated"]["steps"] == asked["steps"] - 5
    # The system messages of prompts are not counted.
    assert 0.4 < counted["tokens_in"] / asked["tokens_in"] <= 1.0
    assert 0.7 < counted["tokens_read"] / asked["tokens_read"] < 1.5


@pytest.mark.usefixtures("quick")
def test_a_likelihood_and_an_unedited_model_are_counted_exactly(recipe, measures, tmp_path, asked):
    given = {"model": recipe().base, "measures": measures(*TRAITS)[:2], "seeds": [0, 3]}
    study = open_study(
        EvalRecipe.parse(given | {"device": "cpu"}, origin="t", folder=_folder(recipe))
    )
    plan = estimated(study)
    asked.update(dict.fromkeys(asked, 0))
    study.run(tmp_path / "run")
    counted = plan["counted"] | plan["estimated"]
    assert {name: counted[name] for name in asked} == asked


def _folder(recipe):
    return recipe().measures[0].statements.parent


@pytest.mark.usefixtures("quick")
def test_shards_divide_the_work_and_matched_points_are_named(recipe):
    given = {"strengths": [1.0, 2.0, 3.0], "pole": "extraversion:high", "points": 2}
    given["match"] = ["likelihood", {"number": "divergence.mean", "targets": [0.1, 0.2, 0.3]}]
    study = open_study(recipe(CompareRecipe, **given))
    whole = estimated(study)
    assert whole["matched_cells_at_most"] == (2 + 3) * 2 * 4
    assert whole["searches_at_most"] == 2 + 3, "a prompt has no strengths to search"
    parts = [estimated(sharded(study, Shard(index, 3))) for index in (1, 2, 3)]
    assert [one["cells"] for one in parts] == [3 * 4] * 3
    assert all("matched_cells_at_most" not in one for one in parts)
    base = whole["counted"]["replies"] // 7
    assert sum(one["counted"]["replies"] for one in parts) == whole["counted"]["replies"] + 2 * base


@pytest.mark.usefixtures("quick")
def test_what_is_taken_where_interventions_are_matched_counts_for_the_base_alone(recipe, measures):
    given = {"strengths": [1.0, 2.0, 3.0], "pole": "extraversion:high"}
    given["measures"] = measures(*TRAITS)
    whole, dear = (
        estimated(open_study(recipe(CompareRecipe, **given, where_matched=later)))["counted"]
        for later in ([], ["interview", "divergence", "guards"])
    )
    assert whole["points"] == dear["points"] == 7
    assert whole["replies"] == 7 * dear["replies"] > 0


@pytest.mark.usefixtures("quick")
def test_memory_follows_from_the_model_and_the_largest_batch(recipe, pico):
    study = open_study(recipe())
    memory = estimated(study)["estimated"]["memory"]
    model = load_model(pico("llama"))
    weights = sum(one.numel() for one in model.parameters())
    config = model.config
    assert memory["weights"] == memory["edited"] == 4 * weights
    heads = config.num_key_value_heads * config.hidden_size // config.num_attention_heads
    token = 2 * 4 * config.num_hidden_layers * heads
    assert memory["cache"] % token == 0
    assert memory["references"] % (4 * config.vocab_size) == 0
    assert memory["peak"] == sum(value for name, value in memory.items() if name != "peak")
    prompts = open_study(recipe(interventions=[{"prompt": "extraversion:high", "label": "p"}]))
    assert estimated(prompts)["estimated"]["memory"]["edited"] == 0


@pytest.mark.usefixtures("quick")
def test_memory_holds_every_edit_of_a_stack(recipe, pico_tuned):
    tuned = str(pico_tuned("llama"))
    below = {"label": "below", "tuned": tuned, "strengths": [0.5]}
    stacked = [{"label": "w", "tuned": tuned, "on_top_of": [below]}]
    memory = estimated(open_study(recipe(interventions=stacked)))["estimated"]["memory"]
    assert memory["edited"] == 2 * memory["weights"]


@pytest.mark.usefixtures("quick")
def test_a_shared_batch_takes_fewer_steps_and_more_memory(recipe, inputs, tmp_path, asked):
    """Nine strengths of one question, of which a divergence bounds a batch to eight."""
    vector = {"vector": str(inputs / "vector"), "layers": [1], "label": "v"}
    given = {"interventions": [vector], "strengths": [float(n) for n in range(1, 10)]}

    def plan(**how):
        return estimated(open_study(recipe(**given, **how)))["estimated"]

    alone, together = plan(batch_strengths="never"), plan()
    assert alone["steps"] / (1 + 9) == together["steps"] / (1 + 2)
    open_study(recipe(**given)).run(tmp_path / "run")
    assert together["steps"] == asked["steps"]
    alone, together = alone["memory"], together["memory"]
    assert together["cache"] == 8 * alone["cache"]
    assert together["logits"] >= alone["logits"]
    assert together["references"] > alone["references"] > 0


@pytest.mark.usefixtures("quick")
def test_only_predictions_that_are_kept_are_references(recipe, measures, inputs):
    tasks = {"tasks": {"files": [str(_task(inputs))]}}
    one, two = (
        estimated(open_study(recipe(measures=[*measures(*TRAITS)[1:], *more])))
        for more in ([], [tasks])
    )
    memory = one["estimated"]["memory"]
    assert memory["references"] == two["estimated"]["memory"]["references"] > 0
    assert two["counted"]["not_counted"] == {"tasks": "can be counted only with the model"}


def _task(folder):
    rows = [{"id": "a", "question": "Which?", "choices": ["this", "that thing"], "answer": 1}]
    path = folder / "which.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_seconds_are_measured(recipe):
    found = estimated(open_study(recipe()))["estimated"]
    assert found["seconds"] > 0
    assert estimated(open_study(recipe()), workers=2)["estimated"]["processes"] == 2


@pytest.mark.parametrize("what", ["room", "weights", "tokenizer"])
def test_what_cannot_be_measured_is_said(recipe, pico, tmp_path, monkeypatch, what):
    model = tmp_path / "model"
    shutil.copytree(pico("llama"), model)
    study = open_study(recipe(base=str(model), interventions=[_PROMPT]))
    assert study.base_identity
    if what == "room":
        monkeypatch.setattr(memory, "free_memory", lambda _: 1000)
        reason = "no batch is measured, because this needs"
    elif what == "weights":
        (model / "model.safetensors").write_bytes(b"damaged")
        reason = "model"
    else:
        (model / "tokenizer.json").unlink()
        (model / "tokenizer_config.json").unlink()
        reason = "the tokenizer cannot be read"
    plan = estimated(study)
    found = plan if what == "tokenizer" else plan["estimated"]
    assert reason in found["reason"]
    if what == "tokenizer":
        assert plan["counted"] is plan["estimated"] is None
    else:
        assert found["seconds"] is None
        assert plan["counted"]["replies"] > 0


_PROMPT = {"label": "p", "prompt": "extraversion:high"}


@pytest.mark.usefixtures("quick")
def test_a_measure_that_needs_the_model_is_named(recipe, measures, inputs):
    reads = {"activations": {"vectors": [str(inputs / "vector")], "layer": 1}}
    plan = estimated(open_study(recipe(measures=[*measures(*TRAITS), reads])))
    assert plan["counted"]["not_counted"] == {"activations": "can be counted only with the model"}


@pytest.mark.usefixtures("quick")
def test_more_than_anybody_counts_is_said(recipe, monkeypatch):
    monkeypatch.setattr(counting, "_MOST_REPLIES", 30)
    many = {"traits": TRAITS, "generation": {"samples": 10**9, "max_new_tokens": 10**9}}
    plan = estimated(open_study(recipe(measures=[{"interview": many}])))
    assert plan["counted"]["not_counted"] == {
        "interview": "asks for more than 30 replies at one point"
    }
