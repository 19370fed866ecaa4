"""``pvec steer sae``: which features of a sparse autoencoder a steering vector points along."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
import yaml

import personality_vector as pv
from personality_vector.cli import options
from personality_vector.cli.steer import along
from personality_vector.errors import RecipeError
from personality_vector.traits import BIG_FIVE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from personality_vector.steering.sae import Dictionary, Feature

_STRENGTHS = [-2.0, -1.0, 1.0, 2.0]
Weights = Annotated[
    Path,
    typer.Option(
        "--weights",
        metavar="FILE",
        help="sae_weights.safetensors of SAELens, its folder, or a file with decoder.weight.",
    ),
]
Layer = Annotated[
    int | None,
    typer.Option(
        "--layer", help="0-based decoder block. Default: that of the autoencoder's cfg.json."
    ),
]
Top = Annotated[int, typer.Option("--top", min=1, help="Number of features.")]
OutOption = Annotated[Path | None, typer.Option("--out", help="Directory to write.")]
Model = Annotated[
    str | None,
    typer.Option(
        "--model", help="The model: a directory, Hub id, builtin:demo or builtin:smollm2."
    ),
]


def sae(
    vector: along.Vector,
    *,
    weights: Weights,
    model: Model = None,
    layer: Layer = None,
    top: Top = 10,
    out: OutOption = None,
    dry_run: options.DryRun = False,
    force: options.Force = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Print the cosines of VECTOR with what the features of a sparse autoencoder decode to.

    Those with the largest magnitude, largest first. With --out and --model each is written as a
    steering vector as long as VECTOR, and with them OUT/sweep.yaml, which steers that model with
    VECTOR and each feature.
    """
    from personality_vector.steering.sae import Dictionary

    if (out is None) != (model is None):
        raise RecipeError("--out writes a sweep and --model says of which model; give both or none")
    found, dictionary = pv.SteeringVector.load(vector), Dictionary.open(weights)
    block = _layer(found, dictionary, layer)
    dictionary.require_width(found[block])
    if model is not None:
        along.fitting(found, [block], pv.Checkpoint.open(model), found.model)
    about: dict[str, Any] = {"vector": found.label, "layer": block, "weights": str(weights)}
    about |= {"features": dictionary.features}
    if options.plan_only(lambda: about, out, dry_run, force, as_json, kind="features"):
        return
    features = dictionary.nearest(found[block], top)
    if out is not None:
        _save(out, model, (vector, found, block), (dictionary, features), force=force)
    _show(about, features, out, as_json=as_json)


def _layer(vector: "pv.SteeringVector", dictionary: "Dictionary", layer: int | None) -> int:
    """Return ``--layer``, that of the dictionary, or the only one of the vector."""
    if layer is None and dictionary.layer is not None:
        return dictionary.layer
    if layer is None and dictionary.hook:
        raise RecipeError(
            f"{dictionary.file}: was trained on {dictionary.hook}, which is not the output of a "
            "block; name the block to compare at with --layer"
        )
    return along.chosen(vector, layer)


def _save(
    out: Path,
    model: str | None,
    steering: "tuple[Path, pv.SteeringVector, int]",
    found: "tuple[Dictionary, Sequence[Feature]]",
    *,
    force: bool,
) -> None:
    """Write the features and the sweep; the folder appears whole or not at all."""
    from personality_vector.files import AtomicDirectory
    from personality_vector.manifest import write_manifest
    from personality_vector.steering.sae import as_vectors

    (path, vector, layer), (dictionary, features) = steering, found
    names = [f"feature-{feature.number}" for feature in features]
    with AtomicDirectory(out, kind="features", force=force, inputs=[path]) as partial:
        for name, each in zip(names, as_vectors(dictionary, features, vector, layer), strict=True):
            each.save(partial / name)
        recipe = _sweep(model, (path, vector, layer), names)
        (partial / "sweep.yaml").write_text(recipe, encoding="utf-8")
        rows = [feature._asdict() for feature in features]
        content = {"vector": vector.label, "model": vector.model, "layer": layer}
        write_manifest(
            partial, "features", {**content, "dictionary": str(dictionary.file), "features": rows}
        )


def _sweep(
    model: str | None, steering: "tuple[Path, pv.SteeringVector, int]", names: "Sequence[str]"
) -> str:
    path, vector, layer = steering
    trait = vector.pole.trait if vector.pole and vector.pole.trait in BIG_FIVE else None
    own = {"label": vector.label or "vector", "vector": str(path.resolve()), "layers": [layer]}
    rows = [{"label": name, "vector": f"./{name}", "layers": [layer]} for name in names]
    recipe = {
        "base": str(Path(str(model)).resolve()) if Path(str(model)).is_dir() else model,
        "interventions": [own, *rows],
        "strengths": _STRENGTHS,
        "measures": [{"likelihood": {"traits": [trait]} if trait else {}}, "divergence"],
    }
    said = (
        "# Each is as long as the first at strength 1: a feature of an autoencoder, or its mirror."
    )
    return f"{said}\n{yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True)}"


def _show(
    about: dict[str, Any], features: "Sequence[Feature]", out: Path | None, *, as_json: bool
) -> None:
    import pandas as pd

    from personality_vector.report.tables import print_frame

    rows = [{"feature": one.number, "cosine": one.cosine, "norm": one.norm} for one in features]
    if as_json:
        written = {} if out is None else {"out": str(out)}
        options.show({**about, **written, "nearest": rows}, as_json=True, text=str)
        return
    print_frame(
        f"{about['vector']} at layer {about['layer']}: nearest of {about['features']} features",
        pd.DataFrame(rows, columns=["feature", "cosine", "norm"]),
    )
    if out is not None:
        typer.echo(f"{out}: {len(rows)} steering vectors; pvec sweep {out / 'sweep.yaml'}")
