"""``pvec steer write-persona``, ``extract``, ``neurons`` and ``choose``: the steps to a vector."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
import yaml

import personality_vector as pv
from personality_vector.cli import options
from personality_vector.errors import OutputExistsError, RecipeError, require_new, some

if TYPE_CHECKING:
    from collections.abc import Sequence

    from personality_vector.data.personas import Persona
    from personality_vector.elicitation.elicit import Elicited
    from personality_vector.elicitation.recipe import SteerRecipe
    from personality_vector.elicitation.rollouts import Rollout
    from personality_vector.elicitation.writing import Generator
    from personality_vector.interventions.neurons.chosen import NeuronSet
    from personality_vector.study.recipe import ChooseRecipe

_UNEDITED = "# Without edits, the digest of the lines above is "
_OF_VECTORS = ("persona", "layers", "pooling", "estimator")

Server = Annotated[
    str | None, typer.Option("--endpoint", metavar="URL", help="An OpenAI-compatible server.")
]
ServerModel = Annotated[str | None, typer.Option("--model", help="A model of the server.")]
KeyVariable = Annotated[
    str, typer.Option("--api-key-env", help="Environment variable with the key.")
]
LocalWriter = Annotated[
    str | None, typer.Option("--local", metavar="PATH", help="A checkpoint, without a server.")
]
WriterSeed = Annotated[int, typer.Option("--seed", help="Seed of the local model's sampling.")]


def write_persona(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Lower case, such as stoicism.")],
    description: Annotated[str, typer.Option("--description", help="What positive answers show.")],
    out: Annotated[Path, typer.Option("--out", metavar="FILE.yaml", help="The file to write.")],
    opposite: Annotated[
        str | None, typer.Option("--opposite", help="What negative answers show. Default: neutral.")
    ] = None,
    pole: options.PoleOption = None,
    endpoint: Server = None,
    model: ServerModel = None,
    api_key_env: KeyVariable = "OPENAI_API_KEY",
    local: LocalWriter = None,
    seed: WriterSeed = 0,
    settings: options.ChatSettings = [],
    force: Annotated[bool, typer.Option("--force", help="Replace FILE.yaml.")] = False,
    as_json: options.Json = False,
) -> None:
    """Write 5 pairs of system prompts and 40 questions for a persona.

    Read the file before you use it: what it says is what the vector will mean.
    """
    from personality_vector.elicitation import writing

    _require_replaceable(out, force=force)
    server = (model, endpoint, api_key_env)
    generator = writer_of("persona", server, local, settings, seed, writing.LONG)
    persona = writing.write_persona(name, description, generator, opposite=opposite, pole=pole)
    writer = " ".join((local or str(model)).split())
    _write(persona, out, f"# The persona {name}, written by {writer}.\n")
    pairs, asked = len(persona.instructions), persona.questions
    counts = len(asked.extract), len(asked.evaluate)
    said = f"{counts[0]} questions to extract with and {counts[1]} to evaluate with"
    options.show(
        {"out": str(out), "pairs": pairs, "questions": counts},
        as_json=as_json,
        text=lambda: f"{out}: {persona.label}, {pairs} pairs of instructions, {said}",
    )


def writer_of(
    what: str,
    server: tuple[str | None, str | None, str],
    local: str | None,
    settings: list[str],
    seed: int,
    sampling: "pv.Sampling",
) -> "Generator":
    """Return who writes: the model of a server (name, URL, variable of the key), or ``--local``.

    Raises:
        RecipeError: Neither or both are given, or ``--set`` is given for a server.
    """
    from personality_vector.elicitation import writing
    from personality_vector.subject.endpoint import Endpoint

    model, endpoint, api_key_env = server
    if (local is None) == (model is None):
        raise RecipeError(
            "give either --model (and --endpoint, unless it is OpenAI's own) or --local"
        )
    if settings and local is None:
        raise RecipeError("--set is about the chat template of --local; a server has its own")
    if local is None:
        return writing.endpoint_generator(Endpoint(str(model), endpoint, api_key_env), what)
    subject = pv.Subject.load(local, template=options.template(settings))
    return writing.local_generator(subject, sampling, seed)


def _write(persona: "Persona", out: Path, title: str) -> None:
    """Write a persona, with a last line by which an edited file is known."""
    from personality_vector.files import write_file
    from personality_vector.files.owned import text_digest

    content = persona.model_dump(mode="json", exclude_none=True)
    text = title + yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=98)
    write_file(out, f"{text}{_UNEDITED}{text_digest(text)}\n".encode())


def _require_replaceable(persona: Path, *, force: bool) -> None:
    """Refuse to write over a file, unless ``force`` is on and it is a persona nobody has edited."""
    from personality_vector.files.owned import text_digest
    from personality_vector.files.reading import read_text

    require_new(persona, force=force)
    if persona.exists():
        text, mark, digest = read_text(persona).rpartition(_UNEDITED)
        if not mark or digest.strip() != text_digest(text):
            raise OutputExistsError(
                f"{persona}: is not a persona as this tool wrote it, so it is never replaced; "
                "choose another --out"
            )


def check(recipe: "SteerRecipe") -> dict[str, Any]:
    """Open the model, and read both sides or the persona."""
    from personality_vector.elicitation.elicit import open_judge, plan_of, read_persona
    from personality_vector.elicitation.extract import dropped_of, read_sides

    checkpoint = pv.Checkpoint.open(recipe.model)
    if recipe.chat_template or recipe.template_options:
        pv.load_tokenizer(checkpoint.path, recipe.template)  # refuses what does not fit
    found: dict[str, Any] = {"fingerprint": str(checkpoint.fingerprint)}
    if recipe.persona is None:
        sides = read_sides(recipe)
        counts = {"positive": len(sides[0].chats), "negative": len(sides[1].chats)}
        return {**found, **counts, "dropped": dict(dropped_of(sides))}
    persona = read_persona(recipe)
    judge = open_judge(recipe, persona)
    replies = len(plan_of(recipe, persona).rows())
    by = judge.name if judge else recipe.judge
    return {**found, "persona": persona.label, "replies": replies, "rated by": by}


def extract(recipe: "SteerRecipe", out: Path, force: bool, as_json: bool) -> None:
    """Extract a steering vector.

    Positive minus negative mean activations: over given texts, or over the model's own answers
    as a persona and as its opposite.
    """
    options.require_writable(out, "steering_vector", force=force)
    if recipe.persona is None:
        from personality_vector.elicitation.extract import extract_recipe

        vector, elicited = extract_recipe(recipe), None
        vector.save(out, force=force)
    else:
        vector, elicited = _extract_persona(recipe, out, force=force)
    result: dict[str, Any] = {
        "out": str(out),
        "label": vector.label,
        "pole": str(vector.pole) if vector.pole else None,
        "counts": vector.counts,
        "norms": {layer: vector.norm(layer) for layer in vector.layers},
    }
    said = (
        f"{out}: {vector.label}, {len(vector.layers)} layers, "
        f"from {vector.counts[0]} positive and {vector.counts[1]} negative responses"
    )
    if elicited is not None:
        kept, judge = elicited.report, elicited.judge
        result |= {"judge": judge, kept.of: kept.total, "kept": kept.kept}
        result |= {"dropped": dict(kept.dropped)}
        said += f"\n{kept} (judge: {judge})"
    options.show(result, as_json=as_json, text=lambda: said)


def check_neurons(recipe: "SteerRecipe") -> dict[str, Any]:
    """Open the model and read both sides."""
    require_for_neurons(recipe)
    return check(recipe)


def neurons(recipe: "SteerRecipe", out: Path, force: bool, as_json: bool) -> None:
    """Find the neurons that tell two poles apart.

    Neurons of the MLPs that are active more often over the responses of one side.
    """
    options.require_writable(out, "neurons", force=force)
    found = find_recipe_neurons(recipe)
    found.save(out, force=force)
    plus, minus = found.sizes
    options.show(
        {
            "out": str(out),
            "pole": str(found.pole),
            "counts": found.counts,
            "positive": plus,
            "negative": minus,
        },
        as_json=as_json,
        text=lambda: (
            f"{out}: {plus} neurons of {found.pole} and {minus} of its opposite, "
            f"from {found.counts[0]} and {found.counts[1]} responses"
        ),
    )


def _extract_persona(
    recipe: "SteerRecipe", out: Path, *, force: bool
) -> "tuple[pv.SteeringVector, Elicited]":
    """Extract and save; every reply is written to ``OUT.rollouts.jsonl`` as soon as it exists."""
    from personality_vector.data.rows import read_rows
    from personality_vector.elicitation.extract import extract_persona
    from personality_vector.elicitation.rollouts import ROLLOUTS, Rollout, to_jsonl
    from personality_vector.files import write_file

    beside = out.with_name(f"{out.name}.{ROLLOUTS}")
    reuse = recipe.rollouts.reuse
    resumes = reuse is not None and reuse.resolve() == beside.resolve()
    if beside.exists() and not resumes:
        if not force:
            raise OutputExistsError(
                f"{beside}: an earlier run left its replies here; resume from them with "
                f"--set rollouts.reuse={beside}, or add --force"
            )
        read_rows(beside, Rollout)  # refuses to replace anything else

    def record(rollouts: "Sequence[Rollout]") -> None:
        # What was drawn is never lost while its ratings are written.
        write_file(beside, to_jsonl(rollouts).encode())

    try:
        vector, elicited = extract_persona(recipe, record=record)
        vector.save(out, force=force)
    except Exception as error:
        if beside.is_file():
            error.add_note(f"the replies are kept: --set rollouts.reuse={beside} resumes from them")
        raise
    return vector, elicited


def find_recipe_neurons(recipe: "SteerRecipe") -> "NeuronSet":
    """Return the neurons of a recipe with two sides of data, tied to its model by fingerprint.

    Raises:
        RecipeError: It has a persona, or a key that only a vector has.
        DataError: A side cannot be read or selects nothing, or no neuron tells them apart.
        ModelError: The model cannot be loaded, or its neurons cannot be found.
    """
    from personality_vector.elicitation.elicit import load_subject
    from personality_vector.elicitation.extract import dropped_of, origin, read_sides
    from personality_vector.interventions.neurons.find import find_neurons

    require_for_neurons(recipe)
    sides, subject = read_sides(recipe), load_subject(recipe)
    found = find_neurons(
        subject.model,
        subject.tokenizer,
        *(side.chats for side in sides),
        batch_size=recipe.batch_size,
        pole=recipe.pole,
    )
    return replace(found, **origin(recipe, found.made_with, dropped_of(sides)))


def require_for_neurons(recipe: "SteerRecipe") -> None:
    """Refuse the keys of a steer recipe that have no effect on neurons.

    Raises:
        RecipeError: The recipe has such a key.
    """
    fields = type(recipe).model_fields
    unused = [key for key in _OF_VECTORS if getattr(recipe, key) != fields[key].default]
    if unused:
        raise RecipeError(
            f"neurons are counted in two sides of data, in all layers and over whole responses; "
            f"leave out {some(unused)}"
        )


def check_choice(recipe: "ChooseRecipe") -> dict[str, Any]:
    """Open every input."""
    from personality_vector.study.choose.run import Inputs

    made_from = Inputs.open(recipe).made_from(recipe)
    return {key: made_from[key] for key in ("contents", "statements")}


def choose(recipe: "ChooseRecipe", out: Path, force: bool, as_json: bool) -> None:
    """Choose the layer and the range of strengths of a steering vector.

    One pass ranks the layers. The best few are then verified by generation, at growing strengths
    until coherence falls below the floor. Measurements are kept in OUT.run, so that the same
    command resumes after an interruption, and a change of the floor or the shares measures only
    what is missing. --force replaces the choice and keeps the measurements.
    """
    from personality_vector.report.choice import save_choice
    from personality_vector.report.tables import print_frame
    from personality_vector.study.choose.run import choose

    options.require_writable(out, "choice", force=force)
    with options.resumable(out):
        choice = choose(recipe, out.with_name(f"{out.name}.run"))
    save_choice(choice, out, force=force)
    if as_json:
        options.show({"out": str(out), **choice.record()}, as_json=True, text=str)
        return
    layers = choice.layer_table()[
        ["layer", "d_prime", "auc", "auc_low", "auc_high", "slope", "rank", "swing"]
    ]
    layers["rank"] = layers["rank"].astype("string").fillna("-")
    columns = ["coefficient", "share", "shift", "judge", "divergence", "coherence", "usable"]
    curve = choice.curve_table().query("layer == @choice.layer")[columns]
    seen = "which the vector may have been extracted from"
    print_frame(f"layers of {choice.label}", layers)
    typer.echo(f"d' and auc on the {choice.part} part, {seen}")
    print_frame(f"strengths at layer {choice.layer}", curve)
    lowest, highest = choice.coefficients
    where = "" if recipe.positions == "all" else f", positions: {recipe.positions}"
    typer.echo(
        f"{out}: steer at layer {choice.layer}, coefficients {lowest:.3g} to {highest:.3g}; "
        "in a recipe:\n"
        f"  {{label: {choice.label}, vector: {recipe.vector}, layers: [{choice.layer}]{where}, "
        f"strengths: [{lowest:.4g}, {highest:.4g}]}}"
    )
