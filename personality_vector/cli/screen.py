"""``pvec screen``: which chats of a data set would move a model along a steering vector."""

import math
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

import typer

import personality_vector as pv
from personality_vector.cli import options
from personality_vector.cli.judge import billed, spec_of
from personality_vector.cli.steer import along
from personality_vector.errors import DataError, RecipeError
from personality_vector.recipes.reading import override
from personality_vector.recipes.schema import Typed

if TYPE_CHECKING:
    from personality_vector.data.chats import DataSpec, Labelled
    from personality_vector.data.flagged import Flagged, FlaggedFile
    from personality_vector.steering.screen import Screened
    from personality_vector.subject import Rubric, Template

Row = dict[str, Any]

Data = Annotated[
    str, typer.Argument(metavar="DATA", help="A data file, or a data set on the Hub, of chats.")
]
Vector = Annotated[
    Path, typer.Option("--vector", metavar="VECTOR", help="A saved steering vector.")
]
AgainstOption = Annotated[
    Literal["reply", "prompt", "none"],
    typer.Option(
        "--against",
        help="What a response is compared with: the model's own reply; without generation, the "
        "last token of the prompt; or only the mean of DATA.",
    ),
]
Sample = Annotated[
    int | None,
    typer.Option("--sample", metavar="N", min=1, help="Screen only N chats, drawn at random."),
]
Share = Annotated[
    float, typer.Option("--share", help="Share of the chats in each of the groups high and low.")
]
Seed = Annotated[int, typer.Option("--seed", help="Seed of all that is random.")]
Groups = Annotated[
    bool,
    typer.Option(
        "--groups", help="Also write FILE.high.jsonl, FILE.random.jsonl and FILE.low.jsonl."
    ),
]
DropAbove = Annotated[
    float | None,
    typer.Option("--drop-above", metavar="X", help="Write only chats of a difference up to X."),
]
Explicit = Annotated[
    str | None,
    typer.Option(
        "--explicit",
        metavar="JUDGE",
        help="First leave out chats that this judge (a name, or a YAML file) sees the pole in.",
    ),
]
Temperature = Annotated[
    float,
    typer.Option("--temperature", min=0.0, help="How random the model's replies are; 0 is greedy."),
]
Settings = Annotated[
    list[str],
    typer.Option(
        "--set",
        metavar="KEY.PATH=VALUE",
        help="How DATA is read (format, pole, part and so on, as in a recipe), or chat_template "
        "and template_options; repeatable.",
    ),
]
Out = Annotated[Path, typer.Option("--out", metavar="FILE.jsonl", help="The file to write.")]


