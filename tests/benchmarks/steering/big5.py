"""Five steering vectors of a small real model: layer and strength chosen, measured on other text.

    python tests/benchmarks/steering/big5.py --model ../shared/models/persona-tiny \
        --statements ../shared/data/big5_statements --out runs/steering-big5

Each trait's vector is the mean difference between the model's own answers under system prompts
that name the two poles. ``pvec steer choose`` takes the layer and the range of coefficients, twice,
on statements of the ``train`` part. Everything that is printed is measured on ``held_out``
statements. Without a model, the embedded one is used, for extraversion alone.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import spearmanr

from personality_vector.checkpoint import Checkpoint
from personality_vector.data.adjectives import ADJECTIVES
from personality_vector.data.statements import read_statements
from personality_vector.finetuning.recipe import TrainRecipe
from personality_vector.finetuning.sft import train
from personality_vector.interventions.activations import ActivationSteering
from personality_vector.lab import builtin
from personality_vector.measures.likelihood import Likelihood
from personality_vector.report.choice import save_choice
from personality_vector.steering import ALL, SteeringVector
from personality_vector.study.choose.layers import examine
from personality_vector.study.choose.run import choose
from personality_vector.study.choose.scan import Choice
from personality_vector.study.comparison import Comparison, at_matched
from personality_vector.study.recipe import ChooseRecipe, CompareRecipe, open_study
from personality_vector.subject.chat import Chat, answered, question
from personality_vector.subject.models import load_model, load_tokenizer
from personality_vector.subject.spec import Sampling
from personality_vector.subject.subject import Subject, generate_replies
from personality_vector.traits import BIG_FIVE, Pole

BESIDE = Path(__file__).parents[4] / "shared"
QUESTION = "What kind of person are you?"
REPLIES = 10  # to each system prompt
STRENGTHS = 9
DRAWN = Sampling(max_new_tokens=40, temperature=0.8, batch_size=64)


@dataclass(frozen=True)
class Lab:
    """A loaded model and what it is measured with."""

    path: Path
    statements: Path
    instrument: Path
    out: Path
    model: Any
    tokenizer: Any

    def probe(self, trait: str, limit: int | None = None) -> Likelihood:
        """Return the likelihood measure of the held-out statements of a trait."""
        found = [
            statement
            for level in ("high", "low")
            for statement in read_statements(
                self.statements, trait=trait, level=level, part="held_out"
            )[:limit]
        ]
        return Likelihood(found, QUESTION)


def system_prompts(pole: Pole) -> list[str]:
    """Return a system prompt for each adjective of a pole."""
    return [f"You are very {pair[pole.level == 'high']}." for pair in ADJECTIVES[pole.trait]]


def rollouts(lab: Lab, pole: Pole) -> list[Chat]:
    """Return the model's own answers while a system prompt names ``pole``."""
    chats = [question(QUESTION, system=system) for system in system_prompts(pole)]
    found: list[Chat] = []
    for sample in range(REPLIES):
        replies = generate_replies(lab.model, lab.tokenizer, chats, DRAWN, seed=sample)
        pairs = zip(chats, replies, strict=True)
        found += [answered(chat, reply.text) for chat, reply in pairs if reply.text]
    return found


def extracted(lab: Lab, trait: str) -> Path:
    """Return the folder of the saved vector of a trait; extracts it if it is not there."""
    folder = lab.out / "vectors" / trait
    if not folder.exists():
        high = Pole(trait, "high")
        sides = [rollouts(lab, pole) for pole in (high, high.opposite)]
        vector = SteeringVector.extract(lab.model, lab.tokenizer, *sides, pole=high)
        digest = Checkpoint.open(lab.path).fingerprint.digest
        replace(vector, model=digest).save(folder)
    return folder


def chosen(lab: Lab, trait: str, vector: Path) -> tuple[Choice, bool]:
    """Return the choice for a trait, and whether a second run writes the same bytes."""
    data = {
        "model": str(lab.path),
        "vector": str(vector),
        "statements": str(lab.statements),
        "question": QUESTION,
        "instrument": str(lab.instrument),
        "limit": 80,
        "generation": {"max_new_tokens": 32, "samples": 3},
        "shares": [0.1, 0.2, 0.4, 0.6, 0.8, 1.2],
    }
    recipe = ChooseRecipe.parse(data, origin="big5", folder=Path.cwd())
    folders = [lab.out / "choices" / f"{trait}{again}" for again in ("", "-again")]
    choices = [choose(recipe, one.with_name(f"{one.name}.run")) for one in folders]
    for choice, folder in zip(choices, folders, strict=True):
        save_choice(choice, folder, force=True)
    first, second = ([f.read_bytes() for f in sorted(folder.iterdir())] for folder in folders)
    print(f"{trait}: layer {choices[0].layer} of {list(choices[0].verified)}", flush=True)
    return choices[0], first == second


