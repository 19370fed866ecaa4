"""A finished run that no model made: its store is filled with cells of known numbers."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from personality_vector.study.database import Judged, Planned
from personality_vector.study.design import BASE
from personality_vector.study.run import Run
from personality_vector.study.store import FILE, Store
from personality_vector.subject.protocols import Answer, Cell, Findings, Reading, Rubric, Score

STRENGTHS = (0.5, 1.0, 2.0, 3.0)
NATS = {"unit": "nats per token", "scale": None}


@dataclass(frozen=True)
class Made:
    """What there is in the store; every name of it can be anything.

    Numbers follow from the strength ``s``: the likelihood of the first trait is ``s``, of the
    others ``s / 10``, the divergence ``s / 100``, a score ``3 + 0.3 s``. The last intervention is
    ``dearer``: so many times the divergence, and the likelihood of the other traits. At the last
    strength of an intervention, ``unscored`` of the 4 answers to each item have no score. Nothing
    is measured of the interventions ``beyond`` at the matched strength.
    """

    folder: Path
    labels: Sequence[str] = ("weights", "activations")
    traits: Sequence[str] = ("extraversion", "openness")
    seeds: Sequence[int] = (0,)
    pole: str | None = None
    matched: float | None = None
    beyond: Sequence[str] = ()
    dearer: float = 1.0
    unscored: int = 3
    reply: str = ""
    judge: str = "classifier"
    interview: str = "interview"
    base: str = "some/base"

    @property
    def measures(self) -> dict[str, Any]:
        """How each measure is drawn."""
        return {
            "likelihood": {**NATS, "better": "towards_pole"},
            self.interview: {"unit": "score", "scale": None, "better": "towards_pole"},
            "divergence": {**NATS, "better": "low"},
            "guards": {"unit": "share", "scale": None, "better": "none"},
        }

    def write(self) -> Run:
        """Write the store and return its run."""
        points = [(BASE, 0.0), *product(self.labels, STRENGTHS)]
        if self.matched is not None:
            points += [(label, self.matched) for label in self.labels if label not in self.beyond]
        with Store.open(self.folder / FILE, create=True) as store:
            self._begin(store)
            for (label, strength), seed in product(points, self.seeds):
                self._cells(store, label, strength, seed)
        return Run(self.folder)

    def _begin(self, store: Store) -> None:
        rubrics = [vars_of(Rubric(trait)) for trait in self.traits]
        quality = [
            {"trait": trait, "name": "judge_accuracy", "value": 0.875, "n": 8}
            for trait in self.traits
        ]
        store.begin(
            "plan",
            [Judged(self.interview, self.judge, t, f"rates {t}") for t in self.traits],
            recipe={"interventions": list(self.labels), "points": 1},
            base={"path": self.base, "reference": self.base, "dtype": "float32", "device": "cpu"},
            arms={label: list(STRENGTHS) for label in self.labels},
            seeds=list(self.seeds),
            measures=self.measures,
            rubrics={self.interview: rubrics},
            judges={self.judge: {"scale": [1.0, 5.0], "quality": quality}},
        )
        if self.pole is not None:
            rows = [
                (label, self.matched, None if label in self.beyond else self.matched)
                for label in self.labels
            ]
            store.note(pole=self.pole, effect="likelihood", matches=rows)

    def _cells(self, store: Store, label: str, strength: float, seed: int) -> None:
        own = "base" if label == BASE else f"digest of {label}"
        cells = {name: Cell("base", own, strength, name, seed) for name in self.measures}
        planned = [Planned(label, strength, name, cell) for name, cell in cells.items()]
        store.plan("plan", planned)
        for name, cell in cells.items():
            store.write(cell, self._findings(name, label, strength), 1.0)
        missing = self.unscored if label != BASE and strength == STRENGTHS[-1] else 0
        for trait in self.traits:
            rubric = Rubric(trait)
            answers = store.unscored(cells[self.interview], rubric, f"rates {trait}")
            scores = {
                number: Score(None, "empty") if answer.sample < missing else Score(3 + strength / 3)
                for number, answer in answers.items()
            }
            store.write_scores(f"rates {trait}", trait, scores)

    def _findings(self, name: str, label: str, strength: float) -> Findings:
        factor = self.dearer if label in self.labels[-1:] else 1.0
        plain = {
            "divergence": [Reading("divergence.mean", factor * strength / 100, n=99)],
            "guards": [Reading("guards.words", 9.0, n=8, unit="words")],
            "likelihood": [
                Reading("likelihood", factor * strength / 10 if index else strength, trait, n=8)
                for index, trait in enumerate(self.traits)
            ],
        }
        if name in plain:
            return Findings(readings=plain[name])
        said = [self.reply or f"{label} {strength:g} {sample}" for sample in range(4)]
        return Findings([Answer("item", n, "Who?", text) for n, text in enumerate(said)])


def vars_of(rubric: Rubric) -> dict[str, Any]:
    """Return a rubric as the store notes it."""
    return {"trait": rubric.trait, "description": "", "opposite": None, "note": "", "pole": None}
