"""Every verb that writes: a command line, and those that made what was there before."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from personality_vector.lab import builtin
from tests.cli.conftest import make_lab
from tests.conftest import save_pico
from tests.fake_endpoint import said, serving

Words = tuple[str, ...]
OUT = "{out}"
"""In the words of a command: the output, which is the same path in every case."""

_TRAIT = "extraversion"
_SAID = {
    "high": ["I love parties", "I talk a lot", "meeting new people", "I am the one who talks"],
    "low": ["I am quiet", "alone again", "I say little at every party", "people are loud"],
}
_ASKED = {"traits": [_TRAIT], "statements": "said.jsonl"}
_JUDGE = {"classifier": {"statements": "said.jsonl", "neutral": None}}
_SHORT = {"max_new_tokens": 2, "samples": 1}
_MEASURES = [
    {"likelihood": _ASKED},
    {
        "interview": {
            "traits": [_TRAIT],
            "question": "Who?",
            "judges": [_JUDGE],
            "generation": _SHORT,
        }
    },
]
_WRITTEN = {
    "instructions": [{"positive": f"Be calm, {i}.", "negative": f"Be wild: {i}"} for i in range(5)],
    "questions": [f"What about number {i}: yes?" for i in range(40)],
}
_PERSONA = {
    "name": "gardener",
    "description": "Speaks of plants.",
    "instructions": [{"positive": "You love plants.", "negative": "You are an assistant."}],
    "questions": {"extract": ["Who are you?", "And at night?"]},
}


@dataclass(frozen=True)
class Case:
    """A command line that is disturbed.

    Attributes:
        name: The verb, and what was there before.
        words: The command.
        before: Commands that made what was there before.
        name_of_out: Name of the output.
    """

    name: str
    words: Words
    before: tuple[Words, ...] = ()
    name_of_out: str = "out"

    @property
    def verb(self) -> str:
        """The verb alone."""
        return self.name.partition(",")[0]

    def filled(self, words: Words, out: Path) -> list[str]:
        """Return words with the path of the output."""
        return [word.replace(OUT, str(out)) for word in words]


@contextmanager
def cases(folder: Path) -> Iterator[list[Case]]:
    """Make a lab in ``folder``, and yield the cases of all verbs."""
    from personality_vector.cli.main import run

    lab = _Lab(folder)
    with serving(_written) as fake:
        for words in lab.made:
            if run(list(words)):
                raise RuntimeError(f"cannot be made: {words}")
        yield [*lab.weights(), *lab.vectors(), *lab.files(fake.base_url), *lab.runs()]


def _written(body: dict[str, Any]) -> dict[str, Any]:
    """Return the persona or the twin that a request asks for."""
    name = body["response_format"]["json_schema"]["name"]
    return said(json.dumps({"prompt": "Count."} if name == "twin" else _WRITTEN))


def _pickled(model: Path, path: Path) -> Path:
    """Save a model with its weights pickled, as ``pvec convert`` takes it."""
    shutil.copytree(model, path)
    state = load_file(path / "model.safetensors")
    (path / "model.safetensors").unlink()
    torch.save(state, path / "pytorch_model.bin")  # noqa: TID251
    return path


class _Lab:
    """Models, data and recipes; every verb is cut down to what takes no time."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        paths = [folder / name for name in ("base", "tuned", "other")]
        for path, seed in zip(paths, (None, 0, 1), strict=True):
            save_pico(path, "llama", seed=seed)
        (folder / "recipes").mkdir()
        self.lab = make_lab(folder / "recipes", paths[0], paths[1:])
        self.base, self.tuned, self.other = map(str, paths)
        rows = [
            {"trait": _TRAIT, "level": level, "statement": f"{text} {part} {i}", "part": part}
            for level, texts in _SAID.items()
            for text in texts
            for i in range(2)
            for part in ("train", "held_out")
        ]
        (self.lab.folder / "said.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        (self.lab.folder / "prompts.txt").write_text("Who are you?\nWhat do you like?\n")
        (self.lab.folder / "gardener.yaml").write_text(json.dumps(_PERSONA))
        self.bins = [_pickled(path, folder / f"bin-{path.name}") for path in paths[1:]]
        one, two = (str(folder / name) for name in ("vector-1", "vector-2"))
        self.extract = ("steer", "extract", self.recipe("extract"))
        self.opposite = ("steer", "extract", self.recipe("extract", pole="extraversion:low"))
        # Replies of random weights are not coherent; only the embedded model has a choice.
        lines = builtin("builtin:training/data/big5_statements.jsonl").read_text().splitlines(True)
        lines = [line for line in lines if _TRAIT in line][::4]
        (self.lab.folder / "big5.jsonl").write_text("".join(lines))
        data = {"source": "big5.jsonl", "limit": 20}
        demo = self.recipe("extract", model="builtin:demo", positive=data, negative=data)
        self.made = [(*self.extract, "--out", one), (*self.opposite, "--out", two)]
        self.made.append(("steer", "extract", demo, "--out", str(folder / "vector-demo")))

    def recipe(self, name: str, **changed: Any) -> str:
        """Return a recipe of the lab with some keys changed."""
        given = json.loads((self.lab.folder / f"{name}.yaml").read_text())
        file = self.lab.folder / f"{name}-{len(list(self.lab.folder.iterdir()))}.yaml"
        file.write_text(json.dumps({**given, **changed}))
        return str(file)

    def forced(self, name: str, words: Words, old: Words, out: str = "out") -> list[Case]:
        """Return a verb with nothing before, and the same verb over an older output."""
        new, old = ((*each, "--out", OUT, "--force") for each in (words, old))
        return [Case(f"{name}, fresh", new, (), out), Case(f"{name}, over", new, (old,), out)]

    def weights(self) -> list[Case]:
        """Return the verbs that write checkpoints, adapters and deltas."""
        output = {"shard_size": "40KB"}
        merges = [
            ("merge", self.recipe("merge", terms=[{"tuned": tuned, "alpha": 0.5}], output=output))
            for tuned in (self.tuned, self.other)
        ]
        sft = {"epochs": 1, "batch_size": 4, "learning_rate": 1e-3}
        trains = [
            ("train", self.recipe("train", sft={**sft, "lora": lora}))
            for lora in (None, {"rank": 2, "alpha": 4})
        ]
        many = {"pole": None, "poles": [_TRAIT], "delta": True, "data": {"source": "said.jsonl"}}
        poles = self.recipe("train", sft={**sft, "epochs": 2, "checkpoints": 9}, **many)
        diffs = [("diff", self.base, tuned) for tuned in (self.tuned, self.other)]
        return [
            *self.forced("merge", *merges),
            *self.forced("diff", *diffs),
            *self.forced("train", *trains),
            *self.forced("train an adapter", *reversed(trains))[:1],
            Case("train poles", ("train", poles, "--out", OUT)),
            *self.forced("convert", *(("convert", str(path)) for path in self.bins)),
        ]

    def vectors(self) -> list[Case]:
        """Return the verbs that write steering vectors, neurons and baked checkpoints."""
        prompts = ("--prompts", str(self.lab.folder / "prompts.txt"), "--device", "cpu")
        one, two = (words[-1] for words in self.made[:2])
        extract, other = self.extract, self.opposite
        between = ("steer", "between", self.base)
        creative = ("steer", "creativity", "--model", self.base, "--device", "cpu")
        bake = ("steer", "bake", one, "--model", self.base, "--layer", "1", "--coefficient")
        fuse = ("steer", "fuse", one, two, "--weights")
        neurons = [("steer", "neurons", *words[2:]) for words in (extract, other)]
        return [
            *self.forced("steer extract", extract, other),
            *self.forced("steer neurons", *neurons),
            *self.forced(
                "steer between", (*between, self.tuned, *prompts), (*between, self.other, *prompts)
            ),
            *self.forced("steer creativity", creative, (*creative, "--batch-size", "1")),
            *self.forced("steer fuse", (*fuse, "1,3"), (*fuse, "3,1")),
            *self.forced("steer bake", (*bake, "2"), (*bake, "3")),
        ]

    def files(self, url: str) -> list[Case]:
        """Return the verbs that write a file, and the replies that an extraction keeps."""
        one, two = self.made[0][-1], self.made[1][-1]
        export = ("steer", "export-gguf", one, "--layer")
        write = ("steer", "write-persona", "calm", "--model", "m", "--endpoint", url)
        twins = ("steer", "write-twins", str(self.lab.folder / "prompts.txt"))
        twins += ("--model", "m", "--endpoint", url)
        svg, similar = "out.svg", ("similarity", one, two, "--figure", OUT, "--force")
        rollouts = {"samples": 2, "max_new_tokens": 2}
        keys = {"persona": "gardener.yaml", "rollouts": rollouts, "device": "cpu"}
        steer = self.lab.folder / "persona.yaml"
        steer.write_text(json.dumps({"model": self.base, **keys}))
        persona = ("steer", "extract", str(steer))
        settings = ("rollouts.samples=2", "rollouts.questions=2", "rollouts.max_new_tokens=48")
        settings += ("rollouts.pairs=1", "thresholds.paired=false", "device=cpu")
        elicit = ("elicit", _TRAIT, "--model", "builtin:demo", "--judge", "none")
        elicit += tuple(word for setting in settings for word in ("--set", setting))
        return [
            Case("similarity, fresh", similar, (), svg),
            Case("similarity, over", similar, ((*similar, "--per-layer"),), svg),
            *self.forced("steer export-gguf", (*export, "1"), (*export, "2"), "out.gguf"),
            *self.forced(
                "steer write-persona",
                (*write, "--description", "Is calm."),
                (*write, "--description", "Is at peace."),
                "out.yaml",
            ),
            *self.forced("steer write-twins", twins, (*twins, "--api-key-env", "K"), "out.jsonl"),
            Case("export-mergekit", ("export-mergekit", str(self.lab.merge), "--out", OUT)),
            Case("recipes copy", ("recipes", "copy", "merges/smoke", OUT), (), "out.yaml"),
            *self.forced("elicit", elicit, (*elicit, "--set", "seed=1")),
            *self.forced("steer extract a persona", persona, (*persona, "--set", "seed=1")),
        ]

    def runs(self) -> list[Case]:
        """Return the verbs that resume in a folder."""
        weights = {"label": "weights", "tuned": self.tuned}
        given = {"measures": _MEASURES, "interventions": [weights]}
        short, long, other = (
            ("sweep", self.recipe("sweep", **given, strengths=strengths), "--out", OUT)
            for strengths in ([0.5], [0.5, 1.0], [2.0])
        )
        compare = ("compare", self.recipe("compare", **given, strengths=[1.0]), "--out", OUT)
        asked = ("eval", self.recipe("eval", measures=_MEASURES), "--out", OUT)
        unrated = [{"interview": {"traits": [_TRAIT], "question": "Who?", "generation": _SHORT}}]
        answered = ("eval", self.recipe("eval", measures=unrated), "--out", OUT)
        choice = {"model": "builtin:demo", "vector": self.made[-1][-1], "limit": 8}
        choice |= {"statements": "big5.jsonl", "generation": {"max_new_tokens": 8, "samples": 1}}
        choice |= {"layers": [1, 2, 3], "verify": 1, "floor": 0.1, "device": "cpu"}
        (self.lab.folder / "choose.yaml").write_text(json.dumps(choice))
        chooses = [
            ("steer", "choose", self.recipe("choose", shares=shares))
            for shares in ([0.1, 0.2], [0.1])
        ]
        judge = self.lab.folder / "judge.yaml"
        judge.write_text(json.dumps(_JUDGE))
        return [
            Case("eval, fresh", asked),
            Case("eval, over", (*asked, "--force"), (answered,)),
            Case("sweep, fresh", short),
            Case("sweep, more", long, (short,)),
            Case("sweep, over", (*other, "--force"), (short,)),
            Case("compare, fresh", compare),
            Case("judge", ("judge", OUT, "--judge", str(judge)), (answered,)),
            Case("report", ("report", OUT), (asked,)),
            *self.forced("steer choose", *chooses),
        ]
