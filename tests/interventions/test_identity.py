"""What an arm depends on: a bit that flips in anything it reads is seen, a move is not."""

import json
import random
import shutil
from dataclasses import replace

import pytest
import torch

from personality_vector.checkpoint import Checkpoint
from personality_vector.delta import Delta, open_delta
from personality_vector.errors import PersonalityVectorError
from personality_vector.interventions.activations import ActivationSteering
from personality_vector.interventions.decoding import Decoding
from personality_vector.interventions.portraits import Prompted
from personality_vector.interventions.prompts import FewShot
from personality_vector.interventions.weights import WeightEdit
from personality_vector.merging.merged import merged
from personality_vector.subject.chat import answered, question
from personality_vector.subject.identity import base_identity
from personality_vector.traits import Pole

FLIPS = 40
HIGH = Pole("extraversion", "high")


def with_a_flipped_bit(path, place):
    """Flip a bit of a file; ``place`` counts through all of its bits."""
    content = bytearray(path.read_bytes())
    content[place // 8] ^= 1 << place % 8
    path.write_bytes(content)


def places(path, count, seed):
    """Return bits of a file: of a checkpoint's shard those of its tensors, else any."""
    first = 0
    if path.name.startswith("model"):
        first = 8 + int.from_bytes(path.read_bytes()[:8], "little")
    drawn = random.Random(f"{path.name} {seed}")
    return [drawn.randrange(8 * first, 8 * path.stat().st_size) for _ in range(count)]


def require_every_flip_seen(path, identity, count=FLIPS):
    """A flipped bit changes the identity, or what it damages is refused; undone, nothing is."""
    before = identity()
    assert identity() == before
    for place in places(path, count, 0):
        with_a_flipped_bit(path, place)
        try:
            assert identity() != before, f"{path.name}: bit {place}"
        except (PersonalityVectorError, ValueError):
            pass
        finally:
            with_a_flipped_bit(path, place)
    assert identity() == before


@pytest.fixture
def copy_of(tmp_path):
    """Return ``copy_of(path)``: a copy that may be damaged."""
    return lambda path: shutil.copytree(path, tmp_path / "copies" / path.name, symlinks=False)


def test_a_bit_of_the_base_is_seen(pico, copy_of):
    path = copy_of(pico("llama"))
    for name in ("model.safetensors", "tokenizer.json", "chat_template.jinja", "config.json"):
        require_every_flip_seen(
            path / name, lambda: base_identity(Checkpoint.open(path), "float32", "cpu")
        )


def test_a_bit_of_the_tuned_model_is_seen(pico, pico_tuned, copy_of):
    base, path = Checkpoint.open(pico("llama")), copy_of(pico_tuned("llama"))
    require_every_flip_seen(
        path / "model.safetensors", lambda: WeightEdit(open_delta(path, base)).identity()
    )


@pytest.mark.parametrize("storage", ["float32", "bfloat16", "low-rank", "reference"])
def test_a_bit_of_a_saved_delta_is_seen(pico, pico_tuned, tmp_path, storage):
    base, path = Checkpoint.open(pico("llama")), tmp_path / "delta"
    delta = Delta.between(pico("llama"), pico_tuned("llama"))
    delta.save(path, storage=storage, rank=2 if storage == "low-rank" else None)
    for file in sorted(path.iterdir()):
        require_every_flip_seen(file, lambda: WeightEdit(open_delta(path, base)).identity())


@pytest.fixture
def adapter(pico, tmp_path):
    """Return the directory of a LoRA adapter of pico llama."""
    from peft import LoraConfig, get_peft_model

    from personality_vector.subject.models import load_model

    config = LoraConfig(r=2, target_modules=["q_proj", "up_proj"], init_lora_weights=False)
    get_peft_model(load_model(pico("llama")), config).save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
def test_a_bit_of_an_adapter_is_seen_saved_or_not(pico, adapter, tmp_path):
    base = Checkpoint.open(pico("llama"))
    for file in (adapter / "adapter_model.safetensors", adapter / "adapter_config.json"):
        require_every_flip_seen(file, lambda: WeightEdit(open_delta(adapter, base)).identity())
    path = open_delta(adapter, base).save(tmp_path / "delta", storage="lora")
    for file in sorted(path.iterdir()):
        require_every_flip_seen(file, lambda: WeightEdit(open_delta(path, base)).identity())


def test_a_bit_of_a_part_is_seen_in_a_sum_and_in_a_merge(pico, pico_tuned, tmp_path):
    base, path = Checkpoint.open(pico("llama")), tmp_path / "delta"
    other = Delta.between(pico("llama"), pico_tuned("llama", seed=1))
    Delta.between(pico("llama"), pico_tuned("llama")).save(path)
    file = path / "delta.safetensors"
    require_every_flip_seen(
        file, lambda: WeightEdit(0.5 * open_delta(path, base) + other).identity()
    )
    require_every_flip_seen(
        file,
        lambda: WeightEdit(merged(base, [(path, 0.5), (other, 1.0)], method="ties")).identity(),
    )


@pytest.mark.parametrize(
    ("keys", "read"),
    [
        ({"vector": "vector", "layers": [1]}, "vector"),
        ({"neurons": "neurons"}, "neurons"),
        (
            {
                "vector": "one",
                "layers": [1],
                "positions": "response",
                "gate": {"vector": "vector", "layer": 0, "threshold": 0.1},
            },
            "vector",
        ),
        ({"examples": {"source": "shots", "format": "chats", "part": "all"}}, "shots"),
    ],
    ids=["vector", "neurons", "gate", "examples"],
)
def test_a_bit_of_what_a_recipe_names_is_seen(opened, folder, keys, read):
    chat = answered(question("Hi"), "Hello")
    row = {"prompt": chat[:1], "completion": chat[1:], "unread": "x"}
    (folder / "shots").write_text(json.dumps(row) + "\n")
    path = folder / read
    for file in sorted(path.iterdir()) if path.is_dir() else [path]:
        require_every_flip_seen(file, lambda: opened(**keys).identity())


def test_a_move_changes_nothing(opened, folder, pico, pico_tuned, copy_of, tmp_path):
    base = Checkpoint.open(pico("llama"))
    moved = copy_of(folder / "vector")
    one, other = (opened(vector=str(where), layers=[1]) for where in (folder / "vector", moved))
    assert one.identity() == other.identity()
    delta = Delta.between(pico("llama"), pico_tuned("llama"))
    path = delta.save(tmp_path / "delta")
    edits = [WeightEdit(open_delta(where, base)) for where in (path, copy_of(path))]
    assert edits[0].identity() == edits[1].identity()
    assert base_identity(base, "float32", "cpu") == base_identity(
        Checkpoint.open(copy_of(pico("llama"))), "float32", "cpu"
    )


def test_the_order_of_terms_changes_nothing(pico, pico_tuned, tmp_path):
    saved = []
    for seed in (0, 1):
        delta = Delta.between(pico("llama"), pico_tuned("llama", seed=seed))
        saved.append(Delta.load(delta.save(tmp_path / f"delta-{seed}")))
    one, other = saved
    assert WeightEdit(one + other).identity() == WeightEdit(other + one).identity()
    assert WeightEdit(one + other).identity() != WeightEdit(one - other).identity()


@pytest.mark.parametrize(
    ("one", "changes"),
    [
        (Prompted(HIGH), {"pole": HIGH.opposite, "adjectives": 4, "seed": 1}),
        (FewShot([answered(question("a"), "b")]), {"examples": [answered(question("a"), "c")]}),
        (
            Decoding(temperature=1.0),
            {"temperature": 0.9, "top_p": 0.5, "repetition_penalty": 1.1, "no_repeat_ngram": 2},
        ),
    ],
)
def test_every_option_is_seen(one, changes):
    found = {replace(one, **{name: value}).identity() for name, value in changes.items()}
    assert len(found | {one.identity()}) == len(changes) + 1


def test_every_option_of_steering_is_seen(folder):
    from personality_vector.steering import Gate, SteeringVector

    vector = SteeringVector.load(folder / "vector")
    one = ActivationSteering(vector, [1], positions="response")
    gates = [Gate(0, torch.ones(48), threshold, "above") for threshold in (0.1, 0.2)]
    others = [
        replace(one, layers=[2]),
        replace(one, positions="prompt"),
        replace(one, how="ablate"),
        *(replace(one, gate=gate) for gate in gates),
        replace(one, vector=2.0 * vector),
        replace(one, files=(folder / "vector",)),
    ]
    assert len({other.identity() for other in [one, *others]}) == len(others) + 1
