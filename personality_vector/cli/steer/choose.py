"""``pvec steer choose``: find the layer and the range of strengths of a steering vector."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from personality_vector.cli import options
from personality_vector.study.recipe import ChooseRecipe

if TYPE_CHECKING:
    from personality_vector.study.choose.choice import Choice


def check(recipe: ChooseRecipe) -> dict[str, Any]:
    """Open every input."""
    from personality_vector.study.choose.run import Inputs

    made_from = Inputs.open(recipe).made_from(recipe)
    return {key: made_from[key] for key in ("contents", "statements")}


def choose(recipe: ChooseRecipe, out: Path, *, force: bool, as_json: bool) -> None:
    """Choose the layer and the range of strengths of a steering vector.

    One pass ranks the layers; the best few are verified by generation, at growing strengths until
    coherence falls below the floor. What is measured is kept in --out with .run behind it: the same
    command resumes after an interruption, and another floor or other shares measure only what is
    missing. --force replaces the choice and keeps the measurements.
    """
    from personality_vector.checkpoint import AtomicDirectory
    from personality_vector.report.choice import draw_choice
    from personality_vector.study.choose.run import choose

    AtomicDirectory(out, force=force)  # refuses an output that exists before the work, not after
    choice = choose(recipe, out.with_name(f"{out.name}.run"))
    choice.save(out, force=force, draw=draw_choice)
    if as_json:
        options.show({"out": str(out), **choice.record()}, as_json=True, text=str)
        return
    _print(choice, recipe, out)


def _print(choice: "Choice", recipe: ChooseRecipe, out: Path) -> None:
    from personality_vector.report.tables import print_frame

    layers = choice.layer_table()[
        ["layer", "d_prime", "auc", "auc_low", "auc_high", "slope", "rank", "swing"]
    ]
    layers["rank"] = layers["rank"].astype("string").fillna("-")
    columns = ["coefficient", "share", "shift", "judge", "kl_to_base", "coherence", "usable"]
    curve = choice.curve_table().query("layer == @choice.layer")[columns]
    seen = "which the vector may have been extracted from"
    print_frame(f"layers of {choice.label}", layers)
    options.show(None, as_json=False, text=lambda: f"d' and auc on the {choice.part} part, {seen}")
    print_frame(f"strengths at layer {choice.layer}", curve)
    ends = f"{choice.lowest:.3g} to {choice.highest:.3g}"
    where = "" if recipe.positions == "all" else f", positions: {recipe.positions}"
    options.show(
        None,
        as_json=False,
        text=lambda: (
            f"{out}: steer at layer {choice.layer}, coefficients {ends}; in a recipe:\n"
            f"  {{label: {choice.label}, vector: {recipe.vector}, layers: [{choice.layer}]{where}, "
            f"strengths: [{choice.lowest:.4g}, {choice.highest:.4g}]}}"
        ),
    )
