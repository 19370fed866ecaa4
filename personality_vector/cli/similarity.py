"""``pvec similarity``: cosines between deltas, or between steering vectors."""

from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from personality_vector.cli import options
from personality_vector.errors import OutputExistsError, RecipeError

if TYPE_CHECKING:
    import pandas as pd

    from personality_vector.delta.similarity import Similarity


def similarity(
    vectors: Annotated[
        list[Path],
        typer.Argument(
            metavar="V1 V2 ...", help="Saved deltas of one base, or steering vectors of one model."
        ),
    ],
    centred: Annotated[
        bool,
        typer.Option(
            "--centred",
            help="First remove the mean direction of all N; unrelated ones then have -1/(N-1).",
        ),
    ] = False,
    per_layer: Annotated[
        bool, typer.Option("--per-layer", help="Also compare them layer by layer.")
    ] = False,
    figure: Annotated[
        Path | None, typer.Option("--figure", metavar="FILE", help="Draw it: .svg or .png.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace FILE.")] = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Print the cosines between saved vectors."""
    if len(vectors) < 2:
        raise RecipeError("similarity needs at least two vectors")
    if figure is not None:
        _require_writable(figure, force=force)
    found = _compare(vectors)
    whole = _frame(found, centred=centred)
    layers = _layer_frame(found, centred=centred) if per_layer else None
    if figure is not None:
        drawn = whole if layers is None else layers.set_axis(_pairs(found.labels), axis=1)
        _draw(drawn, figure, centred=centred)
    if as_json:
        result = _result(found, centred=centred, per_layer=per_layer)
        options.show(options.without_nan(result), as_json=True, text=str)
        return
    _print(whole, layers, centred=centred)


def _compare(paths: Sequence[Path]) -> "Similarity":
    """Return the similarity of deltas or of steering vectors, all of one kind."""
    from personality_vector.delta.storage import is_saved_delta

    deltas = [path for path in paths if is_saved_delta(path)]
    steering = [path for path in paths if _kind(path) == "steering_vector"]
    if steering and deltas:
        raise RecipeError(
            f"{steering[0]} is a steering vector and {deltas[0]} a delta; compare one kind"
        )
    return _of_directions(paths) if steering else _of_deltas(paths)


def _kind(path: Path) -> object:
    from personality_vector.checkpoint.reader import read_json
    from personality_vector.manifest import MANIFEST

    return read_json(path / MANIFEST).get("kind") if (path / MANIFEST).is_file() else None


def _of_deltas(paths: Sequence[Path]) -> "Similarity":
    from personality_vector.delta import Delta
    from personality_vector.delta.similarity import similarity

    return similarity([Delta.load(path) for path in paths])


def _of_directions(paths: Sequence[Path]) -> "Similarity":
    import torch

    from personality_vector.delta.similarity import Similarity, inner_products
    from personality_vector.steering import SteeringVector

    vectors = [SteeringVector.load(path) for path in paths]
    layers = sorted({layer for vector in vectors for layer in vector.layers})
    for vector in vectors:
        for layer in layers:
            vectors[0].cosine(vector, layer)  # refuses another model, width or set of layers
    rows = {layer: torch.stack([vector[layer] for vector in vectors]) for layer in layers}
    grams = {f"layer {layer}": inner_products(row) for layer, row in rows.items()}
    return Similarity(tuple(vector.label for vector in vectors), grams)


def _labels(found: "Similarity") -> list[str]:
    return [f"{number} {label}" for number, label in enumerate(found.labels, start=1)]


def _frame(found: "Similarity", *, centred: bool) -> "pd.DataFrame":
    import pandas as pd

    labels = _labels(found)
    return pd.DataFrame(found.cosine(centred=centred).numpy(), index=labels, columns=labels)


def _layer_frame(found: "Similarity", *, centred: bool) -> "pd.DataFrame":
    """Return a row of every layer, with a column of every two vectors."""
    import pandas as pd

    pairs = list(combinations(range(len(found.labels)), 2))
    rows = {
        layer: [float(found.cosine(layer, centred=centred)[pair]) for pair in pairs]
        for layer in found.layers
    }
    numbers = [str(number) for number, _ in enumerate(found.labels, start=1)]
    return pd.DataFrame.from_dict(rows, orient="index", columns=_pairs(numbers))


def _pairs(names: Sequence[str]) -> list[str]:
    return [" and ".join(pair) for pair in combinations(names, 2)]


def _result(found: "Similarity", *, centred: bool, per_layer: bool) -> dict[str, Any]:
    result = {
        "labels": _labels(found),
        "centred": centred,
        "cosine": found.cosine(centred=centred).tolist(),
    }
    if per_layer:
        result["layers"] = {
            layer: found.cosine(layer, centred=centred).tolist() for layer in found.layers
        }
    return result


def _print(whole: "pd.DataFrame", layers: "pd.DataFrame | None", *, centred: bool) -> None:
    from personality_vector.report.tables import print_frame

    title = "cosine, centred" if centred else "cosine"
    print_frame(title, whole.reset_index(names=""))
    if layers is not None:
        print_frame(f"{title}, by layer", layers.reset_index(names=""))


def _require_writable(figure: Path, *, force: bool) -> None:
    if figure.suffix not in (".svg", ".png"):
        raise RecipeError(f"--figure {figure}: draw into a file that ends with .svg or .png")
    if figure.exists() and not force:
        raise OutputExistsError(f"{figure}: exists; choose another --figure, or add --force")


def _draw(frame: "pd.DataFrame", figure: Path, *, centred: bool) -> None:
    from personality_vector.report.figures import cosine_figure

    figure.parent.mkdir(parents=True, exist_ok=True)
    drawn = cosine_figure(frame, centred=centred)
    # Without a date, so that the same vectors draw the same bytes.
    metadata = {"Date": None} if figure.suffix == ".svg" else None
    drawn.savefig(figure, bbox_inches="tight", facecolor="white", metadata=metadata)
