"""A script: commands that are given what somebody broke, and how they answer.

``python -m tests.faults.fuzzed --headers 25000 --recipes 5000 --others 10000`` prints a row for
each door that a file comes in by, and ends with 1 if a law was broken: a command is done, or it
refuses in one sentence with a documented exit code; it shows no traceback; it takes at most 5
seconds of this process and 500 MB beyond what an empty command takes; and its inputs stay as they
are. Headers are read directly, and also held against the reader of safetensors.
"""

import argparse
import contextlib
import io
import json
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Generator
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from tests.faults import hostile

SECONDS, BYTES = 5.0, 500 << 20
CODES = {0, 1, 2, 4, 5, 6}


class Door(NamedTuple):
    """A file of the lab that is broken by ``change``, and the command that reads it."""

    file: str
    change: hostile.Change
    words: str


class Answer(NamedTuple):
    """How a command answered: its exit code or what it raised, what it said, what it took."""

    code: int | str
    said: str
    seconds: float
    bytes: int

    def fault(self) -> str:
        """Return which law was broken, or nothing."""
        if self.code not in CODES:
            return f"ended with {self.code}: {self.said[-600:]}"
        if self.seconds > SECONDS:
            return f"took {self.seconds:.1f} s"
        if self.bytes > BYTES:
            return f"took {self.bytes >> 20} MB"
        return self._fault_of_words()

    def _fault_of_words(self) -> str:
        lines = self.said.splitlines()
        sentences = [line for line in lines if line.startswith("error: ")]
        if "Traceback" in self.said or len(sentences) != (self.code != 0):
            return f"said {self.said[-600:]!r}"
        if any(not (mark.isprintable() or mark == "\n") for mark in self.said.replace("\r", "")):
            return f"printed control characters: {self.said!r}"
        return ""


class Hang(BaseException):
    """A command did not end; nothing of the package catches this."""


def _hang(*_: object) -> None:
    raise Hang


def answer(words: list[str], patience: float = 120) -> Answer:
    """Run a command in this process; patience is for one that waits, on a machine that is busy."""
    from personality_vector.cli.main import run

    usual = signal.signal(signal.SIGALRM, _hang)
    before, said, code = _peak(afresh=True), io.StringIO(), None
    start = time.process_time()
    left, _ = signal.setitimer(signal.ITIMER_REAL, patience)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(said):
            code = run(words)
    except Hang:
        code = f"no end after {patience} s"
    except BaseException as error:  # noqa: BLE001  (this is what is looked for)
        code = f"{type(error).__name__}: {error}"
    finally:
        signal.signal(signal.SIGALRM, usual)
        signal.setitimer(signal.ITIMER_REAL, left)  # of the test runner
    return Answer(code, said.getvalue(), time.process_time() - start, _peak() - before)


def _peak(*, afresh: bool = False) -> int:
    """Return the most memory of this process since it was last counted afresh, in bytes."""
    if afresh:
        Path("/proc/self/clear_refs").write_text("5")
    status = Path("/proc/self/status").read_text()
    return int(re.findall(r"VmHWM:\s+(\d+)", status)[0]) << 10


