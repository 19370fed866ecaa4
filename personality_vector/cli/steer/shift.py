"""``pvec steer shift``: how far fine-tunes moved along a vector, and whether the trait followed."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import personality_vector as pv
from personality_vector.cli import options
from personality_vector.cli.steer import along
from personality_vector.errors import RecipeError
from personality_vector.lab import PERSONAS, find_recipe, recipes
from personality_vector.progress import progress
from personality_vector.traits import BIG_FIVE

if TYPE_CHECKING:
    from personality_vector.numeric.statistics import Interval
    from personality_vector.subject.chat import Chat

_FEWEST = 3
"""Models for a correlation; of two it is 1 or -1 whatever they are."""

Base = Annotated[str, typer.Argument(metavar="BASE", help="Directory, Hub id or builtin:NAME.")]
Tuned = Annotated[
    list[str],
    typer.Argument(
        metavar="TUNED...", help="Fine-tunes of BASE: checkpoints, LoRA adapters or saved deltas."
    ),
]
Prompts = Annotated[
    Path | None,
    typer.Option("--prompts", metavar="FILE", help="A text file with one prompt on each line."),
]
PersonaOption = Annotated[
    str | None,
    typer.Option(
        "--persona",
        metavar="PERSONA",
        help="Ask the evaluation questions of this persona: a file, a folder of elicited chats or "
        "a shipped one by name. Default: the shipped one of the trait.",
    ),
]
Scores = Annotated[
    Path | None,
    typer.Option(
        "--scores",
        metavar="FILE",
        help="A table with the columns model and score; higher is more of the pole of VECTOR. "
        "Default: the shift of the likelihood on held-out statements.",
    ),
]


def shift(
    vector: along.Vector,
    base: Base,
    tuned: Tuned,
    *,
    prompts: Prompts = None,
    persona: PersonaOption = None,
    layer: along.OneLayer = None,
    pole: along.PoleOption = None,
    scores: Scores = None,
    settings: options.ChatSettings = [],
    batch_size: options.BatchSize = 16,
    dtype: options.Dtype = "float32",
    device: options.Device = "auto",
    figure: options.Figure = None,
    dry_run: options.DryRun = False,
    force: options.Force = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Print how far fine-tunes of BASE moved along VECTOR before they reply, and their trait.

    The shift is the projection on VECTOR of the mean activation at the last token of the prompts,
    minus that of BASE. The score is how much more of the pole of VECTOR a fine-tune shows than
    BASE: with a vector of a low pole, both count towards low.
    """
    from personality_vector.data.model_scores import read_model_scores

    options.require_drawable(figure, force=force)
    template, found = options.template(settings), pv.SteeringVector.load(vector)
    towards = along.pole_of(found, pole)
    chats = _chats(prompts, persona, towards)
    names = _names(tuned)
    measure = _likelihood(towards) if scores is None else None
    start, place = options.opened(base, device)
    named = along.fitting(found, [along.chosen(found, layer)], start, found.model)
    given = None if scores is None else read_model_scores(scores, tuned)
    edits = [_opened(one, name, start) for one, name in zip(tuned, names, strict=True)]
    about = {"vector": found.label, "pole": str(towards or "") or None, "layer": named[0]}
    about |= {"base": str(start.path), "prompts": len(chats)}
    about |= {"score": "likelihood" if scores is None else str(scores)}
    if options.plan_only(lambda: {**about, "tuned": names}, None, dry_run, force, as_json):
        return
    subject = pv.Subject.load(start, dtype=dtype, device=place, template=template)
    rows = _measured(subject, edits, (chats, found, named[0], batch_size), measure)
    if given is not None:
        rows = [{**row, "score": score} for row, score in zip(rows, given, strict=True)]
    _show(rows, about, figure, as_json=as_json)


def _chats(prompts: Path | None, persona: str | None, pole: "pv.Pole | None") -> "list[Chat]":
    from personality_vector.data.chats import read_prompts
    from personality_vector.data.personas import evaluation_instrument, open_persona
    from personality_vector.subject.chat import question

    if prompts is not None:
        if persona is not None:
            raise RecipeError("give either --prompts or --persona")
        return [question(text) for text in read_prompts(prompts)]
    if persona is None:
        if pole is None:
            raise RecipeError("the vector names no pole; give --prompts or --persona, or --pole")
        persona = f"{PERSONAS}/{pole.trait}"
        if persona not in recipes():
            raise RecipeError(
                f"there is no shipped persona of {pole.trait}; give --prompts or --persona"
            )
    place = Path(persona) if Path(persona).is_dir() else find_recipe(persona)
    return [question(item.text) for item in evaluation_instrument(open_persona(place)).items]


