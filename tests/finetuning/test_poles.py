"""Many poles from one recipe: each once, resumed to the same weights, with their deltas."""

import json
import os
import shutil
import signal
import time

import pytest
import torch
from safetensors.torch import load_file

from personality_vector.delta import Delta
from personality_vector.errors import DataError, DivergedError, OutputExistsError, RecipeError
from personality_vector.finetuning.poles import train_poles
from personality_vector.finetuning.recipe import SftSpec, TrainRecipe
from personality_vector.finetuning.resuming import is_whole
from personality_vector.finetuning.rows import matched_in_length, rows_of, selected, shown
from personality_vector.finetuning.sft import train
from personality_vector.subject.chat import answered, question
from personality_vector.subject.models import load_model, load_tokenizer
from personality_vector.traits import Pole

SFT = {"batch_size": 2, "epochs": 3, "learning_rate": 1e-2, "checkpoints": 5}
LORA = {"rank": 2, "alpha": 4, "dropout": 0.1}
POLES = ["extraversion", "neuroticism:high"]
SAID = {"extraversion": ("I love parties", "I stay at home"), "neuroticism": ("I fret", "I rest")}


@pytest.fixture(scope="module")
def recipe(tmp_path_factory, pico):
    """Return ``recipe(sft, **changes)``: four statements of each pole, on pico llama."""
    folder = tmp_path_factory.mktemp("poles")
    rows = [
        {"trait": trait, "level": level, "statement": f"{text} {number} {part}", "part": part}
        for trait, both in SAID.items()
        for level, text in zip(("high", "low"), both, strict=True)
        for number in range(4)
        for part in ("train", "held_out")
    ]
    (folder / "statements.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def make(sft=None, **changes):
        data = {
            "base": str(pico("llama")),
            "poles": POLES,
            "data": {"source": "statements.jsonl"},
            "device": "cpu",
            "sft": {**SFT, **(sft or {})},
        }
        return TrainRecipe.parse({**data, **changes}, origin="test", folder=folder)

    return make


@pytest.fixture(scope="module")
def trained(recipe, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "adapters"
    return out, list(train_poles(recipe({"lora": LORA}, delta=True), out))


def weights(folder):
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in sorted(folder.rglob("*.safetensors"))
    }


def test_every_pole_has_a_folder_and_is_trained_once(trained, recipe):
    out, reports = trained
    assert [str(report.pole) for report in reports] == [
        "extraversion:high", "extraversion:low", "neuroticism:high"
    ]  # fmt: skip
    assert {report.state for report in reports} == {"trained"}
    names = {"extraversion-high", "extraversion-low", "neuroticism-high", "deltas"}
    assert {path.name for path in out.iterdir()} == names
    before = weights(out)
    again = list(train_poles(recipe({"lora": LORA}, delta=True), out))
    assert {report.state for report in again} == {"there"}
    assert [report.manifest for report in again] == [report.manifest for report in reports]
    assert weights(out) == before


def test_one_of_several_is_what_a_recipe_of_it_alone_trains(trained, recipe, tmp_path):
    out, _ = trained
    one = recipe({"lora": LORA}, poles=None, pole="extraversion:low")
    assert weights(train(one, tmp_path / "one").path) == weights(out / "extraversion-low")
    only = recipe({"lora": LORA}, only=["neuroticism"], poles=[*POLES, "neuroticism:low"])
    assert [str(pole) for pole in only.chosen] == ["neuroticism:high", "neuroticism:low"]


def test_half_the_difference_is_that_of_both_deltas(trained):
    out, _ = trained
    high, low = (Delta.load(out / "deltas" / f"extraversion-{level}") for level in ("high", "low"))
    half = Delta.load(out / "deltas" / "extraversion")
    for name in half.names:
        expected = (high[name].double() - low[name].double()) / 2
        torch.testing.assert_close(half[name].double(), expected, rtol=1e-6, atol=1e-9)
    assert (str(half.pole), half.label) == ("extraversion:high", "extraversion")
    assert half.halves == (high.identity, low.identity)
    mean = 0.5 * (high + low)
    assert half.norm() ** 2 + mean.norm() ** 2 == pytest.approx(
        (high.norm() ** 2 + low.norm() ** 2) / 2, rel=1e-6
    )
    assert not (out / "deltas" / "neuroticism").exists()
    size, whole = (
        (out / "deltas" / name / "delta.safetensors").stat().st_size
        for name in ("extraversion", "extraversion-high")
    )
    assert size < 2.5 * whole  # the factors of both


def test_what_is_there_of_another_recipe_is_refused(trained, recipe):
    out, _ = trained
    with pytest.raises(OutputExistsError, match=r"extraversion-high: is not what this recipe tra"):
        list(train_poles(recipe({"lora": LORA, "epochs": 2}), out))


@pytest.mark.slow
@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora"])
def test_killed_at_any_moment_the_weights_are_those_of_an_undisturbed_run(recipe, tmp_path, lora):
    """Each child is killed and the next one resumes: no finished pole is trained twice."""
    given = recipe({"lora": lora})
    began = time.perf_counter()
    undisturbed = tmp_path / "undisturbed"
    list(train_poles(given, undisturbed))
    seconds, out = time.perf_counter() - began, tmp_path / "out"
    done = set()
    for part in (0.2, 0.3, 0.4):
        child = os.fork()
        if child == 0:
            list(train_poles(given, out))
            os._exit(0)
        time.sleep(part * seconds)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        there = {path for path in out.glob("*") if path.suffix == "" and path.name[0] != "."}
        assert all((path / "MANIFEST.json").is_file() for path in there)
        done = there
    finished = {path: path.stat().st_ino for path in done}
    reports = list(train_poles(given, out))
    assert {r.path for r in reports if r.state == "there"} == done
    assert {path: path.stat().st_ino for path in done} == finished
    assert weights(out) == weights(undisturbed)
    assert sorted(p.name for p in out.iterdir()) == sorted(p.name for p in undisturbed.iterdir())


def test_a_training_goes_on_from_its_last_whole_checkpoint(recipe, tmp_path, monkeypatch):
    given = recipe(poles=None, pole="extraversion:high")
    whole = train(given, tmp_path / "whole")
    interrupted_at(monkeypatch, 4)
    with pytest.raises(KeyboardInterrupt):
        train(given, tmp_path / "out")
    monkeypatch.undo()
    scratch = tmp_path / ".out.training"
    found = sorted(path.name for path in scratch.glob("checkpoint-*"))
    assert found
    assert not (tmp_path / "out").exists()
    last = scratch / found[-1]
    half_written = shutil.copytree(last, scratch / "checkpoint-99")
    (half_written / "optimizer.pt").write_bytes(b"half")
    assert is_whole(last)
    assert not is_whole(half_written)
    other = recipe({"learning_rate": 1e-3}, poles=None, pole="extraversion:high")
    with pytest.raises(OutputExistsError, match=r"out\.training: has checkpoints of a training w"):
        train(other, tmp_path / "out")
    steps = count_steps(monkeypatch)
    again = train(given, tmp_path / "out")
    assert len(steps) < len(whole.manifest["losses"])
    assert weights(again.path) == weights(whole.path)
    assert again.manifest == whole.manifest
    assert not scratch.exists()


def interrupted_at(monkeypatch, step):
    from personality_vector.finetuning.callbacks import Monitor

    def stop(_self, _args, state, _control, **_):
        if state.global_step == step:
            raise KeyboardInterrupt

    monkeypatch.setattr(Monitor, "on_step_begin", stop)


def count_steps(monkeypatch):
    from personality_vector.finetuning.callbacks import Monitor

    steps = []
    monkeypatch.setattr(Monitor, "on_step_begin", lambda _self, _args, s, _c, **_: steps.append(s))
    return steps


def test_a_failed_training_leaves_checkpoints_only_if_they_are_of_use(
    recipe, tmp_path, monkeypatch
):
    given, scratch = recipe(poles=None, pole="extraversion:high"), tmp_path / ".out.training"

    def failing(error):
        def fail(*_):
            raise error

        monkeypatch.setattr("personality_vector.finetuning.sft._save", fail)
        with pytest.raises(type(error)):
            train(given, tmp_path / "out")

    failing(MemoryError())
    assert any(scratch.glob("checkpoint-*"))  # what is trained is not lost to a moment
    failing(DivergedError("weights are nan"))
    assert not scratch.exists()
    monkeypatch.setattr("personality_vector.finetuning.sft._fit", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        train(given, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_several_are_trained_at_once_to_the_same_weights(recipe, tmp_path):
    given = recipe({"lora": {"rank": 2, "alpha": 4}, "epochs": 1}, poles=["extraversion"])
    at_once = given.model_copy(update={"workers": 2})
    list(train_poles(given, tmp_path / "one"))
    reports = list(train_poles(at_once, tmp_path / "two"))
    assert {str(report.pole) for report in reports} == {"extraversion:high", "extraversion:low"}
    assert weights(tmp_path / "two") == weights(tmp_path / "one")


def test_the_loss_is_on_what_the_assistant_says_and_on_nothing_else(recipe, pico):
    """Other targets for the tokens of the user leave every gradient as it is."""
    given = recipe(poles=None, pole="extraversion:high")
    tokenizer, model = load_tokenizer(pico("llama")), load_model(pico("llama"))
    row = rows_of(given, tokenizer).rows[0]
    ids, labels = torch.tensor([row["input_ids"]]), torch.tensor([row["labels"]])
    learned = labels[0, 1:] >= 0
    assert not learned[: learned.int().argmax()].any()

    def gradients(wanted):
        """Restate: minus the mean log-probability of the wanted tokens of the answer alone."""
        model.zero_grad()
        log_p = model(ids).logits[0, :-1].log_softmax(-1)
        (-log_p.gather(1, wanted[:, None])[learned].mean()).backward()
        return [parameter.grad.clone() for parameter in model.parameters()]

    other_user = torch.where(learned, ids[0, 1:], (ids[0, 1:] + 7) % model.config.vocab_size)
    expected, found = gradients(ids[0, 1:]), gradients(other_user)
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
    model.zero_grad()
    model(input_ids=ids, labels=labels).loss.backward()  # as the trainer computes it
    for parameter, one in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, one, rtol=1e-4, atol=1e-7)
    text = shown(tokenizer, row)
    assert text.count("«") == text.count("»") == 1
    assert "I love parties" in text[text.index("«") :]
    assert "What kind of person" in text[: text.index("«")]


def test_lengths_are_matched_between_the_poles():
    def said(*counts):
        return [answered(question("Hi"), "so " * count) for count in counts]

    long, short = said(40, 41, 8, 9, 2), said(8, 8, 8, 40)
    kept = matched_in_length(long, short)
    assert kept == [long[0], long[2], long[3]]
    assert len(matched_in_length(short, long)) == len(kept)


def test_unmatched_lengths_are_counted_as_dropped(recipe, tmp_path):
    rows = [
        {"trait": "extraversion", "level": level, "prompt": "Hi", "completion": "so " * count}
        for level, counts in (("high", (3, 3, 30)), ("low", (3, 3, 3)))
        for count in counts
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {"source": str(tmp_path / "rows.jsonl"), "part": "all"}
    given = recipe(poles=None, pole="extraversion:high", data=data, match_lengths=True)
    found = selected(given)
    assert (len(found.chats), found.dropped) == (2, {"unmatched length": 1})


def test_early_stopping_keeps_the_weights_of_the_best_evaluation(recipe, tmp_path):
    given = recipe(
        {"evaluate_every": 1, "patience": 2, "epochs": 12, "learning_rate": 5e-2},
        poles=None,
        pole="extraversion:high",
    )
    report = train(given, tmp_path / "out")
    losses = {int(step): loss for step, loss in report.manifest["held_out_losses"].items()}
    best = min(losses, key=losses.get)
    assert max(losses) == best + 2 < 24
    shorter = given.model_copy(
        update={"sft": given.sft.model_copy(update={"max_steps": best, "patience": None})}
    )
    # The schedule of the learning rate depends on the number of steps, so compare what it keeps.
    assert set(load_file(report.path / "model.safetensors")) == set(
        load_file(train(shorter, tmp_path / "short").path / "model.safetensors")
    )


def test_packed_chats_do_not_see_each_other(recipe, tmp_path):
    """The first loss of a packed batch is that of the same chats in rows of their own."""
    plain, packed = (
        train(
            recipe(
                {"batch_size": 8, "max_steps": 1, "packing": packing, "max_length": 128},
                poles=None,
                pole="extraversion:high",
            ),
            tmp_path / str(packing),
        ).manifest
        for packing in (False, True)
    )
    assert packed["examples"] == plain["examples"] == 4
    assert packed["losses"] == pytest.approx(plain["losses"], rel=1e-5)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"pole": "extraversion:high"}, "give either pole, or poles for several"),
        ({"poles": None}, "give either pole, or poles for several"),
        ({"poles": None, "pole": "extraversion:high", "delta": True}, "only, delta and workers"),
        ({"poles": ["extraversion", "extraversion:low"]}, "poles: a value is given twice"),
        ({"poles": ["extravert:hgh"]}, "'extravert:hgh' is not a pole"),
        ({"only": ["openness:high"]}, "only: openness:high is not one of the poles, which are"),
        ({"sft": {"patience": 2}}, "patience counts evaluations; give evaluate_every"),
        ({"sft": {"preset": "no_such"}}, "sft.preset: "),
    ],
)
def test_a_recipe_that_contradicts_itself_is_refused(recipe, changed, said):
    with pytest.raises(RecipeError, match=said):
        recipe(**changed) if "sft" not in changed else recipe(changed["sft"])