def separation_row(lab: Lab, trait: str, vector: SteeringVector, choice: Choice, *, same: bool):
    """Return the row of the first table: AUC on held-out statements at the chosen layer."""
    statements, asked = lab.probe(trait).statements, question(QUESTION)
    sides = [
        [answered(asked, s.text) for s in statements if s.level == level]
        for level in ("high", "low")
    ]
    subject = Subject(lab.model, lab.tokenizer)
    (found,) = examine(subject, vector, [choice.layer], *sides, ALL, 32)
    shown = found.separation
    return {
        "trait": trait,
        "rollouts": vector.counts[0] + vector.counts[1],
        "statements": len(statements),
        "layer": choice.layer,
        "ranked": list(choice.verified),
        "same twice": same,
        "AUC": f"{shown.auc:.3f} [{shown.auc_low:.3f}, {shown.auc_high:.3f}]",
        "d'": round(shown.d_prime, 2),
    }


def probed(lab: Lab, vector: SteeringVector, layer: int, trait: str, coefficients: Sequence[float]):
    """Return the held-out probe of a trait at each coefficient."""
    probe, steering = lab.probe(trait), ActivationSteering(vector, (layer,))
    subject, values = Subject(lab.model, lab.tokenizer), []
    for coefficient in coefficients:
        with steering.applied(subject, float(coefficient)) as steered:
            values.append(probe.collect(steered, seed=0).readings[0].value)
    return values


def is_rising(values: Sequence[float]) -> bool:
    """Return whether each value is above the one before."""
    return all(later > earlier for earlier, later in pairwise(values))


def dose_row(lab: Lab, trait: str, vector: SteeringVector, choice: Choice):
    """Return the row of the second table: the probe over the range that was chosen."""
    half = STRENGTHS // 2
    below = np.linspace(choice.coefficients[0], 0.0, half + 1)
    coefficients = [*below, *np.linspace(0.0, choice.coefficients[1], half + 1)[1:]]
    values = probed(lab, vector, choice.layer, trait, coefficients)
    return {
        "trait": trait,
        "layer": choice.layer,
        "coefficients": f"{choice.coefficients[0]:.1f} .. {choice.coefficients[1]:.1f}",
        **{f"{place / half - 1:+.2f}": round(v, 2) for place, v in enumerate(values)},
        "Spearman": round(float(spearmanr(coefficients, values).statistic), 3),
        "monotone": is_rising(values),
    }


def reached(choice: Choice) -> float:
    """Return the lesser of the two ends of the chosen range, as a share of the residual norm."""
    return min(-choice.coefficients[0], choice.coefficients[1]) / choice.evidence.unit


def shared_layer(one: Choice, other: Choice) -> int:
    """Return the layer whose lesser first-order effect is the greatest, to steer both traits at."""
    slopes = [{found.layer: found.slope for found in choice.layers} for choice in (one, other)]
    return max(slopes[0], key=lambda layer: min(slope[layer] for slope in slopes))


def mean_rows(lab: Lab, vectors: dict[str, SteeringVector], choices: dict[str, Choice]):
    """Return a row for each two traits: what the mean of their vectors moves."""
    for one, other in combinations(vectors, 2):
        layer = shared_layer(choices[one], choices[other])
        mean = 0.5 * (vectors[one] + vectors[other])
        # As far as each vector alone can be turned up, as a share of the residual norm.
        share = min(reached(choices[trait]) for trait in (one, other))
        residual = next(e.residual_norm for e in choices[one].layers if e.layer == layer)
        size = share * residual / mean.norm(layer)
        coefficients = np.linspace(-size, size, 7)
        row: dict[str, Any] = {"mean of": f"{one} and {other}", "layer": layer}
        row["coefficients"] = f"-{size:.1f} .. {size:.1f}"
        for name, trait in (("first", one), ("second", other)):
            values = probed(lab, mean, layer, trait, coefficients)
            low, high = values[0] - values[3], values[-1] - values[3]
            row[f"{name}: shift at -, +"] = f"{low:+.2f}, {high:+.2f}"
            row[f"{name}: monotone"] = is_rising(values)
        yield row


