"""``pvec similarity``: cosines between deltas."""

from pathlib import Path
from typing import Annotated

import typer

from personality_vector.cli import options
from personality_vector.errors import RecipeError


def similarity(
    vectors: Annotated[
        list[Path], typer.Argument(metavar="V1 V2 ...", help="Saved deltas of one base.")
    ],
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Print the cosines between saved deltas."""
    if len(vectors) < 2:
        raise RecipeError("similarity needs at least two vectors")
    import pandas as pd

    from personality_vector.delta import Delta
    from personality_vector.delta.similarity import cosine_matrix
    from personality_vector.tables import print_frame

    deltas = [Delta.load(path) for path in vectors]
    matrix = cosine_matrix(deltas)
    labels = [f"{number} {delta.label}" for number, delta in enumerate(deltas, start=1)]
    if as_json:
        options.show({"labels": labels, "cosine": matrix}, as_json=True, text=str)
        return
    frame = pd.DataFrame(matrix, columns=labels)
    frame.insert(0, "", labels)
    print_frame("cosine", frame)
