"""What the models said: the first answers to each question, with what judges made of them."""

from itertools import islice
from typing import Any

import pandas as pd

from personality_vector.study.design import BASE
from personality_vector.study.run import Run
from personality_vector.study.tables import labels_of

_SHOWN, _QUESTIONS = 3, 12
"""Answers shown to a question at each strength, and questions shown."""


def answers_of(run: Run) -> pd.DataFrame:
    """Return one row per answer, with what all judges made of it as one text: ``rating``."""
    frame = run.answers()
    rated = zip(frame["judge"], frame["trait"], frame["score"], frame["reason"], strict=True)
    is_one = len(run["judges"]) == 1
    ratings = [
        f"{trait} {f'unscored ({reason})' if pd.isna(score) else f'{score:.3g}'}"
        f"{'' if is_one else f' by {judge}'}"
        if judge
        else ""
        for judge, trait, score, reason in rated
    ]
    once = ["intervention", "strength", "seed", "measure", "item", "sample", "question", "reply"]
    by_answer = frame.assign(rating=ratings).groupby(once, sort=False, as_index=False)
    return by_answer.agg({"rating": ", ".join})


def sample_answers(answers: pd.DataFrame, label: str) -> dict[float, list[tuple[str, str]]]:
    """Return the first three answers of an intervention at each strength, with their ratings."""
    own = answers[answers["intervention"] == label]
    ordered = own.sort_values(["strength", "seed", "sample"], kind="stable")
    return {
        float(strength): list(zip(cell["reply"], cell["rating"], strict=True))[:_SHOWN]
        for strength, cell in ordered.groupby("strength")
    }


def side_by_side(run: Run) -> dict[str, Any]:
    """Return what a page needs to show the answers to each question beside those of the base.

    ``arms`` are the strengths of every intervention, ``spoken`` those that a slider tells, which
    has as many ``steps`` as the longest of them; ``questions`` hold the answers.
    """
    answers = answers_of(run)
    found = answers.groupby("intervention")["strength"].unique()
    arms = {label: sorted(found[label]) for label in (BASE, *labels_of(run)) if label in found}
    spoken = {label: strengths for label, strengths in arms.items() if label != BASE}
    if len(spoken) > 1 and len({tuple(strengths) for strengths in spoken.values()}) == 1:
        spoken = {"every intervention": next(iter(spoken.values()))}
    by_question = answers.groupby(["measure", "item", "question"], sort=False)
    questions = [
        {
            "question": question or item,
            "arms": {label: sample_answers(own, label) for label in arms},
        }
        for (_, item, question), own in islice(by_question, _QUESTIONS)
    ]
    steps = max(map(len, spoken.values()), default=0)
    return {"arms": arms, "spoken": spoken, "steps": steps, "questions": questions}
