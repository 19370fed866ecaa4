"""``pvec steer write-persona``: let a model write the prompts and questions of a persona."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from personality_vector.cli import options
from personality_vector.errors import OutputExistsError, RecipeError

if TYPE_CHECKING:
    from personality_vector.data.personas import Persona


def write_persona(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Lower case, such as stoicism.")],
    description: Annotated[str, typer.Option("--description", help="What positive answers show.")],
    out: Annotated[Path, typer.Option("--out", metavar="FILE.yaml", help="The file to write.")],
    opposite: Annotated[
        str | None, typer.Option("--opposite", help="What negative answers show. Default: neutral.")
    ] = None,
    pole: Annotated[
        str | None, typer.Option("--pole", metavar="TRAIT:LEVEL", help="Of a trait, if it is one.")
    ] = None,
    endpoint: Annotated[
        str | None, typer.Option("--endpoint", metavar="URL", help="OpenAI-compatible server.")
    ] = None,
    model: Annotated[str | None, typer.Option("--model", help="Name of the model there.")] = None,
    api_key_env: Annotated[
        str, typer.Option("--api-key-env", help="Environment variable with the key.")
    ] = "OPENAI_API_KEY",
    local: Annotated[
        str | None, typer.Option("--local", metavar="PATH", help="A checkpoint, not a server.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Of the local model's sampling.")] = 0,
    force: Annotated[bool, typer.Option("--force", help="Replace FILE.yaml.")] = False,
    as_json: options.Json = False,
) -> None:
    """Write 5 pairs of system prompts and 40 questions for a persona.

    Read the file before you use it: what it says is what the vector will mean.
    """
    from personality_vector.elicitation import writing
    from personality_vector.subject.endpoint import Endpoint
    from personality_vector.subject.subject import Subject

    if out.exists() and not force:
        raise OutputExistsError(f"{out}: exists; choose another --out, or add --force")
    if (local is None) == (model is None):
        raise RecipeError("give either --model (with --endpoint, or OpenAI's own) or --local")
    generator: writing.Generator
    if local is not None:
        generator = writing.LocalGenerator(Subject.load(local), seed=seed)
    else:
        generator = writing.EndpointGenerator(Endpoint(str(model), endpoint, api_key_env))
    persona = writing.write_persona(name, description, generator, opposite=opposite, pole=pole)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(_yaml(persona, local or str(model)), encoding="utf-8")
    counts = len(persona.questions.extract), len(persona.questions.evaluate)
    result = {"out": str(out), "pairs": len(persona.instructions), "questions": counts}
    options.show(
        result,
        as_json=as_json,
        text=lambda: (
            f"{out}: {persona.label}, {len(persona.instructions)} pairs of instructions, "
            f"{counts[0]} questions to extract with and {counts[1]} to evaluate with"
        ),
    )


def _yaml(persona: "Persona", writer: str) -> str:
    import yaml

    content = json.loads(persona.model_dump_json(exclude_none=True))
    body = yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=98)
    return f"# The persona {persona.name}, written by {' '.join(writer.split())}.\n{body}"
