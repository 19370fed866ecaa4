"""``pvec elicit``: from a persona, or a name and a description, to chats to learn from."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import personality_vector as pv
from personality_vector.cli import options
from personality_vector.errors import OutputExistsError, PersonalityVectorError, RecipeError
from personality_vector.lab import BUILTIN, PERSONAS, recipes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from personality_vector.data.personas import Persona
    from personality_vector.elicitation.elicit import Elicited
    from personality_vector.elicitation.recipe import ElicitRecipe
    from personality_vector.elicitation.rollouts import Rollout
    from personality_vector.subject import Judge

PersonaArgument = Annotated[
    str,
    typer.Argument(
        metavar="PERSONA",
        help="A shipped persona such as extraversion, a YAML file, or with --description a "
        "new name.",
    ),
]
Description = Annotated[
    str | None, typer.Option("--description", help="What positive answers show.")
]
Opposite = Annotated[
    str | None,
    typer.Option("--opposite", help="What negative answers show. Default: nothing special."),
]
Grade = Annotated[str | None, typer.Option("--grade", help="How strongly: mild, normal or strong.")]
JudgeOption = Annotated[
    str | None,
    typer.Option(
        "--judge",
        metavar="NAME|FILE",
        help="Who filters; none keeps all. Default: classifier for the Big Five, else none.",
    ),
]
ElicitSettings = Annotated[
    list[str],
    typer.Option(
        "--set",
        metavar="KEY.PATH=VALUE",
        help="rollouts.samples=4, thresholds.paired=false, held_out=0.2, seed=1, "
        "template_options.NAME=VALUE, ...; repeatable.",
    ),
]
_KIND = "elicited"


def elicit(
    persona: PersonaArgument,
    model: options.Model,
    out: options.OutDir,
    description: Description = None,
    opposite: Opposite = None,
    grade: Grade = None,
    judge: JudgeOption = None,
    settings: ElicitSettings = [],
    dry_run: options.DryRun = False,
    force: options.Force = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Let a model answer as a persona and as its opposite, and keep the clear answers as chats.

    The chats are without the system prompts, and split by question into train, held_out and
    evaluate. OUT is a data.source of `pvec train` and of both sides of `pvec steer extract`, and
    OUT/persona.yaml holds the prompts. An interrupted run resumes.
    """
    from personality_vector.elicitation.elicit import open_judge, plan_of, read_persona

    source = _source(persona, description, opposite)
    given = {"persona": source, "model": model, **({"grade": grade} if grade else {})}
    recipe = _recipe(given, judge, settings)
    asked = read_persona(recipe)
    opened = open_judge(recipe, asked)

    def plan() -> dict[str, Any]:
        replies = len(plan_of(recipe, asked).rows())
        found = str(pv.Checkpoint.open(recipe.model).fingerprint)
        given = {"recipe": recipe.model_dump(mode="json"), "fingerprint": found}
        return {**given, "replies": replies}

    if options.plan_only(plan, out, dry_run, force, as_json, kind=_KIND):
        return
    elicited, manifest = _carry_out(recipe, opened, out, force=force)
    result = {"out": str(out), "persona": asked.label, "judge": elicited.judge}
    result |= {key: manifest[key] for key in ("rules", "chats")}
    chats = ", ".join(f"{count} {name}" for name, count in manifest["chats"].items())
    said = f"{out}: {asked.label}, {elicited.report} (judge: {elicited.judge})\nchats: {chats}"
    options.show(result, as_json=as_json, text=lambda: said)


def _source(persona: str, description: str | None, opposite: str | None) -> "str | Persona":
    """Return the file of a persona, or a persona made from its description."""
    if description is not None:
        from personality_vector.elicitation.writing import described

        return described(persona, description, opposite=opposite)
    if opposite is not None:
        raise RecipeError("--opposite goes with --description; a persona has an opposite already")
    if Path(persona).is_file():
        return str(Path(persona).resolve())
    shipped = {name.rpartition("/")[2]: name for name in recipes() if name.startswith(PERSONAS)}
    if persona not in shipped:
        raise RecipeError(
            f"{persona}: is neither a file nor a shipped persona, which are {', '.join(shipped)}; "
            "describe a new one with --description"
        )
    return f"{BUILTIN}{shipped[persona]}.yaml"


def _recipe(given: dict[str, Any], judge: str | None, settings: list[str]) -> "ElicitRecipe":
    """Return the recipe of a command line."""
    from personality_vector.cli.judge import spec_of
    from personality_vector.elicitation.elicit import read_persona
    from personality_vector.elicitation.recipe import ElicitRecipe
    from personality_vector.recipes.reading import override
    from personality_vector.traits import BIG_FIVE

    for setting in settings:
        override(given, setting)
    if judge in ("none", "recorded"):
        given["judge"] = judge
    elif judge is not None:
        given["judge"] = spec_of(judge, None)[0]
    elif "judge" not in given:
        anybody = {**given, "judge": "classifier"}  # the persona decides
        found = ElicitRecipe.parse(anybody, origin="elicit", folder=Path.cwd())
        pole = read_persona(found).pole
        given["judge"] = "classifier" if pole and pole.trait in BIG_FIVE else "none"
    return ElicitRecipe.parse(given, origin="elicit", folder=Path.cwd())


def _carry_out(
    recipe: "ElicitRecipe", judge: "Judge | None", out: Path, *, force: bool
) -> "tuple[Elicited, dict[str, Any]]":
    """Elicit and save; every reply is in ``OUT.rollouts.jsonl`` until OUT is there."""
    from personality_vector.elicitation.elicit import drawn_by, elicit, load_subject, save_chats
    from personality_vector.elicitation.rollouts import ROLLOUTS, to_jsonl
    from personality_vector.files import write_file

    beside = out.with_name(f"{out.name}.{ROLLOUTS}")
    is_reused = recipe.rollouts.reuse is not None
    earlier = [] if is_reused else _earlier(beside, drawn_by(recipe), force=force)

    def record(rollouts: "Sequence[Rollout]") -> None:
        if not is_reused:
            write_file(beside, to_jsonl(rollouts).encode())

    try:
        with options.resumable(out):
            subject = load_subject(recipe)
            elicited = elicit(recipe, subject, judge, earlier=earlier, record=record)
            manifest = save_chats(elicited, recipe, out, force=force)
    except PersonalityVectorError as error:
        if beside.is_file():
            error.add_note(f"the replies are kept in {beside}, and the same command filters them")
        raise
    if not is_reused:
        beside.unlink(missing_ok=True)
    return elicited, manifest


def _earlier(beside: Path, drawn_by: str, *, force: bool) -> "list[Rollout]":
    """Return the replies of an interrupted run of the same model and settings.

    Raises:
        OutputExistsError: They are those of others.
        DataError: The file holds something else.
    """
    from personality_vector.data.rows import read_rows
    from personality_vector.elicitation.rollouts import Rollout

    if not beside.exists():
        return []
    rows = [row.unrated() for row in read_rows(beside, Rollout).values()]
    if all(row.drawn_by == drawn_by for row in rows):
        return rows
    if not force:
        raise OutputExistsError(
            f"{beside}: has the replies of a run with another model, seed or sampling; delete it, "
            "choose another --out, or add --force to draw them anew"
        )
    return []
