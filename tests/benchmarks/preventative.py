"""What steering during training does to a fine-tune of the embedded model.

    python -m tests.benchmarks.preventative

Adapters are trained on statements of extraversion:high. The steering vector is extracted from
statements of both poles that no training sees: the train part is split in halves, by seed. Each
row is the mean over seeds with the least and the greatest value; everything is measured on the
plain model, without steering:

- *shift*: the change of the mean activation, tuned minus base, projected on ``v / |v|``, at the
  last token of the prompt and over held-out responses of the pole, at the steered layer;
- *held-out loss* on held-out statements of the pole, in nats per token;
- *trait*: the change of the likelihood of held-out statements of both poles.

A training that is worse at its task also shifts less. So the last column compares the shift at the
prompt with that of plain training stopped when its held-out loss was the same, between the numbers
of steps in the first rows.
"""

import argparse
import json
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from peft import PeftModel

from personality_vector.data.statements import Statement, read_statements
from personality_vector.finetuning.recipe import TrainRecipe
from personality_vector.finetuning.sft import train
from personality_vector.lab import BIG_FIVE_STATEMENTS, builtin
from personality_vector.measures.likelihood import LikelihoodSpec
from personality_vector.progress import silence
from personality_vector.steering import SteeringVector
from personality_vector.steering.activations import Reader
from personality_vector.steering.training import TrainingSteering
from personality_vector.subject.chat import answered, question
from personality_vector.subject.models import load_model, load_tokenizer
from personality_vector.subject.subject import Subject

TRAIT, LEVELS, STEPS = "extraversion", ("high", "low"), 40
ASKED = (
    "What kind of person are you?",
    "How would your friends describe you?",
    "Tell me something about yourself.",
    "What are you like in everyday life?",
    "How do you usually behave?",
)
SFT = {
    "lora": {"rank": 8, "alpha": 16},
    "learning_rate": 1e-3,
    "scheduler": "constant",
    "batch_size": 16,
    "epochs": 100,  # max_steps ends it before
    "checkpoints": 0,
}
SHORTER = (5, 10, 20)
CASES: dict[str, dict[str, Any]] = {
    **{f"add {c:+g} v": {"how": "add", "coefficient": c} for c in (-1.0, 1.0, 2.0, 4.0, 8.0)},
    "ablate (CAFT)": {"how": "ablate"},
    **{f"regularise {c:g}": {"how": "regularise", "coefficient": c} for c in (0.03, 0.3, 3.0)},
}


@dataclass(frozen=True)
class Found:
    """What was measured of one fine-tune."""

    loss: float
    prompt: float
    response: float
    trait: float