J, L, T, B = hostile.json_file, hostile.lines_file, hostile.text_file, hostile.binary_file
S, C = hostile.safetensors_file, hostile.template_file
_MERGE = "merge merge.yaml --out out --quiet"
_EVAL = "eval eval.yaml --out out --quiet"
_ASK = "steer extract asked.yaml --out out"
_ITEMS = "eval instruments.yaml --dry-run"
DOORS = [
    Door("base/config.json", J, "show base"),
    Door("base/config.json", J, _EVAL),
    Door("base/config.json", J, _MERGE),
    Door("base/generation_config.json", J, _ASK),
    Door("base/tokenizer.json", J, _ASK),
    Door("base/tokenizer_config.json", J, _ASK),
    Door("base/chat_template.jinja", C, _ASK),
    Door("base/model.safetensors", S, "show base"),
    Door("base/model.safetensors", B, _MERGE),
    Door("many/model.safetensors.index.json", J, "show many"),
    Door("many/model.safetensors.index.json", J, "diff many tuned --out out"),
    Door("adapter/adapter_config.json", J, "merge adapter.yaml --out out --quiet"),
    Door("adapter/adapter_model.safetensors", B, "merge adapter.yaml --out out --quiet"),
    Door("delta/MANIFEST.json", J, "show delta"),
    Door("delta/MANIFEST.json", J, "merge delta.yaml --out out --quiet"),
    Door("delta/delta.safetensors", B, "similarity delta delta"),
    Door("merged/MANIFEST.json", J, "verify merged"),
    Door("merged/MANIFEST.json", J, "show merged"),
    Door("merged/MANIFEST.json", J, "merge merge.yaml --out merged --force --dry-run"),
    Door("vector/MANIFEST.json", J, "show vector"),
    Door("vector/vector.json", J, "similarity vector vector"),
    Door("vector/vector.safetensors", B, "steer fuse vector vector --out out"),
    Door("vector.gguf", B, "steer export-gguf vector --out vector.gguf --force"),
    Door("neurons/neurons.json", J, "show neurons"),
    Door("old/pytorch_model.bin", B, "convert old --out out"),
    Door("statements.jsonl", L, _EVAL),
    Door("statements.csv", T, "eval csv.yaml --out out --quiet"),
    Door("chats.jsonl", L, "train train.yaml --dry-run"),
    Door("persona.yaml", T, "steer extract asked.yaml --dry-run"),
    Door("instrument.yaml", T, "eval interview.yaml --dry-run"),
    Door("mpi.csv", T, _ITEMS),
    Door("items.json", J, _ITEMS),
    Door("items.txt", T, _ITEMS),
    Door("key.yaml", T, _ITEMS),
    Door("words.dic", T, _ITEMS),
    Door("task.yaml", T, _ITEMS),
    Door("pool.jsonl", L, _ITEMS),
    Door("rollouts.jsonl", L, "steer extract reuse.yaml --out out"),
    Door("run/results.sqlite", B, "report run"),
    Door("run/results.sqlite", B, "judge run --judge judge.yaml"),
    Door("run/MANIFEST.json", J, "show run"),
    Door("kit.yml", T, "merge kit.yml --out out --quiet"),
]
RECIPES = {
    "merge": "merge merge.yaml --out out --quiet",
    "delta": "merge delta.yaml --dry-run",
    "train": "train train.yaml --dry-run",
    "interview": "eval interview.yaml --dry-run",
    "sweep": "sweep sweep.yaml --dry-run",
    "compare": "compare compare.yaml --dry-run",
    "extract": "steer extract extract.yaml --dry-run",
    "reuse": "steer extract reuse.yaml --dry-run",
    "choose": "steer choose choose.yaml --dry-run",
    "profile": "profile profile.yaml --dry-run",
}
"""A recipe, and the command that reads it."""


