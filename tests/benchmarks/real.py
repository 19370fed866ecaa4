"""Everything a user does, on a real chat model: commands, times, peak memory, what a sweep takes.

    make real [CHATS=DIR]

The model is SmolLM2-135M-Instruct (`make smollm2`). What it replies under the system prompts of
the shipped persona gives a steering vector, and, without those prompts, the chats that two LoRAs
are trained on; `--chats DIR` names other ones, `DIR/extraversion-high.jsonl` and `-low.jsonl`.
Half the difference of the two is swept. Steps whose output is there are not repeated.
"""

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
import yaml

sys.path.insert(0, str(Path(__file__).parent / "merging"))

from runner import markdown, measure

from personality_vector.elicitation.rollouts import ROLLOUTS
from personality_vector.recipes.reading import read_recipe
from personality_vector.study.recipe import SweepRecipe, open_study
from personality_vector.study.run import Run
from personality_vector.subject.chat import Chat, question, render
from personality_vector.subject.encoding import encode_prompts
from personality_vector.subject.subject import Subject

MODEL = "builtin:smollm2"
BLOCKS, LAYER = 30, 14
TOKENS = 64
INSTRUMENT = "builtin:eval/instruments/interview.yaml"
ASKED: list[dict[str, Any]] = [
    {"likelihood": {"traits": ["extraversion"], "limit": 20}},
    {
        "interview": {
            "traits": ["extraversion"],
            "instrument": INSTRUMENT,
            "generation": {"max_new_tokens": TOKENS},
            "judges": ["classifier"],
        }
    },
]
PERSONA = "builtin:training/steering/personas/extraversion.yaml"
DRAWN = {"pairs": 4, "questions": 20, "samples": 1, "max_new_tokens": TOKENS}
# Four batches of 4 make the update of one of 16, in two fifths of its memory.
SFT = {
    "lora": {"rank": 16, "alpha": 32},
    "learning_rate": 2e-4,
    "epochs": 1,
    "batch_size": 4,
    "gradient_accumulation": 4,
}
BUDGET = (
    ("model", "from the Hub, else converted from a package of 93 MB", 1),
    ("answer", "25 answers, 40 statements", 2),
    ("extract", "2 x 80 replies of at most 64 tokens", 4),
    ("train", "two LoRAs of rank 16, 160 replies each (or those 80), 1 epoch", 5),
    ("merge, verify", "base + high - low", 1),
    ("sweep", "7 points: 25 answers, 40 statements, 1,500 tokens compared", 7),
    ("steer", "4 points of the same", 4),
    ("bake, export", "one layer, and the proof that it steers as hooks do", 3),
    ("generate", "25 answers by transformers alone and in a cell, in turns", 3),
)
"""Step, what it takes, minutes on two cores."""


def main() -> None:
    """Print the budget, take every step, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/real"))
    parser.add_argument("--chats", type=Path, help="chats of both poles of extraversion")
    given = parser.parse_args()
    print(f"Budget: {sum(minutes for *_, minutes in BUDGET)} minutes on two cores, 6 GB of memory.")
    rows = [[step, what, str(minutes)] for step, what, minutes in BUDGET]
    print(markdown(["step", "what", "minutes"], rows), flush=True)
    given.out.mkdir(parents=True, exist_ok=True)
    rows = [taken(given.out, *step) for step in steps(given.out, given.chats)]
    print(markdown(["step", "command", "minutes", "CPU minutes", "peak memory, GB"], rows))
    print(f"\n{swept(given.out / 'sweep')}\n\n{shares(given.out / 'sweep')}")
    print(f"\n{swept(given.out / 'steer')}\n\n{paces(given.out / 'sweep.yaml')}")


def steps(out: Path, chats: Path | None) -> Iterator[tuple[str, list[str]]]:
    """Yield each step's name, which is that of its output, and its command."""
    yield "model", ["make", "smollm2"]
    yield "answer", pvec(out, "answer", "eval", {"model": MODEL, "measures": ASKED})
    elicited = {"model": MODEL, "persona": PERSONA, "rollouts": DRAWN, "judge": "none"}
    yield "vector", pvec(out, "vector", "steer extract", elicited)
    source = chats or replies(out / f"vector.{ROLLOUTS}", out / "chats")
    for level in ("high", "low"):
        learned = {
            "base": MODEL,
            "pole": f"extraversion:{level}",
            "data": {"source": str((source / f"extraversion-{level}.jsonl").resolve())},
            "sft": SFT,
        }
        yield f"lora-{level}", pvec(out, f"lora-{level}", "train", learned)
    yield from merged(out)
    yield from steered(out)


