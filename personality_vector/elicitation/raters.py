"""From the judge of a recipe to something that rates."""

from personality_vector.checkpoint import Checkpoint
from personality_vector.data.personas import Persona
from personality_vector.data.statements import read_statements
from personality_vector.errors import RecipeError, TraitError
from personality_vector.judges.by_statements import StatementRater
from personality_vector.judges.classifier import StatementJudge
from personality_vector.judges.endpoint import EndpointRater
from personality_vector.judges.local import LocalRater
from personality_vector.judges.rating import Rater
from personality_vector.recipes.steering import JudgeSpec, SteerRecipe
from personality_vector.subject.endpoint import Endpoint
from personality_vector.subject.models import load_model, load_tokenizer, resolve_device


def open_rater(recipe: SteerRecipe, persona: Persona) -> Rater | None:
    """Return the judge of ``recipe``; ``None`` where none is asked.

    Before anything is generated, so that a missing key or file is not found out hours later.

    Raises:
        RecipeError: The package ``openai`` or the API key is missing.
        TraitError: The judge rates poles only, and the persona has none, or not one of its own.
        DataError: The statements cannot be read.
        ModelError: The judge's checkpoint cannot be loaded, or cannot write digits.
    """
    spec = recipe.judge
    if spec.kind == "statements":
        return _statement_rater(spec, persona, recipe.seed)
    if spec.kind == "endpoint":
        endpoint = Endpoint(_given(spec.model), spec.base_url, spec.api_key_env)
        return EndpointRater(endpoint, spec.requests)
    if spec.kind == "local":
        path = Checkpoint.open(_given(spec.checkpoint)).path
        device = resolve_device(recipe.device)
        model = load_model(path, dtype=recipe.dtype, device=device)
        return LocalRater(model, load_tokenizer(path), str(spec.checkpoint), spec.batch_size)
    return None


def _statement_rater(spec: JudgeSpec, persona: Persona, seed: int) -> StatementRater:
    file = spec.statements
    if file is None:
        raise RecipeError("a judge of kind statements needs the key statements")
    train = read_statements(file, part="train", held_out=spec.held_out)
    held_out = read_statements(file, part="held_out", held_out=spec.held_out)
    traits = sorted({statement.trait for statement in train})
    if persona.pole is None or persona.pole.trait not in traits:
        raise TraitError(
            f"a judge of kind statements knows {', '.join(traits)}; the persona {persona.name} is "
            f"of {persona.pole or 'no pole'}: choose the kind endpoint, local or none"
        )
    return StatementRater(StatementJudge.fit(train, held_out, seed))


def _given(value: str | None) -> str:
    if value is None:  # JudgeSpec has checked it
        raise RecipeError("the judge names no model")
    return value