def screen(
    data: Data,
    *,
    vector: Vector,
    model: options.Model,
    layer: along.OneLayer = None,
    pole: along.PoleOption = None,
    against: AgainstOption = "reply",
    sample: Sample = None,
    share: Share = 0.1,
    groups: Groups = False,
    drop_above: DropAbove = None,
    explicit: Explicit = None,
    max_new_tokens: options.LongestReply = 128,
    temperature: Temperature = 0.0,
    seed: Seed = 0,
    settings: Settings = [],
    batch_size: options.BatchSize = 16,
    dtype: options.Dtype = "float32",
    device: options.Device = "auto",
    out: Out,
    figure: options.Figure = None,
    dry_run: options.DryRun = False,
    force: options.Force = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Write how far each chat of DATA would move a model along a vector, if it learned it.

    The projection difference of a chat: its response minus the model's own reply to the same
    prompt, both as mean activations projected on VECTOR. The file is data for pvec train.
    """
    limits, (spec, template) = _limits(share, drop_above), _read(data, settings)
    output = _output(out, spec.source, groups=groups, force=force)
    options.require_drawable(figure, force=force)
    found, (checkpoint, place) = pv.SteeringVector.load(vector), options.opened(model, device)
    (block,) = along.fitting(found, [along.chosen(found, layer)], checkpoint, found.model)
    judge = _Explicit.open(explicit, along.pole_of(found, pole)) if explicit else None
    chats = _selected(spec, sample, seed)
    about: Row = {"vector": found.label, "layer": block, "model": str(checkpoint.fingerprint)}
    about |= {"against": against, "chats": len(chats)}
    if options.plan_only(lambda: {**about, "out": str(out)}, None, dry_run, force, as_json):
        return
    sampling = pv.Sampling(max_new_tokens, temperature, batch_size=batch_size)
    loaded = pv.Subject.load(checkpoint, dtype=dtype, device=place, template=template)
    subject = replace(loaded, sampling=sampling)
    kept = judge.left(subject, chats, out) if judge else chats
    rows, values = _screened(subject, kept, (found, block), (against, seed, share))
    about["explicit"] = len(chats) - len(kept) if judge else None
    chosen = output.choose(rows, drop_above, seed)
    result = about | values.summary() | output.counts(chosen)
    made = {"seed": seed, **limits, "judge": explicit}
    output.write(chosen, result | made | _made_with(spec, checkpoint, vector, subject))
    _draw(figure, values.differences.tolist(), about, drop_above)
    options.show(result, as_json=as_json, text=lambda: f"{out}: {_said(result)}")


def _output(out: Path, data: Path | str, *, groups: bool, force: bool) -> "FlaggedFile":
    from personality_vector.data.flagged import FlaggedFile

    output = FlaggedFile(out, with_groups=groups)
    output.require_writable(data if isinstance(data, Path) else None, force=force)
    return output


class _Explicit(NamedTuple):
    """A judge, and what it looks for in the responses of the data."""

    judge: Any
    rubric: "Rubric"
    pole: "pv.Pole"

    @classmethod
    def open(cls, judge: str, pole: "pv.Pole | None") -> "_Explicit":
        """Return a judge by its name or file.

        Raises:
            RecipeError: There is no such judge, or no pole to look for.
            DataError: It cannot rate the trait.
        """
        from personality_vector.data.personas import rubric_of
        from personality_vector.subject import rated

        if pole is None:
            raise RecipeError(f"--explicit {judge}: the vector names no pole; give --pole")
        spec, _ = spec_of(judge, None)
        opened, rubric = spec.open(), rubric_of(pole.trait)
        rated(opened, rubric, [])  # refused before a model is loaded, if it cannot
        return cls(opened, rubric, pole)

    def left(
        self, subject: "pv.Subject", chats: "Sequence[Labelled]", out: Path
    ) -> "list[Labelled]":
        """Return the chats whose response the judge does not score beyond the middle of its scale.

        What it leaves unscored is kept: it does not see the pole there.

        Raises:
            DataError: No chat is left.
        """
        from personality_vector.study.judging import is_remote
        from personality_vector.subject import Answer, rated

        judge = self.judge.billed_to(out) if is_remote(self.judge) else self.judge
        answers = [
            Answer(str(number), 0, chat[-2]["content"], chat[-1]["content"])
            for number, (chat, _) in enumerate(chats)
        ]
        with billed([judge], out):
            scores = rated(judge.prepare(subject), self.rubric, answers)
        middle = sum(judge.scale) / 2
        beyond = [s.value is not None and self.pole.sign * (s.value - middle) > 0 for s in scores]
        left = [chat for chat, is_beyond in zip(chats, beyond, strict=True) if not is_beyond]
        if not left:
            raise DataError(
                f"{judge.name} sees {self.pole} in all {len(chats)} chats; none is left to screen"
            )
        return left


def _limits(share: float, drop_above: float | None) -> Row:
    """Return both as the manifest has them, once they are known to be possible."""
    if not 0.0 < share <= 0.5:
        raise RecipeError(f"--share {share:g}: must be above 0 and at most 0.5")
    if drop_above is not None and not math.isfinite(drop_above):
        raise RecipeError(f"--drop-above {drop_above}: must be a finite number")
    return {"share": share, "drop_above": drop_above}


def _read(data: str, settings: Sequence[str]) -> "tuple[DataSpec, Template]":
    """Return how the data are read, and the chat template, as ``--set`` gives both."""
    from personality_vector.data.chats import DataSpec
    from personality_vector.subject.spec import TemplatedRecipe

    given: Row = {"source": Typed(data), "part": "all"}
    for setting in settings:
        override(given, setting)
    of_template = {key: given.pop(key) for key in TemplatedRecipe.model_fields if key in given}
    here = Path.cwd()
    template = TemplatedRecipe.parse(of_template, origin="--set", folder=here).template
    return DataSpec.parse(given, origin="--set", folder=here), template


def _selected(spec: "DataSpec", sample: int | None, seed: int) -> "list[Labelled]":
    from personality_vector.data.chats import read_labelled
    from personality_vector.data.flagged import drawn

    chats = read_labelled(spec)
    if sample is None:
        return chats
    return [chats[number] for number in drawn(len(chats), sample, seed, "sample")]


def _made_with(
    spec: "DataSpec", model: "pv.Checkpoint", vector: Path, subject: "pv.Subject"
) -> Row:
    """Return what the numbers depend on beside the options, for the manifest."""
    from personality_vector.checkpoint import revision_of
    from personality_vector.files import content_of
    from personality_vector.steering.activations import options_of, template_hash

    return {
        "data": spec.model_dump(mode="json"),
        "base": {"fingerprint": model.fingerprint.digest, **revision_of(model.path)},
        "vector_content": content_of(vector),
        "sampling": asdict(subject.sampling),
        "template": template_hash(subject.tokenizer),
        **options_of(subject.tokenizer),
    }


def _screened(
    subject: "pv.Subject",
    chats: "Sequence[Labelled]",
    along_vector: "tuple[pv.SteeringVector, int]",
    how: tuple[Any, int, float],
) -> "tuple[list[Flagged], Screened]":
    """Return a row of each chat, and the numbers that it holds."""
    from personality_vector.data.flagged import Flagged
    from personality_vector.steering.screen import grouped, projection_differences

    against, seed, share = how
    said = [chat for chat, _ in chats]
    found = projection_differences(subject, said, *along_vector, against=against, seed=seed)
    replies: Sequence[str | None] = found.replies or [None] * len(chats)
    columns = (found.projections.tolist(), found.differences.tolist())
    each = zip(chats, *columns, grouped(found.differences, share), replies, strict=True)
    return [Flagged(*row) for row in each], found


def _said(result: Row) -> str:
    """Return what was found in sentences."""
    along_it = f"along {result['vector']} at layer {result['layer']}"
    lines = [f"{result['written']:,} of {result['chats']:,} chats"]
    if result["explicit"] is not None:
        lines.append(f"left out because the judge sees the pole already: {result['explicit']:,}")
    if result["unscored"]:
        lines.append(f"without a difference, as the model replied nothing: {result['unscored']:,}")
    if result["dropped"]:
        lines.append(f"dropped: {result['dropped']:,}")
    if result["against"] == "none":
        mean = _number(result["projection_mean"])
        lines.append(f"mean projection {along_it}: {mean}; the differences are from it")
    else:
        mean, low, high = (_number(result[key]) for key in ("mean", "mean_low", "mean_high"))
        lines.append(f"mean difference {along_it}: {mean} (95 % interval {low} to {high})")
    ends = ", ".join(f"{name}: {_number(value)}" for name, value in result["quantiles"].items())
    groups = ", ".join(f"{count:,} {name}" for name, count in result["groups"].items())
    return "\n".join([*lines, f"quantiles of the difference: {ends}", f"groups: {groups}"])


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def _draw(figure: Path | None, differences: list[float], about: Row, limit: float | None) -> None:
    if figure is None:
        return
    from personality_vector.report.directions import difference_figure
    from personality_vector.report.figures import save_figure

    x_label = f"difference along {about['vector']} at layer {about['layer']} (unit of activation)"
    drawn = difference_figure(differences, x_label, limit)
    save_figure(drawn, figure.parent, figure.stem, figure.suffix)