class Lab:
    """A folder with one of everything that a command reads; commands run inside it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        with contextlib.chdir(folder):
            _fill(folder)
        self.whole = self.content()

    def content(self) -> dict[str, tuple[int, int]]:
        """Return every file that no door writes, with its size and time of change."""
        files = [path for path in self.folder.rglob("*") if path.is_file()]
        inputs = [path for path in files if "run" not in path.parts and path.suffix != ".gguf"]
        return {str(p): (p.stat().st_size, p.stat().st_mtime_ns) for p in inputs}

    def try_door(self, door: Door, dice: random.Random) -> tuple[Answer, bytes]:
        """Break the file of a door, run its command, and put the file back."""
        file = self.folder / door.file
        kept, stamp = file.read_bytes(), file.stat().st_mtime_ns
        broken = door.change(dice, kept)
        file.write_bytes(broken)
        with contextlib.chdir(self.folder):
            given = answer(door.words.split())
        file.write_bytes(kept)
        os.utime(file, ns=(stamp, stamp))
        self.clean()
        return given, broken

    def clean(self) -> None:
        """Remove what commands wrote."""
        for path in self.folder.glob("out*"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    def require_whole(self) -> None:
        """Run every command on files that nobody broke; a door that is always shut hides faults."""
        for words in {*RECIPES.values(), *(door.words for door in self.doors())}:
            with contextlib.chdir(self.folder):
                given = answer(words.split())
            assert given.code == 0, (words, given.said)
            self.clean()

    def doors(self) -> list[Door]:
        """Return the doors whose file is there."""
        return [door for door in DOORS if (self.folder / door.file).exists()]


def _fill(folder: Path) -> None:
    import torch
    from peft import LoraConfig, get_peft_model

    import personality_vector as pv
    from personality_vector.cli.main import run
    from tests import conftest

    model = conftest._model("llama", "float32", None)
    conftest._save(model, folder / "base", sharded=False)
    conftest._save(model, folder / "many", sharded=True)
    (folder / "old").mkdir()
    shutil.copy("base/config.json", "old/config.json")
    torch.save(model.state_dict(), "old/pytorch_model.bin")  # noqa: TID251  (the door for pickles needs one)
    with torch.no_grad(), warnings.catch_warnings(action="ignore"):
        adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj", "down_proj"]))
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.fill_(0.01)
        adapted.save_pretrained("adapter")
        adapted.merge_and_unload().save_pretrained("tuned")
    conftest._tokenizer().save_pretrained("tuned")
    pv.Delta.between("base", "tuned", label="warm").save("delta")
    for name, content in _texts().items():
        Path(name).write_text(content)
    for words in (
        "merge merge.yaml --out merged --quiet",
        "steer extract extract.yaml --out vector",
        "steer export-gguf vector --out vector.gguf",
        "steer neurons neurons.yaml --out neurons",
        "eval judged.yaml --out run --quiet",
        "steer extract asked.yaml --out asked",
    ):
        with contextlib.redirect_stdout(io.StringIO()):
            if run(words.split()) != 0:
                raise SystemExit(f"the lab cannot be built: pvec {words}")
    shutil.copy("asked.rollouts.jsonl", "rollouts.jsonl")


TERM = {"tuned": "tuned", "alpha": 0.5}


def _texts() -> dict[str, str]:
    rows = [
        {"trait": trait, "level": level, "statement": f"{text} {part} {n}", "part": part}
        for trait in ("extraversion", "openness")
        for level, text in (("high", "I love parties"), ("low", "I am quiet"))
        for part in ("train", "held_out")
        for n in range(9)
    ]
    chats = [
        {"prompt": [{"role": "user", "content": f"q{n}"}]}
        | {"completion": [{"role": "assistant", "content": "I am quiet."}]}
        for n in range(9)
    ]
    asked = {"traits": ["extraversion"], "statements": "statements.jsonl"}
    interview = {"traits": ["extraversion"], "judges": ["classifier"]}
    interview |= {"instrument": "instrument.yaml", "generation": {"max_new_tokens": 4}}
    judge = {"classifier": {"statements": "statements.jsonl", "neutral": None}}
    judged = [{"likelihood": asked}, {"interview": {**interview, "judges": [judge]}}]
    common = {"device": "cpu", "measures": [{"likelihood": asked}]}
    both = [{"likelihood": asked}, {"interview": interview}]
    data = {"source": "statements.jsonl", "limit": 2}
    taught = {"source": "chats.jsonl", "format": "chats"}
    pole = "extraversion:high"
    sides = {"positive": data, "negative": data, "layers": [1, 2]}
    persona = {
        "name": "gardener",
        "description": "Talks about plants.",
        "instructions": [{"positive": "Love plants.", "negative": "Hate plants."}],
        "questions": {"extract": ["What now?", "And then?"], "evaluate": ["Who?"]},
    }
    rollouts = {"samples": 1, "max_new_tokens": 4}
    asks = {"model": "base", "persona": "persona.yaml", "rollouts": rollouts, "device": "cpu"}
    sweep = {"base": "base", "strengths": [0.5, 1.0], "seeds": [0], **common}
    sweep["interventions"] = [
        {"label": "weights", "tuned": "tuned"},
        {"label": "sum", "method": "ties", "terms": [{"delta": "delta", "alpha": 1.0}]},
        {"label": "vector", "vector": "vector", "layers": [1], "strengths": [1.0]},
        {"label": "words", "prompt": pole, "strengths": [1]},
    ]
    instruments = [
        {"self_report": {"questionnaire": "mpi.csv"}},
        {"self_report": {"name": "json", "questionnaire": "items.json", "key": "key.yaml"}},
        {"self_report": {"name": "text", "questionnaire": "items.txt", "key": "key.yaml"}},
        {"linguistic": {"dictionary": "words.dic"}},
        {
            "creativity": {
                "tasks": ["task.yaml"],
                "judges": [{"infrequency": {"pool": "pool.jsonl"}}],
            }
        },
    ]
    recipes: dict[str, Any] = {
        "instruments": {"model": "base", "device": "cpu", "measures": instruments},
        "merge": {"base": "base", "method": "ties", "terms": [TERM], "options": {"density": 0.5}},
        "delta": {"base": "base", "terms": [{"delta": "delta", "alpha": [0.5, 1.0, 0.5]}]},
        "adapter": {"base": "base", "terms": [{"tuned": "adapter", "alpha": 0.5}]},
        "train": {
            "base": "base",
            "pole": pole,
            "data": taught,
        },
        "eval": {"model": "base", **common},
        "interview": {"model": "base", "device": "cpu", "measures": both},
        "judged": {"model": "base", "device": "cpu", "measures": judged},
        "sweep": sweep,
        "compare": {**sweep, "interventions": sweep["interventions"][:1], "pole": pole},
        "extract": {"model": "base", "pole": pole, **sides},
        "neurons": {"model": "base", "pole": pole, "positive": data, "negative": data},
        "asked": asks,
        "reuse": {**asks, "rollouts": {**rollouts, "reuse": "rollouts.jsonl"}},
        "choose": {"model": "base", "vector": "vector", "statements": "statements.jsonl"},
        "profile": {
            "base": "base",
            "terms": [{"delta": "delta"}],
            "target": {"extraversion": 0.5},
            "measure": {"likelihood": asked},
        },
    }
    likelihood = {"likelihood": {**asked, "statements": "statements.csv"}}
    recipes["csv"] = {"model": "base", "device": "cpu", "measures": [likelihood]}
    texts = {f"{name}.yaml": json.dumps(content) for name, content in recipes.items()}
    texts["instrument.yaml"] = yaml.safe_dump(
        {"name": "one", "version": "1", "items": [{"id": "a", "text": "What now?"}]}
    )
    texts["judge.yaml"] = json.dumps(judge)
    texts["persona.yaml"] = yaml.safe_dump(persona)
    texts["statements.jsonl"] = "".join(json.dumps(row) + "\n" for row in rows)
    texts["chats.jsonl"] = "".join(json.dumps(row) + "\n" for row in chats)
    texts["statements.csv"] = "part,trait,level,statement\n" + "".join(
        f"{row['part']},{row['trait']},{row['level']},{row['statement']}\n" for row in rows
    )
    texts["kit.yml"] = (
        "merge_method: task_arithmetic\nbase_model: base\nmodels:\n"
        "  - model: tuned\n    parameters: {weight: 0.5}\ndtype: float32\n"
    )
    return texts | _items()


def _items() -> dict[str, str]:
    """Return questionnaires with their key, a dictionary, and a task with its pool of answers."""
    texts = dict[str, str]()
    items = ["Love crowds", "Keep to the wall", "Read old books", "Avoid museums"]
    letters = zip(items, ("E", "E", "O", "O"), (1, -1, 1, -1), strict=True)
    texts["mpi.csv"] = "label_raw,text,label_ocean,key\n" + "".join(
        f"Some Facet,{item},{letter},{sign}\n" for item, letter, sign in letters
    )
    numbered = [{"id": number, "text": item} for number, item in enumerate(items, 1)]
    options = [{"id": number, "text": f"Fits {number} of 5"} for number in range(1, 6)]
    texts["items.json"] = json.dumps({"questions": numbered, "select": options})
    texts["items.txt"] = "".join(f"{number}. {item}\n" for number, item in enumerate(items, 1))
    key = {"name": "own", "source": "us", "reversed": [2, 4], "facets": {"zest": [1, 2]}}
    key |= {"traits": {"extraversion": [1, 2], "openness": [3, 4]}}
    texts["key.yaml"] = yaml.safe_dump(key)
    texts["words.dic"] = "%\n1\tposemo\n2\tanx\n%\nhapp*\t1\nafraid\t2\n"
    task = {"name": "cups", "version": "1", "request": "Uses of {item}?", "items": ["a cup"]}
    texts["task.yaml"] = yaml.safe_dump({**task, "criteria": ["originality"]})
    texts["pool.jsonl"] = "".join(
        json.dumps({"item": "cups-01", "text": f"a hat for {n} cats"}) + "\n" for n in range(3)
    )
    return texts


def recipe_file(dice: random.Random, data: bytes) -> bytes:
    """Return a recipe with keys and values changed, as YAML, and sometimes its text changed too."""
    changed = hostile.tree(dice, json.loads(data))
    try:
        written = yaml.safe_dump(changed, allow_unicode=True)
    except (yaml.YAMLError, RecursionError, UnicodeError, ValueError):
        written = json.dumps(changed)
    return hostile.encoded(hostile.text(dice, written) if dice.random() < 0.4 else written)


def headers(folder: Path, rounds: int, seed: int) -> Generator[tuple[str, Answer, bytes]]:
    """Read broken headers; what safetensors refuses must be refused."""
    from personality_vector.errors import CheckpointError
    from personality_vector.files.header import read_table

    dice, file = random.Random(seed), folder / "x.safetensors"
    for _ in range(rounds):
        content = hostile.safetensors_file(dice)
        file.write_bytes(content)
        start, code, said = time.process_time(), 0, ""
        try:
            read_table(file)
        except CheckpointError as error:
            code, said = 1, f"error: {error}"
        except Exception as error:  # noqa: BLE001  (this is what is looked for)
            code, said = f"{type(error).__name__}: {error}", ""
        if code == 0 and _is_refused(file):
            code = "accepted, but safetensors refuses it"
        yield "header", Answer(code, said, time.process_time() - start, 0), content


def _is_refused(file: Path) -> bool:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118  (it is not a mapping)
                opened.get_slice(name).get_shape()
    except (SafetensorError, OverflowError, ValueError, OSError):
        return True
    return False


def recipes(lab: Lab, rounds: int, seed: int) -> Generator[tuple[str, Answer, bytes]]:
    """Run commands with broken recipes."""
    dice, names = random.Random(seed), list(RECIPES)
    for number in range(rounds):
        name = names[number % len(names)]
        door = Door(f"{name}.yaml", recipe_file, RECIPES[name])
        yield f"recipe {name}", *lab.try_door(door, dice)


def others(lab: Lab, rounds: int, seed: int) -> Generator[tuple[str, Answer, bytes]]:
    """Run commands with broken files of every other kind."""
    dice, doors = random.Random(seed), lab.doors()
    for number in range(rounds):
        door = doors[number % len(doors)]
        yield f"{door.file} < {door.words.split(' --')[0]}", *lab.try_door(door, dice)


def main() -> int:
    """Fuzz as the command line says, and print what was found."""
    parser = argparse.ArgumentParser(description=__doc__)
    for kind, rounds in (("headers", 25_000), ("recipes", 5_000), ("others", 10_000)):
        parser.add_argument(f"--{kind}", type=int, default=rounds)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    faults = 0
    with tempfile.TemporaryDirectory() as place:
        lab = Lab(Path(place) / "lab")
        lab.require_whole()
        found: dict[str, list[Answer]] = {}
        kinds = [
            headers(Path(place), given.headers, given.seed),
            recipes(lab, given.recipes, given.seed),
            others(lab, given.others, given.seed),
        ]
        for kind in kinds:
            for name, one, content in kind:
                found.setdefault(name, []).append(one)
                if fault := one.fault():
                    faults += 1
                    _say(f"FAULT {name}: {fault}\n  {content[:400]!r}")
        if lab.content() != lab.whole:
            faults += 1
            _say("FAULT: an input was changed")
    _print(found)
    _say(f"{faults} faults")
    return faults > 0


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def _print(found: dict[str, list[Answer]]) -> None:
    _say(f"{'what was broken':64} {'inputs':>6} {'done':>6} {'slowest s':>9} {'most MB':>8}")
    for name, answers in found.items():
        done = sum(one.code == 0 for one in answers)
        slowest, most = max(one.seconds for one in answers), max(one.bytes for one in answers)
        _say(f"{name:64.64} {len(answers):6} {done:6} {slowest:9.2f} {most >> 20:8}")


if __name__ == "__main__":
    sys.exit(main())