def merged(out: Path) -> Iterator[tuple[str, list[str]]]:
    """Yield the steps with weights: half the difference of the poles is the vector."""
    high, low = (str((out / f"lora-{level}").resolve()) for level in ("high", "low"))
    terms = [{"tuned": high, "alpha": 1.0}, {"tuned": low, "alpha": -1.0}]
    yield "merged", pvec(out, "merged", "merge", {"base": MODEL, "terms": terms})
    words = ["--base", MODEL, "--term", f"{high}=1", "--term", f"{low}=-1"]
    yield "verify", ["pvec", "verify", str(out / "merged"), *words]
    half = [{**term, "alpha": term["alpha"] / 2} for term in terms]
    weights = {"label": "weights", "terms": half}
    yield "sweep", pvec(out, "sweep", "sweep", measured(weights, [-2.0, -1.0, 0.5, 1.0, 2.0, 3.0]))


def steered(out: Path) -> Iterator[tuple[str, list[str]]]:
    """Yield the steps with activations."""
    vector, where = str(out / "vector"), ["--layer", str(LAYER), "--coefficient", "1"]
    steering = {"label": "activations", "vector": str(Path(vector).resolve()), "layers": [LAYER]}
    yield "steer", pvec(out, "steer", "sweep", measured(steering, [-2.0, -1.0, 1.0, 2.0]))
    at = ["--model", MODEL, *where, "--out", str(out / "baked")]
    yield "baked", ["pvec", "steer", "bake", vector, *at]
    at = [*where, "--blocks", str(BLOCKS), "--out", str(out / "vector.gguf")]
    yield "vector.gguf", ["pvec", "steer", "export-gguf", vector, *at]


def measured(intervention: dict[str, Any], strengths: list[float]) -> dict[str, Any]:
    """Return the recipe of a sweep."""
    return {
        "base": MODEL,
        "interventions": [intervention],
        "strengths": strengths,
        "measures": [*ASKED, {"divergence": {"max_tokens": 1500}}, "guards"],
    }


def pvec(out: Path, name: str, verb: str, recipe: dict[str, Any]) -> list[str]:
    """Write a recipe and return the command that follows it."""
    file = out / f"{name}.yaml"
    file.write_text(yaml.safe_dump(recipe, sort_keys=False), encoding="utf-8")
    return ["pvec", *verb.split(), str(file), "--out", str(out / name)]


