"""Several processes of torchrun: they train what one trains, and only one of them prints."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import personality_vector
from personality_vector.errors import TrainingError
from personality_vector.finetuning import processes
from personality_vector.finetuning.recipe import TrainRecipe
from personality_vector.finetuning.sft import train
from personality_vector.lab import lab_folder

ROOT = Path(personality_vector.__file__).parents[1]
STATEMENTS = lab_folder() / "training/data/big5_statements.jsonl"
CHATS, BATCH, EPOCHS = 32, 8, 2
WAYS = {
    "ddp": ({}, "DistributedDataParallel"),
    "lora": ({"lora": {"rank": 4, "alpha": 8}}, "DistributedDataParallel"),
    "fsdp": ({"fsdp": True, "gradient_checkpointing": True}, "FSDPModule"),
}
LOAD = 240
"""Seconds that two processes may take on a machine that does much else; it is about 10 s."""
SCRIPT = """
import sys
from pathlib import Path
from personality_vector.finetuning.recipe import TrainRecipe
from personality_vector.finetuning.sft import train
from personality_vector.recipes.reading import read_recipe
for file in map(Path, sys.argv[1:]):
    train(read_recipe(file, TrainRecipe), file.with_suffix(""))
"""


def recipe_of(sft):
    given = {
        "base": "builtin:demo",
        "pole": "extraversion:high",
        "data": {"source": str(STATEMENTS), "limit": CHATS, "questions": ["Who are you?"]},
        "sft": {"learning_rate": 1e-3, "epochs": EPOCHS, "batch_size": BATCH, **sft},
        "device": "cpu",
    }
    return TrainRecipe.parse(given, origin="test", folder=ROOT)


def written(folder, name):
    """Write the recipe of one way in two processes, with as many chats in an update."""
    file = folder / f"{name}.yaml"
    recipe = recipe_of({**WAYS[name][0], "batch_size": BATCH // 2})
    file.write_text(json.dumps(recipe.model_dump(mode="json", exclude_defaults=True)))
    return str(file)


def started(*command):
    """Start two processes of torchrun."""
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    return subprocess.Popen(
        [sys.executable, *launcher, *command],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("processes")


@pytest.fixture(scope="module")
def finished(folder):
    """Train with DDP, every weight and then an adapter, and begin with FSDP2 in the same processes.

    They are killed after a checkpoint, and the command line ends what they began.
    """
    (folder / "train.py").write_text(SCRIPT)
    first = started(str(folder / "train.py"), *(written(folder, name) for name in WAYS))
    until = time.monotonic() + LOAD
    while not list(folder.glob(".fsdp.training/checkpoint-*/whole.json")):
        assert time.monotonic() < until
        assert first.poll() is None, first.communicate()[1]
        time.sleep(0.01)
    for one in [*children_of(first.pid), first.pid]:
        os.kill(one, signal.SIGKILL)
    _, before = first.communicate()
    assert not (folder / "fsdp").exists()
    verb = ["-m", "personality_vector.cli", "train", str(folder / "fsdp.yaml"), "--json"]
    process = started(*verb, "--out", str(folder / "fsdp"))
    printed, said = process.communicate(timeout=LOAD)
    assert process.returncode == 0, said
    return printed, before + said


def children_of(process):
    return map(int, Path(f"/proc/{process}/task/{process}/children").read_text().split())


@pytest.fixture(scope="module")
def alone(folder):
    """Train in this process, with the same number of chats in an update."""
    return {
        name: train(recipe_of(WAYS[name][0]), folder / f"{name}-alone") for name in ("ddp", "lora")
    }


@pytest.mark.slow
@pytest.mark.usefixtures("finished")
@pytest.mark.parametrize("name", WAYS)
def test_two_processes_train_what_one_trains(alone, folder, name):
    manifest = json.loads((folder / name / "MANIFEST.json").read_text())
    assert manifest["processes"] == {"count": 2, "wrapper": WAYS[name][1]}
    one = alone["lora" if name == "lora" else "ddp"]
    assert "processes" not in one.manifest
    assert len(manifest["losses"]) == EPOCHS * CHATS // BATCH
    assert manifest["losses"] == pytest.approx(one.manifest["losses"], rel=1e-4)
    expected, found = weights_of(one.path), weights_of(folder / name)
    assert expected.keys() == found.keys()
    for tensor, weight in expected.items():
        torch.testing.assert_close(found[tensor], weight, rtol=0, atol=2e-4)


def weights_of(path):
    files = sorted(path.glob("*.safetensors"))
    return {name: one for file in files for name, one in load_file(file).items()}


@pytest.mark.slow
def test_one_of_two_processes_prints_and_nothing_else_is_left(finished, folder):
    printed, said = finished
    assert json.loads(printed)["out"] == str(folder / "fsdp")
    assert "error" not in said
    assert [path.name for path in folder.iterdir() if "partial" in path.name] == []
    assert list(folder.glob("*.training")) == []


def test_one_process_cannot_shard(tmp_path):
    with pytest.raises(TrainingError, match=r"^sft\.fsdp: true shards .* is one; use torchrun"):
        train(recipe_of({"fsdp": True}), tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_a_launcher_that_starts_one_process_of_two_is_refused(tmp_path, monkeypatch):
    """``accelerate launch --cpu --num_processes 2`` leaves exactly these words."""
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    with pytest.raises(TrainingError, match=r"^accelerate launch .* started one; use torchrun"):
        train(recipe_of({}), tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("fsdp", "wanted"), [(False, "DistributedDataParallel"), (True, "FSDPM")])
def test_a_model_that_is_not_spread_stops_the_training(monkeypatch, fsdp, wanted):
    class Trainer:
        model_wrapped = torch.nn.Linear(1, 1)

        class accelerator:  # noqa: N801
            num_processes = 2

    monkeypatch.setenv("WORLD_SIZE", "2")
    check = processes.SpreadCheck(Trainer, fsdp=fsdp)
    with pytest.raises(TrainingError, match=f"needs {wanted}.*, and the trainer uses Linear"):
        check.on_train_begin()
    monkeypatch.setenv("WORLD_SIZE", "4")
    check = processes.SpreadCheck(Trainer, fsdp=fsdp)
    with pytest.raises(TrainingError, match="there are 4 processes, and the trainer knows of 2"):
        check.on_train_begin()
