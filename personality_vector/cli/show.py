"""``pvec show`` prints what a directory is, ``pvec similarity`` how alike vectors are."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import personality_vector as pv
from personality_vector.cli import options
from personality_vector.errors import RecipeError

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor

    from personality_vector.delta import Total
    from personality_vector.delta.similarity import Similarity

_BULKY = ("tensors", "files", "digests", "losses", "manifest")
_VECTOR = "steering_vector"
_TABLES = ("layers", "modules")
_OF_ADAPTERS = ("peft_type", "base_model_name_or_path", "r", "lora_alpha", "target_modules")

Vectors = Annotated[
    list[str],
    typer.Argument(
        metavar="V1 V2 ...",
        help="Steering vectors of one model; or saved deltas of one base; or, with --base, "
        "also checkpoints and adapters that were fine-tuned from it.",
    ),
]
Base = Annotated[
    str | None,
    typer.Option(
        "--base", metavar="BASE", help="Where V1, V2, ... come from: a directory or Hub id."
    ),
]
Centred = Annotated[
    bool,
    typer.Option(
        "--centred",
        help="Remove the mean direction of all N first; unrelated vectors then have -1/(N-1).",
    ),
]


def show(
    path: Annotated[
        Path, typer.Argument(metavar="PATH", help="A delta, vector, checkpoint or run.")
    ],
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Print what a directory is and what made it."""
    found = describe(path)
    known = [name for name in (*_TABLES, "by_tensor") if isinstance(found.get(name), dict)]
    tables = {} if as_json else {name: found.pop(name) for name in known}
    options.show(found, as_json=as_json, text=lambda: options.yaml_text(found))
    for name in _TABLES if tables else ():
        import pandas as pd

        from personality_vector.report.tables import print_frame

        print_frame(
            f"norms of {name}",
            pd.DataFrame([{"": group, **total} for group, total in tables[name].items()]),
        )


def describe(path: Path) -> dict[str, Any]:
    """Return what a directory is, as JSON-like data."""
    from personality_vector.checkpoint.folder import read_json, read_manifest
    from personality_vector.delta import is_adapter, is_saved_delta

    manifest = read_manifest(path)
    summary = {key: value for key, value in manifest.items() if key not in _BULKY}
    if is_saved_delta(path):
        return {"path": str(path), **summary, **_delta(path)}
    if is_adapter(path):
        config = read_json(path / "adapter_config.json")
        adapter = {key: config.get(key) for key in _OF_ADAPTERS}
        return {"path": str(path), "kind": "adapter", **summary, "adapter": adapter}
    if manifest.get("kind") not in (None, "merge", "train"):
        return {"path": str(path), **summary}
    checkpoint = pv.Checkpoint.open(path)
    return {
        "path": str(path),
        "kind": "checkpoint",
        **summary,
        "model_type": checkpoint.config.get("model_type"),
        "tensors": checkpoint.fingerprint.tensors,
        "parameters": checkpoint.fingerprint.parameters,
        "fingerprint": checkpoint.fingerprint.digest,
    }


def _delta(path: Path) -> dict[str, Any]:
    """Return what the record says; no tensor is read."""
    from personality_vector.delta import layer_of, module_of, read_record

    record = read_record(path)

    def shown(total: "Total") -> dict[str, Any]:
        return asdict(total) | ({"kept": total.kept} if record.rank else {})

    return {
        "restores_the_fine_tune": bool(record.tuned_dtypes or record.reference),
        **({"reference": record.reference.model_dump()} if record.reference else {}),
        **shown(record.total),
        "layers": {k: shown(total) for k, total in record.totals(layer_of).items()},
        "modules": {k: shown(total) for k, total in record.totals(module_of).items()},
        "by_tensor": {name: row.model_dump(mode="json") for name, row in record.tensors.items()},
    }


