"""``pvec judge``: rate the answers of a run, or any texts."""

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import personality_vector as pv
from personality_vector.cli import options
from personality_vector.errors import RecipeError
from personality_vector.traits import BIG_FIVE

if TYPE_CHECKING:
    from personality_vector.judges.spec import JudgeSpec
    from personality_vector.subject import Judge, Score

_WIDTH, _BEGINNING = 12, 60


def judge(
    rated: Annotated[
        Path,
        typer.Argument(
            metavar="RUN|TEXTS",
            help="Directory of a sweep, compare or eval; or a data file whose rows have a text.",
        ),
    ],
    judge: Annotated[
        str,
        typer.Option(
            "--judge",
            metavar="NAME|FILE",
            help="A kind of judge by name, such as classifier; or a YAML file such as "
            "{local: {checkpoint: DIR}}.",
        ),
    ],
    model: Annotated[
        str | None,
        typer.Option(
            "--model", metavar="MODEL", help="The model of the judge: a directory or Hub id."
        ),
    ] = None,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Rate the stored answers of a run, or texts.

    In a run nothing is generated again, and no answer is rated twice by the same judge. Texts are
    rated for every trait that the judge knows; without enough personality they are unscored.
    """
    spec, reader = spec_of(judge, model)
    if rated.is_file():
        _rate_texts(rated, spec, reader, as_json)
    elif reader:
        raise RecipeError(f"--model {model}: the {judge} of a run is its base; leave --model out")
    else:
        _rate_run(rated, spec, as_json)


def spec_of(judge: str, model: str | None) -> "tuple[JudgeSpec, str | None]":
    """Return a judge's recipe, and the model that reads if it has no key for one."""
    from personality_vector.judges.spec import KINDS, JudgeRecipe
    from personality_vector.recipes.reading import read_yaml
    from personality_vector.recipes.schema import schema_of

    file = Path(judge)
    if file.suffix in (".yaml", ".yml") and not file.is_file():
        raise RecipeError(f"{file}: no such file")
    data: Any = read_yaml(file) if file.is_file() else {judge: {}}
    folder = file.resolve().parent if file.is_file() else Path.cwd()
    kind, *others = data if isinstance(data, dict) else [data]
    reader = model
    if model and kind in KINDS and not others:
        known = schema_of(KINDS, kind).model_fields
        key = next((name for name in ("model", "checkpoint") if name in known), None)
        if key:
            body = data[kind] if isinstance(data, dict) else None
            data, reader = {kind: {**(body or {}), key: model}}, None
    return JudgeRecipe.parse({"judge": data}, origin=judge, folder=folder).judge, reader


def _rate_run(run: Path, spec: "JudgeSpec", as_json: bool) -> None:
    from personality_vector.report.page import write_report
    from personality_vector.study.judging import judge_run

    opened = spec.open()
    with billed([opened], run) as bills:
        cells = judge_run(run, opened)
    page, readings = write_report(run), pv.Run(run).readings()
    rows = readings[readings["judge"] == opened.name].to_dict("records")
    options.show(
        options.without_nan({"judge": opened.name, "cells": cells, "readings": rows, **bills}),
        as_json=as_json,
        text=lambda: f"{run}: {opened.name} rated {cells} cells; report: {page}",
    )


def _rate_texts(file: Path, spec: "JudgeSpec", reader: str | None, as_json: bool) -> None:
    """Print the scores of every text for every trait that the judge knows."""
    from personality_vector.data.personas import rubric_of
    from personality_vector.data.texts import read_texts
    from personality_vector.study.judging import is_remote
    from personality_vector.subject import Answer, rated

    texts = read_texts(file)
    opened: Any = spec.open()
    rubrics = [rubric_of(trait) for trait in getattr(opened, "traits", BIG_FIVE)]
    for rubric in rubrics:
        rated(opened, rubric, [])  # refused before a model is loaded, if it cannot
    if is_remote(opened):
        opened = opened.billed_to(file)
    if reader:
        from personality_vector.subject.subject import Subject

        opened = opened.prepare(Subject.load(reader))
    answers = [Answer(str(number), 0, "", text) for number, text in enumerate(texts, start=1)]
    with billed([opened], file):
        scores = {rubric.trait: rated(opened, rubric, answers) for rubric in rubrics}
    rows: list[dict[str, Any]] = [
        {"text": text, "trait": trait, "score": found[number].value, "reason": found[number].reason}
        for number, text in enumerate(texts)
        for trait, found in scores.items()
    ]
    options.show(rows, as_json=as_json, text=lambda: _shown(texts, scores))


def _shown(texts: list[str], scores: "dict[str, list[Score]]") -> str:
    """Return a line for each text: its scores, or a dash, and how it begins."""
    heads = [trait[:_WIDTH] for trait in scores]
    lines = ["  ".join([*(f"{head:>{_WIDTH}}" for head in heads), "text"])]
    for number, text in enumerate(texts):
        values = [found[number].value for found in scores.values()]
        cells = [f"{'-' if value is None else f'{value:.2f}':>{_WIDTH}}" for value in values]
        lines.append("  ".join([*cells, " ".join(text.split())[:_BEGINNING]]))
    count = sum(score.value is None for found in scores.values() for score in found)
    total = len(texts) * len(scores)
    return "\n".join([*lines, f"{count} of {total} are unscored; --json gives the reasons"])


@contextmanager
def billed(judges: "Sequence[Judge]", folder: Path) -> Generator[dict[str, Any]]:
    """Print what servers were asked for a run, also if it fails; yield the same for ``--json``."""
    from personality_vector.study.judging import bills_of

    bills: dict[str, Any] = {}
    try:
        yield bills
    finally:
        for bill in bills_of(judges, folder):
            bills.setdefault("bills", []).append(bill)
            price = f", price {bill['price']:.6g}" if "price" in bill else ""
            typer.echo(
                f"{bill['judge']}, for this run so far: requests {bill['requests']:,}, tokens in "
                f"{bill['tokens_in']:,}, tokens out {bill['tokens_out']:,}{price}",
                err=True,
            )
