"""Does the projection difference of data say where training on it will move a model?

    python -m tests.benchmarks.screening [--count 100]

On the embedded model. Vectors come from the held-out statements, which nothing is trained on.
First, statements of both poles are told apart by their projection difference: area under the ROC
curve with a 95 % interval over texts. Then mixtures of high and low statements of a trait, from
none high to all high, are trained on; the mean projection difference of each mixture is compared
with the finetuning shift of the model that it makes, and with the shift of the trait's likelihood:
Pearson's r with a 95 % interval over mixtures.
"""

import argparse
import json
import math
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent / "merging"))

from runner import markdown

import personality_vector as pv
from personality_vector.data.chats import DataSpec, read_chats
from personality_vector.data.personas import evaluation_instrument, open_persona
from personality_vector.finetuning.recipe import SftSpec, TrainRecipe
from personality_vector.finetuning.sft import train
from personality_vector.lab import BIG_FIVE_STATEMENTS, BUILTIN, builtin
from personality_vector.numeric.statistics import associations
from personality_vector.progress import silence
from personality_vector.steering.screen import projection_differences
from personality_vector.steering.shift import Baseline
from personality_vector.subject import Chat, Sampling, question
from personality_vector.subject.subject import Subject
from personality_vector.traits import BIG_FIVE, Pole
from tests.benchmarks.judges import area

BASE, LAYER = f"{BUILTIN}demo", 2
SHARES = [step / 10 for step in range(11)]
QUESTIONS = ("What kind of person are you?", "Tell me something about yourself.")


def chats(trait: str, level: str, part: str, count: int) -> list[Chat]:
    """Return statements of a pole as answers."""
    pole = Pole.parse(f"{trait}:{level}")
    spec = DataSpec(source=builtin(BIG_FIVE_STATEMENTS), part=part, questions=QUESTIONS)
    return read_chats(spec.narrowed(pole))[:count]


def vector_of(subject: Subject, trait: str) -> pv.SteeringVector:
    """Return a vector from text that is neither screened nor trained on."""
    sides = [chats(trait, level, "held_out", 100) for level in ("high", "low")]
    pole = Pole(trait, "high")
    return pv.SteeringVector.extract(subject.model, subject.tokenizer, *sides, pole=pole)


def told_apart(subject: Subject, trait: str, vector: pv.SteeringVector, count: int) -> list[str]:
    """Return the area under the curve for each way to screen."""
    both = [chats(trait, level, "train", count) for level in ("high", "low")]
    labels = [True] * len(both[0]) + [False] * len(both[1])
    found = [trait, str(len(labels))]
    for against in ("reply", "prompt", "none"):
        seen = projection_differences(subject, both[0] + both[1], vector, LAYER, against=against)
        known = [not math.isnan(value) for value in seen.differences]
        values = seen.differences[torch.tensor(known)].tolist()
        found.append(area([label for label, has in zip(labels, known, strict=True) if has], values))
    return found


def mixtures(
    subject: Subject, trait: str, vector: pv.SteeringVector, count: int
) -> list[list[float]]:
    """Return, for each mixture, its mean projection difference, and the shifts that it causes."""
    high, low = (chats(trait, level, "train", count) for level in ("high", "low"))
    persona = open_persona(builtin(f"{BUILTIN}training/steering/personas/{trait}.yaml"))
    prompts = [question(item.text) for item in evaluation_instrument(persona).items]
    baseline = Baseline(subject, prompts, vector, LAYER)
    likelihood = pv.LikelihoodSpec(traits=(trait,)).open()

    def score(model: Subject) -> float:
        return float(likelihood.collect(model, 0).readings[0].value)

    before, rows = score(subject), []
    for share in SHARES:
        mixture = high[: round(share * count)] + low[: count - round(share * count)]
        seen = projection_differences(subject, mixture, vector, LAYER)
        tuned = trained(mixture, f"{trait}:high")
        rows.append(
            [float(np.nanmean(seen.differences)), baseline.shift_of(tuned), score(tuned) - before]
        )
    return rows


def trained(mixture: list[Chat], pole: str) -> Subject:
    """Return the model that a mixture makes."""
    with tempfile.TemporaryDirectory() as folder:
        lines = [json.dumps({"messages": chat}) for chat in mixture]
        source = Path(folder) / "mixture.jsonl"
        source.write_text("\n".join(lines) + "\n", encoding="utf-8")
        recipe = TrainRecipe(
            base=BASE,
            pole=pole,
            data=DataSpec(source=source, format="chats", part="all"),
            sft=SftSpec(learning_rate=1e-4, epochs=3, checkpoints=0),
        )
        return Subject.load(train(recipe, Path(folder) / "tuned").path)


def correlation(rows: list[list[float]], column: int) -> str:
    """Return r between the projection difference and a shift, with its interval."""
    found = associations([row[0] for row in rows], [row[column] for row in rows])["pearson"]
    return f"{found.value:.2f} ({found.low:.2f} to {found.high:.2f})"


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=100, help="statements of a pole")
    parser.add_argument("--mixed", nargs="+", default=["extraversion", "neuroticism"])
    given = parser.parse_args()
    silence()
    subject: Any = replace(
        Subject.load(BASE), sampling=Sampling(max_new_tokens=48, temperature=0.0)
    )
    vectors = {trait: vector_of(subject, trait) for trait in BIG_FIVE}
    rows = [told_apart(subject, trait, vectors[trait], given.count) for trait in BIG_FIVE]
    print(markdown(["trait", "chats", "reply", "prompt", "none"], rows), flush=True)
    summary = []
    for trait in given.mixed:
        found = mixtures(subject, trait, vectors[trait], given.count)
        cells = [
            [f"{s:.0%}", *(f"{v:.3f}" for v in row)] for s, row in zip(SHARES, found, strict=True)
        ]
        heads = ["high", "projection difference", "finetuning shift", "likelihood shift"]
        print(f"\n{trait}\n\n{markdown(heads, cells)}", flush=True)
        summary.append([trait, str(len(found)), correlation(found, 1), correlation(found, 2)])
    heads = ["trait", "mixtures", "r with the finetuning shift", "r with the likelihood shift"]
    print(f"\n{markdown(heads, summary)}")


if __name__ == "__main__":
    main()
