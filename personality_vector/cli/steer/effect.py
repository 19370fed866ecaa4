"""``pvec steer choose`` and ``pvec steer monitor``: what a steering vector does to a model."""

from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING, Annotated, Any

import typer

import personality_vector as pv
from personality_vector.cli import options
from personality_vector.errors import RecipeError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from personality_vector.study.choose.choice import Choice
    from personality_vector.study.recipe import ChooseRecipe
    from personality_vector.subject.chat import Chat

_SHOWN = 48
"""Number of characters that a table shows of a text."""
OneLayer = Annotated[
    int | None,
    typer.Option("--layer", help="0-based block, -1 for the last; needed if VECTOR has several."),
]
AnotherModel = Annotated[
    bool,
    typer.Option("--another-model", help="Accept a VECTOR of another model, such as its base."),
]
_REMEDY = "if one is fine-tuned from the other, add --another-model"


def check(recipe: "ChooseRecipe") -> dict[str, Any]:
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
    from personality_vector.report.choice import draw_choice
    from personality_vector.study.choose.run import choose

    options.require_writable(out, "choice", force=force)
    with options.resumable(out):
        choice = choose(recipe, out.with_name(f"{out.name}.run"))
    choice.save(out, force=force, draw=draw_choice)
    if as_json:
        options.show({"out": str(out), **choice.record()}, as_json=True, text=str)
        return
    _print_choice(choice, recipe, out)


def monitor(
    vector: Annotated[Path, typer.Argument(metavar="VECTOR", help="A steering vector.")],
    model: Annotated[
        str, typer.Option("--model", help="The model: a directory, Hub id or builtin:demo.")
    ],
    prompts: options.Prompts,
    layer: OneLayer = None,
    system: Annotated[str | None, typer.Option("--system", help="A system message.")] = None,
    max_new_tokens: options.LongestReply = 64,
    batch_size: options.BatchSize = 16,
    another_model: AnotherModel = False,
    dtype: options.Dtype = "float32",
    device: options.Device = "auto",
    dry_run: options.DryRun = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Print how far each prompt, before generation, and a greedy reply lie along VECTOR.

    Two cosines with VECTOR are printed as well: that of the mean over the prompt, which a gate
    compares with its threshold, and the mean over the tokens of the reply, which is the creativity
    score of Olson et al.
    """
    from personality_vector.data.chats import read_prompts
    from personality_vector.steering import resolve_layers
    from personality_vector.steering.fit import require_made_from
    from personality_vector.subject.chat import question

    texts = read_prompts(prompts)
    found, checkpoint = pv.SteeringVector.load(vector), pv.Checkpoint.open(model)
    if layer is None and len(found.layers) > 1:
        raise RecipeError(
            f"{found.label} has directions for layers {list(found.layers)}; choose one with --layer"
        )
    named = found.layers[0] if layer is None else layer
    if not another_model:
        require_made_from(found.label, found.model, checkpoint, _REMEDY)

    def plan() -> dict[str, Any]:
        if named >= 0:
            found.norm(named)  # refuses a layer that the vector has no direction for
        model = {"model": str(checkpoint.fingerprint), "prompts": len(texts)}
        return {"vector": found.label, "layer": named, **model, "max_new_tokens": max_new_tokens}

    if options.plan_only(plan, None, dry_run=dry_run, force=False, as_json=as_json):
        return
    subject = pv.Subject.load(checkpoint, dtype=dtype, device=device)
    (place,) = resolve_layers(subject.model, [named])
    found.norm(place)  # refuses a layer without a direction before anything is read
    chats = [question(text, system=system) for text in texts]
    rows = _measured(subject, chats, (found, place), (max_new_tokens, batch_size))
    if as_json:
        result = {"vector": found.label, "layer": place, "model": str(checkpoint.path)}
        options.show({**result, "prompts": rows}, as_json=True, text=str)
        return
    _print_projections(f"projection on {found.label}, layer {place}", rows)


def _print_projections(title: str, rows: "Sequence[dict[str, Any]]") -> None:
    import pandas as pd

    from personality_vector.report.tables import print_frame

    frame = pd.DataFrame(rows).astype(dict.fromkeys(("before", "response", "reply_cosine"), float))
    for column in ("prompt", "reply"):
        frame[column] = [shorten(text, _SHOWN, placeholder="...") for text in frame[column]]
    print_frame(title, frame)


def _print_choice(choice: "Choice", recipe: "ChooseRecipe", out: Path) -> None:
    from personality_vector.report.tables import print_frame

    layers = choice.layer_table()[
        ["layer", "d_prime", "auc", "auc_low", "auc_high", "slope", "rank", "swing"]
    ]
    layers["rank"] = layers["rank"].astype("string").fillna("-")
    columns = ["coefficient", "share", "shift", "judge", "kl_to_base", "coherence", "usable"]
    curve = choice.curve_table().query("layer == @choice.layer")[columns]
    seen = "which the vector may have been extracted from"
    print_frame(f"layers of {choice.label}", layers)
    typer.echo(f"d' and auc on the {choice.part} part, {seen}")
    print_frame(f"strengths at layer {choice.layer}", curve)
    ends = f"{choice.lowest:.3g} to {choice.highest:.3g}"
    where = "" if recipe.positions == "all" else f", positions: {recipe.positions}"
    typer.echo(
        f"{out}: steer at layer {choice.layer}, coefficients {ends}; in a recipe:\n"
        f"  {{label: {choice.label}, vector: {recipe.vector}, layers: [{choice.layer}]{where}, "
        f"strengths: [{choice.lowest:.4g}, {choice.highest:.4g}]}}"
    )


def _measured(
    subject: "pv.Subject",
    chats: "Sequence[Chat]",
    along: "tuple[pv.SteeringVector, int]",
    sizes: tuple[int, int],
) -> list[dict[str, Any]]:
    """Return a row of each chat: what was asked and said, its projections and cosines."""
    from torch import cosine_similarity

    from personality_vector.steering.activations import Reader
    from personality_vector.steering.monitor import creativity_scores, projections
    from personality_vector.subject.chat import answered
    from personality_vector.subject.subject import generate_replies

    (vector, layer), (longest, batch_size) = along, sizes
    model, tokenizer = subject.model, subject.tokenizer
    before = projections(model, tokenizer, chats, *along, "prompt_last", batch_size)
    means = Reader(model, tokenizer, [layer], "prompt_mean", batch_size).pooled(chats)
    gates = cosine_similarity(means[layer], vector[layer][None], dim=-1)
    greedy = pv.Sampling(max_new_tokens=longest, temperature=0.0, batch_size=batch_size)
    drawn = generate_replies(model, tokenizer, chats, greedy, seed=0)
    replies = [reply.text for reply in drawn]
    said = [i for i, reply in enumerate(replies) if reply]
    replied = [answered(chats[i], replies[i]) for i in said]
    after, scores = (dict.fromkeys(range(len(chats))) for _ in range(2))
    if said:
        found = projections(model, tokenizer, replied, *along, "response_mean", batch_size)
        after |= dict(zip(said, found.tolist(), strict=True))
        scored = creativity_scores(model, tokenizer, replied, vector[layer], layer, batch_size)
        scores |= {i: score.mean().item() for i, score in zip(said, scored, strict=True)}
    return [
        {
            "prompt": chat[-1]["content"],
            "prompt_cosine": gates[i].item(),
            "before": before[i].item(),
            "response": after[i],
            "reply_cosine": scores[i],
            "reply": replies[i],
        }
        for i, chat in enumerate(chats)
    ]