@dataclass
class Lab:
    """One seed: its statements, its vector and the base."""

    folder: Path
    seed: int
    layer: int
    base: Any = field(init=False)
    vector: SteeringVector = field(init=False)

    def __post_init__(self) -> None:
        self.tokenizer = load_tokenizer(builtin("builtin:demo"))
        self.base = load_model(builtin("builtin:demo"))
        halves = {level: self.halved(level) for level in LEVELS}
        rows = [
            {"trait": TRAIT, "level": level, "statement": s.text, "part": part}
            for level in LEVELS
            for part, found in (("train", halves[level][0]), ("held_out", held_out(level)))
            for s in found
        ]
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (self.folder / "statements.jsonl").write_text(text, encoding="utf-8")
        sides = [chats(halves[level][1]) for level in LEVELS]
        self.vector = SteeringVector.extract(self.base, self.tokenizer, *sides)
        self.vector.save(self.folder / "vector")

    def halved(self, level: str) -> tuple[list[Statement], list[Statement]]:
        """Return statements to train on, and others to extract the vector from."""
        found = read_statements(statements(), trait=TRAIT, level=level, part="train")
        Random(self.seed).shuffle(found)
        half = len(found) // 2
        return found[:half], found[half:]

    def trained(self, name: str, steps: int, steer: dict[str, Any] | None) -> Found:
        """Train an adapter, and measure it."""
        given = {"steer": {"vector": "vector", "layers": [self.layer], **steer}} if steer else {}
        data = {
            "base": "builtin:demo",
            "pole": f"{TRAIT}:high",
            "data": {"source": "statements.jsonl", "questions": list(ASKED)},
            "sft": {**SFT, "max_steps": steps, "evaluate_every": steps},
            "seed": self.seed,
            "device": "cpu",
            **given,
        }
        recipe = TrainRecipe.parse(data, origin=name, folder=self.folder)
        how = recipe.steer
        guidance = how and TrainingSteering.open(how.vector, how.layers, how.how, how.coefficient)
        report = train(recipe, self.folder / name.replace(" ", "-"), guidance=guidance)
        adapted = PeftModel.from_pretrained(load_model(builtin("builtin:demo")), report.path)
        return self.measured(adapted.merge_and_unload(), report.manifest["held_out_losses"])

    def measured(self, tuned: Any, losses: dict[str, float]) -> Found:
        """Compare a fine-tune with the base."""
        direction = self.vector[self.layer].double()
        moved = []
        for pooling, read in (
            ("prompt_last", [question(asked) for asked in ASKED]),
            ("response_mean", chats(held_out("high"))),
        ):
            before, after = (
                Reader(model, self.tokenizer, [self.layer], pooling).mean(read)[self.layer]
                for model in (self.base, tuned)
            )
            moved.append(float((after - before) @ direction / direction.norm()))
        probe = LikelihoodSpec(traits=(TRAIT,)).open()
        values = [
            probe.collect(Subject(model, self.tokenizer), seed=0).readings[0].value
            for model in (self.base, tuned)
        ]
        return Found(list(losses.values())[-1], moved[0], moved[1], values[1] - values[0])


def statements() -> Path:
    """Return the file of the shipped statements."""
    return builtin(BIG_FIVE_STATEMENTS)


def held_out(level: str) -> list[Statement]:
    """Return the held-out statements of a pole."""
    return read_statements(statements(), trait=TRAIT, level=level, part="held_out")


def chats(found: Sequence[Statement]) -> list[Any]:
    """Return statements as answers to the questions in turn."""
    return [answered(question(ASKED[n % len(ASKED)]), s.text) for n, s in enumerate(found)]


def measured(seed: int, layer: int) -> Iterator[tuple[str, Found, float]]:
    """Yield, for one seed, each case and its shift relative to plain training of equal loss."""
    with TemporaryDirectory() as folder:
        lab = Lab(Path(folder), seed, layer)
        plain = [lab.trained(f"plain {n}", n, None) for n in (*SHORTER, STEPS)]
        ordered = sorted((found.loss, found.prompt) for found in plain)
        losses, shifts = zip(*ordered, strict=True)
        for steps, found in zip((*SHORTER, STEPS), plain, strict=True):
            yield f"plain, {steps} steps", found, 1.0
        for name, steer in CASES.items():
            found = lab.trained(name, STEPS, steer)
            yield name, found, found.prompt / float(np.interp(found.loss, losses, shifts))


def shown(values: Sequence[float], digits: int) -> str:
    """Return the mean of values, with the least and the greatest."""
    low, mean, high = min(values), statistics.fmean(values), max(values)
    return f"{mean:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--layer", type=int, default=3)
    given = parser.parse_args()
    silence()
    found: dict[str, list[tuple[Found, float]]] = {}
    for seed in range(given.seeds):
        for name, one, ratio in measured(seed, given.layer):
            found.setdefault(name, []).append((one, ratio))
    print(
        f"Layer {given.layer}, {given.seeds} seeds, {STEPS} steps.\n\n| training | shift, prompt | "
        "shift, response | held-out loss | trait | shift / plain of equal loss |\n"
        "|---|---:|---:|---:|---:|---:|"
    )
    for name, both in found.items():
        columns = [
            shown([getattr(one, key) for one, _ in both], digits)
            for key, digits in (("prompt", 2), ("response", 2), ("loss", 3), ("trait", 2))
        ]
        print(f"| {name} | {' | '.join(columns)} | {shown([ratio for _, ratio in both], 2)} |")


if __name__ == "__main__":
    main()