def similarity(
    vectors: Vectors,
    base: Base = None,
    centred: Centred = False,
    per_layer: Annotated[
        bool, typer.Option("--per-layer", help="Compare the vectors layer by layer as well.")
    ] = False,
    figure: options.Figure = None,
    force: Annotated[bool, typer.Option("--force", help="Replace FILE.")] = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Print the cosines between vectors: deltas of weights, or steering vectors."""
    if len(vectors) < 2:
        raise RecipeError("similarity needs at least two vectors")
    options.require_drawable(figure, force=force)
    import pandas as pd

    found = _compare(vectors, base)
    cosine = found.cosine(centred=centred)
    by_layer = {name: found.cosine(name, centred=centred) for name in found.grams if per_layer}
    labels = [f"{number} {label}" for number, label in enumerate(found.labels, start=1)]
    whole = pd.DataFrame(cosine.numpy(), index=labels, columns=labels)
    if figure is not None:
        from personality_vector.report.figures import save_figure
        from personality_vector.report.matrices import cosine_figure

        drawn = cosine_figure(
            _pairs(by_layer, found.labels) if per_layer else whole, centred=centred
        )
        save_figure(drawn, figure.parent, figure.stem, figure.suffix)
    if as_json:
        result = {"labels": labels, "centred": centred, "cosine": cosine.tolist()}
        if per_layer:
            result["layers"] = {layer: cosines.tolist() for layer, cosines in by_layer.items()}
        options.show(options.without_nan(result), as_json=True, text=str)
        return
    from personality_vector.report.tables import print_frame

    title = "cosine, centred" if centred else "cosine"
    print_frame(title, whole.reset_index(names=""))
    if by_layer:
        numbers = [str(number) for number in range(1, len(whole) + 1)]
        print_frame(f"{title}, by layer", _pairs(by_layer, numbers).reset_index(names=""))


def _compare(paths: Sequence[str], base: str | None) -> "Similarity":
    """Return the similarity of deltas or of steering vectors, all of one kind."""
    from personality_vector.checkpoint import read_manifest
    from personality_vector.delta import is_saved_delta, open_delta
    from personality_vector.delta.similarity import similarity

    steering = [path for path in paths if read_manifest(Path(path)).get("kind") == _VECTOR]
    if steering:
        if others := [path for path in paths if path not in steering]:
            raise RecipeError(
                f"{steering[0]} is a steering vector and {others[0]} is not; compare one kind"
            )
        if base is not None:
            raise RecipeError(f"--base {base}: steering vectors are compared without a base")
        return _of_directions(paths)
    unsaved = [path for path in paths if not is_saved_delta(Path(path))]
    if unsaved and base is None:
        raise RecipeError(
            f"{unsaved[0]}: is not a saved delta; of a checkpoint or adapter, give the model that "
            "it was fine-tuned from as --base"
        )
    if base is None:
        return similarity([pv.Delta.load(path) for path in paths])
    start = pv.Checkpoint.open(base)
    return similarity([open_delta(path, start) for path in paths])


def _of_directions(paths: Sequence[str]) -> "Similarity":
    import torch

    from personality_vector.delta.similarity import Similarity, inner_products
    from personality_vector.merging.fusion import require_one_space

    vectors = [pv.SteeringVector.load(path) for path in paths]
    require_one_space(vectors)
    rows = {layer: torch.stack([v[layer] for v in vectors]) for layer in vectors[0].layers}
    return Similarity(
        tuple(vector.label for vector in vectors),
        {f"layer {layer}": inner_products(row) for layer, row in rows.items()},
    )


def _pairs(by_layer: "Mapping[str, Tensor]", labels: Sequence[str]) -> "pd.DataFrame":
    """Return a row of every layer, with a column of every two vectors."""
    import pandas as pd

    pairs = list(combinations(range(len(labels)), 2))
    rows = {layer: [float(cosine[pair]) for pair in pairs] for layer, cosine in by_layer.items()}
    return pd.DataFrame.from_dict(
        rows, orient="index", columns=[" and ".join(pair) for pair in combinations(labels, 2)]
    )
