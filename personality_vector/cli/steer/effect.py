"""``pvec steer monitor``, ``bake`` and ``export-gguf``: what a steering vector does to a model."""

from dataclasses import asdict
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING, Annotated, Any

import typer

import personality_vector as pv
from personality_vector.cli import options
from personality_vector.cli.steer import along
from personality_vector.errors import RecipeError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from personality_vector.subject.chat import Chat

_SHOWN = 48
"""Number of characters that a table shows of a text."""
AnotherModel = Annotated[
    bool,
    typer.Option("--another-model", help="Accept a VECTOR of another model, such as its base."),
]


def monitor(
    vector: along.Vector,
    *,
    model: options.Model,
    prompts: options.Prompts,
    layer: along.OneLayer = None,
    system: Annotated[str | None, typer.Option("--system", help="A system message.")] = None,
    max_new_tokens: options.LongestReply = 64,
    another_model: AnotherModel = False,
    settings: options.ChatSettings = [],
    batch_size: options.BatchSize = 16,
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
    from personality_vector.subject import question

    template = options.template(settings)
    chats = [question(text, system=system) for text in read_prompts(prompts)]
    found, (checkpoint, place) = pv.SteeringVector.load(vector), options.opened(model, device)
    made_from = "" if another_model else found.model
    remedy = "if one is fine-tuned from the other, add --another-model"
    named = along.fitting(found, [along.chosen(found, layer)], checkpoint, made_from, remedy)
    if options.plan_only(
        lambda: (
            {"vector": found.label, "layer": named[0], "model": str(checkpoint.fingerprint)}
            | {"prompts": len(chats), "max_new_tokens": max_new_tokens}
        ),
        *(None, dry_run, False, as_json),
    ):
        return
    subject = pv.Subject.load(checkpoint, dtype=dtype, device=place, template=template)
    (block,) = resolve_layers(subject.model, named)
    rows = _measured(subject, chats, (found, block), (max_new_tokens, batch_size))
    if as_json:
        result = {"vector": found.label, "layer": block, "model": str(checkpoint.path)}
        options.show({**result, "prompts": rows}, as_json=True, text=str)
    else:
        _print_projections(f"projection on {found.label}, layer {block}", rows)


def bake(
    vector: along.Vector,
    *,
    model: options.Model,
    layer: options.Layers,
    coefficient: Annotated[
        float | None, typer.Option("--coefficient", help="Factor on the vector; not with --ablate.")
    ] = None,
    route: Annotated[
        str, typer.Option("--route", help="auto, bias, convert (to Llama) or adapter (PEFT).")
    ] = "auto",
    ablate: Annotated[
        bool, typer.Option("--ablate", help="Remove the direction of one --layer from every layer.")
    ] = False,
    out: options.OutDir,
    dry_run: options.DryRun = False,
    force: options.Force = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Write a checkpoint that steers itself: at all positions, always, by a constant.

    Positions, gates and kept norms cannot be baked. The result is loaded in a new process and is
    published only if it gives the logits of the hooks. With --ablate no weight writes along the
    direction any more; the result is compared with hooks on the embedding, every attention and
    every block.
    """
    _require_consistent(layer, coefficient, route, ablate=ablate)
    from personality_vector.steering.bake import bake_ablation, route_for
    from personality_vector.subject.config import read_config

    read, checkpoint = pv.SteeringVector.load(vector), pv.Checkpoint.open(model)
    chosen = route_for(read_config(checkpoint.path), "ablate" if ablate else route)
    layers = along.fitting(read, layer, checkpoint, read.model)
    if options.plan_only(
        lambda: (
            {"vector": read.label, "model": str(checkpoint.fingerprint)}
            | {"layers": layers, "route": chosen, "coefficient": coefficient}
        ),
        *(out, dry_run, force, as_json),
        kind="bake",
    ):
        return
    if coefficient is None:
        done = bake_ablation(read, model, layer[0], out, force=force)
    else:
        done = pv.bake(read, model, layer, coefficient, out, route=route, force=force)
    proof = done.proof
    rounding = "" if proof.dtype == "float32" else f" ({proof.error_asked:.1e} with rounding)"
    options.show(
        {"out": str(out), "route": done.route, "proof": asdict(proof)},
        as_json=as_json,
        text=lambda: (
            f"{done.path}: route {done.route}; in a new process within {proof.error:.1e} of the "
            f"hooks' logits{rounding}, same {proof.greedy_tokens} greedy tokens"
        ),
    )


def export_gguf(
    vector: along.Vector,
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="File to write.")],
    layer: Annotated[
        list[int],
        typer.Option(
            "--layer", help="0-based decoder block, not 0; repeatable. Default: all of VECTOR."
        ),
    ] = [],
    coefficient: Annotated[
        float, typer.Option("--coefficient", help="Factor on the vector.")
    ] = 1.0,
    blocks: Annotated[
        int | None,
        typer.Option(
            "--blocks",
            metavar="N",
            min=1,
            help="Number of decoder blocks of the model: write zeros for those that are not "
            "steered, so that nothing stays of a vector loaded before into a running llama.cpp.",
        ),
    ] = None,
    model_hint: Annotated[
        str,
        typer.Option("--model-hint", help="Name of the architecture in llama.cpp, such as llama."),
    ] = "",
    force: options.Force = False,
    as_json: options.Json = False,
) -> None:
    """Write a control vector for llama.cpp, which steers all positions but cannot steer layer 0."""
    from personality_vector.steering.storage import export_gguf as export

    read = pv.SteeringVector.load(vector)
    layers = layer or list(read.layers)
    how: dict[str, Any] = {"coefficient": coefficient, "blocks": blocks}
    export(read, out, layers=layers, model_hint=model_hint, force=force, **how)
    zeros = f", zeros for the other blocks of {blocks}" if blocks else ""
    options.show(
        {"out": str(out), "layers": layers, **how},
        as_json=as_json,
        text=lambda: f"{out}: {len(layers)} directions for llama.cpp{zeros}",
    )


def _require_consistent(
    layer: list[int], coefficient: float | None, route: str, *, ablate: bool
) -> None:
    if ablate and (coefficient is not None or route != "auto"):
        raise RecipeError(
            "--ablate removes the whole direction: use it without --coefficient and --route"
        )
    if ablate and len(layer) != 1:
        raise RecipeError("--ablate takes the direction of one --layer and removes it everywhere")
    if not ablate and coefficient is None:
        raise RecipeError("give --coefficient, or --ablate")


def _print_projections(title: str, rows: "Sequence[dict[str, Any]]") -> None:
    import pandas as pd

    from personality_vector.report.tables import print_frame

    frame = pd.DataFrame(rows).astype(dict.fromkeys(("before", "response", "reply_cosine"), float))
    for column in ("prompt", "reply"):
        frame[column] = [shorten(text, _SHOWN, placeholder="...") for text in frame[column]]
    print_frame(title, frame)


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
    replies = [one.text for one in generate_replies(model, tokenizer, chats, greedy, seed=0)]
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
