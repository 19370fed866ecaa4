"""Scores of models that were measured elsewhere: a table with a row for each model."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from personality_vector.data.rows import fitted, is_blank, raw_rows
from personality_vector.errors import DataError, some
from personality_vector.recipes.schema import Recipe, Words


class ModelScore(Recipe):
    """A row: a model, as it is given on the command line or by its folder's name, and its score."""

    model: Words
    score: float


def read_model_scores(file: Path, models: Sequence[str]) -> list[float]:
    """Return the score of each model, in their order; other columns are not read.

    Args:
        file: Anything that :func:`raw_rows` reads, such as a CSV file.
        models: The models as they were given.

    Raises:
        DataError: The file cannot be read, a row has no model or no number, a model is scored twice
            or not at all, or one that is scored is not among ``models``.
    """
    names = Counter(Path(model).name for model in models)
    # A folder's name that two models share names neither.
    known = {Path(model).name: model for model in models if names[Path(model).name] == 1}
    known |= {model: model for model in models}
    found: dict[str, float] = {}
    for place, row in raw_rows(file).items():
        if is_blank(row):
            continue
        columns = {key: row[key] for key in row if key in ModelScore.model_fields}
        read = fitted(place, columns, ModelScore)
        model = known.get(read.model.strip())
        if model is None:
            raise DataError(f"{place}: {read.model} is none of the models: {some(models)}")
        if model in found:
            raise DataError(f"{place}: {model} has a second score; give each model one")
        found[model] = read.score
    absent = [model for model in models if model not in found]
    if absent:
        raise DataError(f"{file}: has no score for {some(absent)}; give every model one")
    return [found[model] for model in models]