def test_a_preset_gives_what_its_source_says_and_yields_to_other_keys():
    sft = SftSpec.model_validate({"preset": "persona_vectors", "batch_size": 1})
    assert (sft.lora.rank, sft.lora.rank_stabilised) == (32, True)
    assert (sft.batch_size, sft.gradient_accumulation, sft.warmup_steps) == (1, 8, 5)


def test_poles_that_would_all_learn_the_same_are_refused(recipe, tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"prompt": "Hi", "completion": "Hello."}\n' * 3)
    data = {"source": str(tmp_path / "rows.jsonl"), "part": "all"}
    with pytest.raises(DataError, match=r"high and extraversion:low would learn the same"):
        list(train_poles(recipe(data=data), tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_a_source_may_be_named_after_the_pole(recipe, tmp_path):
    for level in ("high", "low"):
        (tmp_path / f"extraversion-{level}.jsonl").write_text(
            json.dumps({"prompt": "Hi", "completion": f"I am {level}."}) + "\n"
        )
    data = {"source": str(tmp_path / "{trait}-{level}.jsonl"), "part": "all"}
    given = recipe(poles=["extraversion"], data=data)
    for pole in given.chosen:
        (chat,) = selected(given.of(pole)).chats
        assert chat[-1]["content"] == f"I am {pole.level}."
    assert Pole("extraversion", "low") in given.chosen


def test_a_tracker_that_is_not_installed_is_named_with_its_extra(recipe, tmp_path, monkeypatch):
    monkeypatch.setattr("personality_vector.finetuning.sft.find_spec", lambda _: None)
    given = recipe({"report_to": ["tensorboard"]}, poles=None, pole="extraversion:high")
    with pytest.raises(RecipeError, match=r"tensorboard is not installed; .*\[track\]"):
        train(given, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_data_of_every_pole_are_read_before_the_first_is_trained(recipe, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "personality_vector.finetuning.sft.load_model", lambda *_, **__: pytest.fail("loaded")
    )
    with pytest.raises(DataError, match=r"no train openness high there"):
        list(train_poles(recipe(poles=["extraversion", "openness"]), tmp_path / "out"))
    assert list(tmp_path.iterdir()) == []


def test_a_pole_of_other_data_is_not_there(recipe, tmp_path):
    """What decides is the content of the data, and not the path."""
    rows = [
        {"trait": "extraversion", "level": level, "prompt": "Hi", "completion": f"I am {level}."}
        for level in ("high", "low")
    ]
    file, out = tmp_path / "rows.jsonl", tmp_path / "out"
    sft, data = {"epochs": 1, "lora": {"rank": 2, "alpha": 4}}, {"source": str(file), "part": "all"}
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = recipe(sft, poles=["extraversion"], data=data, delta=True)
    list(train_poles(given, out))
    assert {r.state for r in train_poles(recipe({**sft, "checkpoints": 1}, poles=["extraversion"],
            data=data, delta=True), out)} == {"there"}  # fmt: skip
    rows[0]["completion"] = "I am another."
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(OutputExistsError, match=r"extraversion-high: is not what this recipe tr"):
        list(train_poles(given, out))
    before = {name: Delta.load(out / "deltas" / name).identity for name in DELTAS_OF_ONE}
    states = {str(r.pole): r.state for r in train_poles(given, out, force=True)}
    assert states == {"extraversion:high": "trained", "extraversion:low": "there"}
    after = {name: Delta.load(out / "deltas" / name).identity for name in DELTAS_OF_ONE}
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {"extraversion-high", "extraversion"}


DELTAS_OF_ONE = ("extraversion-high", "extraversion-low", "extraversion")


def test_early_stopping_is_as_patient_after_an_interruption(recipe, tmp_path, monkeypatch):
    given = recipe(
        {"evaluate_every": 1, "patience": 3, "epochs": 12, "learning_rate": 5e-2},
        poles=None,
        pole="extraversion:high",
    )
    whole = train(given, tmp_path / "whole")
    stopped = max(map(int, whole.manifest["held_out_losses"]))
    interrupted_at(monkeypatch, stopped - 1)  # after some evaluations that were no better
    with pytest.raises(KeyboardInterrupt):
        train(given, tmp_path / "out")
    monkeypatch.undo()
    again = train(given, tmp_path / "out")
    assert again.manifest == whole.manifest
    assert weights(again.path) == weights(whole.path)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"data": {"source": "s.jsonl", "pole": "openness:high"}}, "data.pole goes with pole"),
        ({"data": {"source": "s.jsonl", "part": "all"}, "sft": {"evaluate_every": 2}}, "held-out"),
    ],
)
def test_keys_that_contradict_the_data_are_refused(recipe, changed, said):
    with pytest.raises(RecipeError, match=said):
        recipe(changed.pop("sft", None), **changed)


def test_keys_of_an_adapter_override_a_preset_one_by_one():
    sft = SftSpec.model_validate({"preset": "persona_vectors", "lora": {"rank": 8}})
    assert (sft.lora.rank, sft.lora.alpha, sft.lora.rank_stabilised) == (8, 64.0, True)