def replies(rollouts: Path, out: Path) -> Path:
    """Write the replies of both sides as chats without the system prompts that drew them."""
    rows = [json.loads(line) for line in rollouts.read_text(encoding="utf-8").splitlines()]
    out.mkdir(exist_ok=True)
    for level, side in (("high", "positive"), ("low", "negative")):
        lines = [
            json.dumps({"prompt": row["question"], "completion": row["reply"]})
            for row in rows
            if row["side"] == side and row["reply"]
        ]
        (out / f"extraversion-{level}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return out


def taken(out: Path, name: str, command: list[str]) -> list[str]:
    """Take a step, or recall it, and return its row."""
    file = out / f"{name}.usage.json"
    if not file.exists():
        print("$", *command, flush=True)
        found = Path(sys.executable).with_name(command[0])
        usage = measure([found if found.exists() else command[0], *command[1:]], cores())
        file.write_text(json.dumps(asdict(usage)), encoding="utf-8")
    used = json.loads(file.read_text(encoding="utf-8"))
    minutes = (f"{used[key] / 60:.1f}" for key in ("wall", "cpu"))
    return [name, f"`{' '.join(command[:3])}`", *minutes, f"{used['resident'] / 1e9:.1f}"]


def swept(folder: Path) -> str:
    """Return what was measured at each strength."""
    table = Run(folder).readings()
    table = table[table["trait"].isin(["", "extraversion"])]
    wide = table.pivot_table("value", ["intervention", "strength"], "measure")
    shown = wide.reset_index()
    rows = [
        [f"{cell:.3g}" if isinstance(cell, float) else str(cell) for cell in row]
        for row in shown.to_numpy()
    ]
    return markdown(list(shown.columns), rows)


def shares(folder: Path) -> str:
    """Return where the time of a sweep went."""
    used = json.loads((folder.parent / "sweep.usage.json").read_text(encoding="utf-8"))
    seconds = Run(folder).cells().groupby("measure")["seconds"].sum()
    parts = [*seconds.items(), ("loading, editing, judging, report", used["wall"] - seconds.sum())]
    rows = [[name, f"{took:.0f}", f"{took / used['wall']:.0%}"] for name, took in parts]
    return markdown(["part of the sweep", "seconds", "share"], rows)


def paces(recipe: Path, rounds: int = 7) -> str:
    """Return tokens per second of a cell, and of `generate` alone by the same edited model.

    A cell is the edit of the weights, the interview and the weights put back. `generate` alone is
    timed within it, on the same prompts, before the interview or after it, in turns.
    """
    torch.set_num_threads(cores())
    study = open_study(read_recipe(recipe, SweepRecipe))
    base, arm = Subject.load(study.base), study.arm("weights").at(0)
    interview = next(one for one in study.measures if one.name == "interview")
    texts = [item.text for item in interview.asking.instrument.items]
    chats = [question(text, system=interview.asking.instrument.system) for text in texts]
    found = []
    for seed in range(rounds + 1):
        started = time.perf_counter()
        with arm.applied(replace(base, memory={}), 1.0) as subject:
            before = bare(subject, chats) if seed % 2 else None
            asked = time.perf_counter()
            answers = interview.collect(subject, seed)
            made, asking = sum(answer.tokens_out for answer in answers), time.perf_counter() - asked
            tokens, alone = before or bare(subject, chats)
        cell = time.perf_counter() - started - alone
        found.append((tokens / alone, made / cell, asking / cell))
    found = found[1:]  # what is read and compiled for the first time is no cell's
    rows = [
        [f"{alone:.1f}", f"{cell:.1f}", f"{cell / alone:.2f}", f"{asking:.0%}"]
        for alone, cell, asking in found
    ]
    ratio = statistics.median(cell / alone for alone, cell, _ in found)
    heads = ["generate alone, tokens/s", "a cell of the sweep", "ratio", "of it asking"]
    return (
        f"{markdown(heads, rows)}\n\nMedian of the ratios: {ratio:.2f}, "
        f"{len(chats)} chats in a batch."
    )


def bare(base: Subject, chats: Sequence[Chat]) -> tuple[int, float]:
    """Return how many tokens `generate` makes of these chats in one batch, and its seconds."""
    started = time.perf_counter()
    pad = base.tokenizer.pad_token_id
    texts = [render(base.tokenizer, chat, reply_follows=True) for chat in chats]
    prompts = encode_prompts(base.tokenizer, texts, chats)
    with torch.no_grad():
        tokens = base.model.generate(
            **prompts,
            max_new_tokens=TOKENS,
            do_sample=True,
            temperature=0.6,
            top_k=None,
            pad_token_id=pad,
        )
    took = time.perf_counter() - started
    is_padding = tokens[:, prompts["input_ids"].shape[1] :] == pad
    return int((is_padding.cumsum(1) <= 1).sum()), took  # the first one ends a reply


def cores() -> int:
    """Return the number of cores of this process."""
    return len(os.sched_getaffinity(0))


if __name__ == "__main__":
    main()