def _names(tuned: Sequence[str]) -> list[str]:
    """Return the name of each model in tables: that of its folder, or all of its path."""
    for one in tuned:
        if tuned.count(one) > 1:
            raise RecipeError(f"{one}: is given twice; give each fine-tune once")
    folders = [Path(one).name for one in tuned]
    return [
        one if folders.count(folder) > 1 else folder
        for one, folder in zip(tuned, folders, strict=True)
    ]


def _likelihood(pole: "pv.Pole | None") -> "Callable[[pv.Subject], float]":
    """Return the measure of a pole: how much likelier its statements are than the opposite ones.

    It is NaN where it is unscored.
    """
    if pole is None or pole.trait not in BIG_FIVE:
        lacking = f"no shipped statements are of {pole.trait}" if pole else "it names no pole"
        raise RecipeError(f"the trait of the vector cannot be measured: {lacking}; give --scores")
    likelihood = pv.LikelihoodSpec(traits=(pole.trait,)).open()

    def measure(subject: "pv.Subject") -> float:
        (reading,) = likelihood.collect(subject, 0).readings
        return math.nan if reading.value is None else pole.sign * float(reading.value)

    return measure


def _opened(tuned: str, name: str, base: "pv.Checkpoint") -> "pv.WeightEdit":
    from personality_vector.delta import open_delta

    return pv.WeightEdit(open_delta(tuned, base), name)


def _measured(
    subject: "pv.Subject",
    edits: "Sequence[pv.WeightEdit]",
    along_vector: "tuple[Sequence[Chat], pv.SteeringVector, int, int]",
    measure: "Callable[[pv.Subject], float] | None",
) -> list[dict[str, Any]]:
    """Return a row of each fine-tune; one after the other is put into the weights of the base.

    Without a measure, no score is known.
    """
    from personality_vector.steering.shift import Baseline

    baseline = Baseline(subject, *along_vector)
    before = measure(subject) if measure else math.nan
    rows = []
    for edit in progress(edits, "fine-tunes"):
        with edit.applied(subject, 1.0) as moved:
            score = measure(moved) - before if measure else math.nan
            row = {"model": edit.label, "pole": str(edit.delta.pole or "")}
            rows.append({**row, "shift": baseline.shift_of(moved), "score": score})
    return rows


def _show(
    rows: list[dict[str, Any]], about: dict[str, Any], figure: Path | None, *, as_json: bool
) -> None:
    import pandas as pd

    from personality_vector.numeric.statistics import associations
    from personality_vector.report.tables import print_frame

    table = pd.DataFrame(rows)
    scored = table.dropna(subset=["score"])
    unscored = len(table) - len(scored)
    pairs = list(scored["shift"]), list(scored["score"])
    found = associations(*pairs) if len(scored) >= _FEWEST else {}
    if figure is not None:
        _draw(scored, about, figure)
    if as_json:
        ends = {n: found[n]._asdict() if found else None for n in ("pearson", "spearman")}
        shown = {**about, "models": rows, "unscored": unscored, **ends}
        options.show(options.without_nan(shown), as_json=True, text=str)
        return
    print_frame(
        f"shift along {about['vector']} at layer {about['layer']}, {about['prompts']} prompts",
        table.assign(pole=table["pole"].replace("", "-")),
    )
    typer.echo(f"score: {_unit(about)}")
    if unscored:
        typer.echo(f"models without a score, left out of what follows and of a figure: {unscored}")
    if found:
        told = f"Pearson r {_said(found['pearson'])}, Spearman {_said(found['spearman'])}"
        typer.echo(f"shift and score over {len(scored)} models: {told}")
    else:
        typer.echo(f"a correlation needs {_FEWEST} models or more, and there are {len(scored)}")


def _said(one: "Interval") -> str:
    from personality_vector.report.tables import text_of

    value, low, high = map(text_of, one)
    return f"{value} (95 % interval {low} to {high})"


def _unit(about: dict[str, Any]) -> str:
    if about["score"] == "likelihood":
        return f"likelihood shift to {about['pole']} (nats per token)"
    return f"as in {Path(about['score']).name}"


def _draw(table: Any, about: dict[str, Any], figure: Path) -> None:
    from personality_vector.report.directions import shift_figure
    from personality_vector.report.figures import save_figure

    x_label = f"shift along {about['vector']} at layer {about['layer']} (unit of the activation)"
    drawn = shift_figure(
        table.assign(kind=_kinds(list(table["pole"]), about)), x_label, _unit(about)
    )
    save_figure(drawn, figure.parent, figure.stem, figure.suffix)


def _kinds(poles: Sequence[str], about: dict[str, Any]) -> list[str]:
    """Return what each model was trained on, as seen from the trait of the vector."""
    trait = str(about["pole"]).partition(":")[0]
    kinds = {pole: f"to {pole}" if pole.startswith(f"{trait}:") else "others" for pole in poles}
    return [kinds[pole] if pole else "of unknown pole" for pole in poles]
