"""``pvec steer write-twins``, ``creativity`` and ``creativity-layer``: after Olson et al."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

import personality_vector as pv
from personality_vector.cli import options
from personality_vector.cli.steer import along, extract
from personality_vector.errors import DataError, OutputExistsError, require_new
from personality_vector.lab import BUILTIN, builtin

_SHIPPED = f"{BUILTIN}training/steering/creativity.jsonl"
Pairs = Annotated[
    str,
    typer.Option("--pairs", metavar="FILE", help="JSONL file with rows {creative, uncreative}."),
]


def write_twins(
    prompts: Annotated[
        Path, typer.Argument(metavar="PROMPTS", help="A text file, a creative prompt on each line.")
    ],
    out: Annotated[Path, typer.Option("--out", metavar="FILE.jsonl", help="The file to write.")],
    endpoint: extract.Server = None,
    model: extract.ServerModel = None,
    api_key_env: extract.KeyVariable = "OPENAI_API_KEY",
    local: extract.LocalWriter = None,
    seed: extract.WriterSeed = 0,
    settings: options.ChatSettings = [],
    force: Annotated[bool, typer.Option("--force", help="Replace a file of pairs.")] = False,
    as_json: options.Json = False,
) -> None:
    """Let a model write the uncreative twin of each prompt of a file.

    Prompts whose twin is empty, the same or far longer are left out and listed. Read the file
    before you use it.
    """
    from personality_vector.data.chats import read_prompts
    from personality_vector.elicitation.writing import SHORT, write_twins
    from personality_vector.files import write_file

    _require_replaceable(out, force=force)
    asked = read_prompts(prompts)
    server = (model, endpoint, api_key_env)
    found = write_twins(asked, extract.writer_of("twin", server, local, settings, seed, SHORT))
    rows = [json.dumps(pair.model_dump(), ensure_ascii=False) for pair in found.pairs]
    write_file(out, "".join(f"{row}\n" for row in rows).encode())
    left = [f"left out {prompt[:60]!r}: {why}" for prompt, why in found.unusable.items()]
    options.show(
        {"out": str(out), "pairs": len(rows), "unusable": found.unusable},
        as_json=as_json,
        text=lambda: "\n".join([f"{out}: {len(rows)} of {len(asked)} prompts with a twin", *left]),
    )


def creativity(
    *,
    model: options.Model,
    pairs: Pairs = _SHIPPED,
    part: Annotated[
        Literal["train", "all"],
        typer.Option("--part", help="Pairs to learn from; all leaves none to choose or test with."),
    ] = "train",
    settings: options.ChatSettings = [],
    batch_size: options.BatchSize = 16,
    dtype: options.Dtype = "float32",
    device: options.Device = "auto",
    out: options.OutDir,
    dry_run: options.DryRun = False,
    force: options.Force = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Save the creativity direction of Olson et al., of unit length at every layer.

    It is made from the train part of the pairs: half of them, by a hash of the prompt.
    """
    from personality_vector.data.creativity import read_creativity_pairs
    from personality_vector.elicitation.extract import creativity_direction

    read = read_creativity_pairs(_file(pairs), "train" if part == "train" else None)
    template = options.template(settings)
    checkpoint, place = options.opened(model, device)
    if options.plan_only(
        lambda: {"model": str(checkpoint.fingerprint), "pairs": len(read)},
        *(out, dry_run, force, as_json),
    ):
        return
    subject = pv.Subject.load(checkpoint, dtype=dtype, device=place, template=template)
    vector = creativity_direction(subject.model, subject.tokenizer, read, batch_size=batch_size)
    options.save_vector(vector, checkpoint, out, force=force, as_json=as_json)


def creativity_layer(
    vector: along.Vector,
    *,
    model: options.Model,
    pairs: Pairs = _SHIPPED,
    layer: options.Layers = [],
    max_new_tokens: options.LongestReply = 64,
    seed: Annotated[int, typer.Option("--seed", help="Seed of random numbers.")] = 0,
    settings: options.ChatSettings = [],
    batch_size: options.BatchSize = 16,
    dtype: options.Dtype = "float32",
    device: options.Device = "auto",
    dry_run: options.DryRun = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Choose the layer whose score best tells replies to creative prompts from the others.

    The model replies to both prompts of the pairs of the validation part, which choose, and of the
    test part, which is reported at the chosen layer. By default every layer of VECTOR but the last
    is tried; a layer where the vector does not make the creative replies likelier is not chosen.
    """
    from personality_vector.data.creativity import SPLITS, read_creativity_pairs
    from personality_vector.study.choose.creativity import choose_layer

    file, found, template = _file(pairs), pv.SteeringVector.load(vector), options.template(settings)
    read = {each: read_creativity_pairs(file, each) for each in SPLITS[1:]}
    checkpoint, place = options.opened(model, device)
    tried = along.fitting(found, layer or found.layers[:-1], checkpoint, found.model)
    counts = {str(each): len(own) for each, own in read.items()}
    if options.plan_only(
        lambda: {"vector": found.label, "layers": list(tried), **counts},
        *(None, dry_run, False, as_json),
    ):
        return
    subject = pv.Subject.load(checkpoint, dtype=dtype, device=place, template=template)
    sampling = pv.Sampling(max_new_tokens, temperature=1.0, batch_size=batch_size)
    asked = replace(subject, sampling=sampling)
    chosen = choose_layer(asked, found, read, tried, seed, batch_size)
    _show_layers(str(vector), found.label, chosen, as_json=as_json)


def _show_layers(vector: str, label: str, chosen: Any, *, as_json: bool) -> None:
    import pandas as pd

    from personality_vector.report.tables import print_frame

    rows = [
        {"layer": one.layer, **asdict(one.separation)}
        | {"residual_norm": one.residual_norm, "slope": one.slope}
        for one in chosen.layers
    ]
    test = asdict(chosen.test)
    if as_json:
        shown = {"vector": vector, "layer": chosen.layer, "layers": rows, "test": test}
        options.show(options.without_nan(shown), as_json=True, text=str)
        return
    print_frame(f"layers of {label}, on the validation part", pd.DataFrame(rows))
    typer.echo(
        f"layer {chosen.layer} separates best; on the test part its auc is {test['auc']:.3g} "
        f"(95 % interval {test['auc_low']:.3g} to {test['auc_high']:.3g}); in a recipe:\n"
        f"  {{label: {label}, vector: {vector}, layers: [{chosen.layer}], strengths: [3.0]}}"
    )


def _file(pairs: str) -> Path:
    return builtin(pairs) if pairs.startswith(BUILTIN) else Path(pairs)


def _require_replaceable(out: Path, *, force: bool) -> None:
    """Refuse to write over a file, unless ``force`` is on and it holds pairs."""
    from personality_vector.data.creativity import read_creativity_pairs

    require_new(out, force=force)
    if out.exists():
        try:
            read_creativity_pairs(out)
        except DataError as error:
            raise OutputExistsError(
                f"{out}: does not hold pairs of prompts, so it is never replaced; choose another "
                "--out"
            ) from error