def tuned(lab: Lab, trait: str) -> Path:
    """Return the model fine-tuned on the high pole of a trait; trains it if it is not there."""
    folder = lab.out / "tuned" / trait
    if not folder.exists():
        recipe = {
            "base": str(lab.path),
            "pole": f"{trait}:high",
            "data": {"source": str(lab.statements), "questions": [QUESTION]},
            "sft": {"learning_rate": 3e-4, "epochs": 3, "batch_size": 16, "scheduler": "constant"},
        }
        train(TrainRecipe.parse(recipe, origin="big5", folder=Path.cwd()), folder)
    return folder


def matched(lab: Lab, trait: str, vector: Path, choice: Choice, traits: Sequence[str]):
    """Return the table of vector, prompt and weights where they move the probe equally."""
    steps = [round(choice.coefficients[1] * share, 4) for share in (0.125, 0.25, 0.5, 0.75, 1.0)]
    recipe = {
        "base": str(lab.path),
        "pole": f"{trait}:high",
        "points": 2,
        "interventions": [
            {
                "label": "activations",
                "vector": str(vector),
                "layers": [choice.layer],
                "strengths": steps,
            },
            {"label": "prompt", "prompt": f"{trait}:high", "strengths": [1.0, 2.0, 3.0]},
            {"label": "weights", "tuned": str(tuned(lab, trait)), "strengths": [0.25, 0.5, 1.0]},
        ],
        "strengths": [1.0],
        "measures": [
            {
                "likelihood": {
                    "traits": list(traits),
                    "statements": str(lab.statements),
                    "question": QUESTION,
                }
            },
            {
                "interview": {
                    "traits": list(traits),
                    "instrument": str(lab.instrument),
                    "judges": ["classifier"],
                    "generation": {"max_new_tokens": 32, "samples": 4},
                }
            },
            "divergence",
        ],
    }
    parsed = CompareRecipe.parse(recipe, origin="big5", folder=Path.cwd())
    run = open_study(parsed).run(lab.out / "compare" / trait)
    table = at_matched(Comparison(run), "likelihood")
    table.insert(0, "trait", trait)
    return table.round(3)


def markdown(rows: Any) -> str:
    """Return rows as a Markdown table."""
    frame = pd.DataFrame(rows)
    lines = [list(map(str, frame.columns)), ["---"] * frame.shape[1]]
    lines += [[str(value) for value in row] for row in frame.itertuples(index=False)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def opened(given: argparse.Namespace) -> Lab:
    """Load the model."""
    has_own = given.model is not None
    path = given.model if has_own else builtin("builtin:demo")
    statements = given.statements or builtin("builtin:training/data/big5_statements.jsonl")
    name = "self_description" if has_own else "acquaintance"
    return Lab(
        path.resolve(),
        statements.resolve(),
        builtin(f"builtin:eval/instruments/{name}.yaml"),
        given.out.resolve(),
        load_model(path),
        load_tokenizer(path),
    )


def main() -> None:
    """Run the experiment and print its tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    beside = BESIDE / "models" / "persona-tiny"
    parser.add_argument("--model", type=Path, default=beside if beside.is_dir() else None)
    parser.add_argument("--statements", type=Path)
    parser.add_argument("--out", type=Path, default=Path("runs/steering-big5"))
    parser.add_argument("--traits", nargs="*")
    parser.add_argument("--skip-compare", action="store_true")
    given = parser.parse_args()
    if given.model == beside and given.statements is None:
        given.statements = BESIDE / "data" / "big5_statements"
    traits = given.traits or (list(BIG_FIVE) if given.model else ["extraversion"])
    lab = opened(given)
    folders = {trait: extracted(lab, trait) for trait in traits}
    vectors = {trait: SteeringVector.load(folder) for trait, folder in folders.items()}
    found = {trait: chosen(lab, trait, folder) for trait, folder in folders.items()}
    choices = {trait: choice for trait, (choice, _) in found.items()}
    print("## Held-out statements by projection, at the chosen layer\n")
    print(
        markdown(
            [
                separation_row(lab, trait, vectors[trait], choice, same=same)
                for trait, (choice, same) in found.items()
            ]
        )
    )
    print("## Held-out probe over the chosen range\n")
    print(markdown([dose_row(lab, trait, vectors[trait], choices[trait]) for trait in traits]))
    if len(traits) > 1:
        print("## The mean of two vectors\n")
        print(markdown(mean_rows(lab, vectors, choices)))
    if not given.skip_compare:
        print("## At matched effect\n")
        tables = [matched(lab, trait, folders[trait], choices[trait], traits) for trait in traits]
        print(markdown(pd.concat(tables)))


if __name__ == "__main__":
    main()
