"""The demo: the whole job on the embedded model, as the command lines that anybody would type.

Every command publishes its directory whole, so a demo that was interrupted resumes.
"""

import shlex
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from personality_vector.manifest import MANIFEST
from personality_vector.report.page import answers_of, sample_answers
from personality_vector.study.design import BASE
from personality_vector.study.run import Run
from personality_vector.subject.chat import question
from personality_vector.subject.subject import Subject

_POLES = ("extraversion:high", "neuroticism:high")


def run(out: Path, pvec: Callable[[list[str]], object], *, force: bool = False) -> None:
    """Train two poles, diff, merge, extract, sweep alpha, compare, and show what the models say.

    Args:
        out: Directory for everything; what is complete there is not done again.
        pvec: Carries out a command line.
        force: Repeat every step.
    """
    started = time.monotonic()
    for words, folder in _commands(out.absolute()):
        done = folder is not None and (folder / MANIFEST).is_file() and not force
        if folder is not None:
            words += ["--out", str(folder), *(["--force"] if force else [])]
        sys.stderr.write(f"$ pvec {shlex.join(words)}{'  # already done' if done else ''}\n")
        if not done:
            pvec(words)
    answers = answers_of(Run(out / "sweep"))
    for pole in _POLES:
        said = sample_answers(answers, BASE) | sample_answers(answers, pole)
        sys.stdout.write(f"\n{pole}: three answers per alpha (0 is the base)\n")
        for alpha, replies in sorted(said.items()):
            for index, (reply, _) in enumerate(replies):
                sys.stdout.write(f"  {f'{alpha:g}' if index == 0 else '':>5}  {reply}\n")
    sys.stdout.write("\nmerged (0.8 extraversion:high - 0.6 neuroticism:high)\n")
    chats = [question("What kind of person are you?")] * 3
    for answer in Subject.load(out / "merged", device="cpu").replies(chats, seed=0):
        sys.stdout.write(f"         {answer.text}\n")
    sys.stdout.write(f"done in {time.monotonic() - started:.0f} s\n")


def _commands(out: Path) -> Iterator[tuple[list[str], Path | None]]:
    """Yield the words of every command, and the directory that it writes, if it writes one."""
    tuned, vectors = (
        [out / kind / pole.replace(":", "-") for pole in _POLES] for kind in ("tuned", "vectors")
    )
    for pole, model, vector in zip(_POLES, tuned, vectors, strict=True):
        yield ["train", "training/smoke", f"--set=pole={pole}"], model
        yield ["diff", "builtin:demo", str(model), "--pole", pole], vector
    terms = [f"--set=terms.{index}.tuned={model}" for index, model in enumerate(tuned)]
    arms = [f"--set=interventions.{index}.tuned={model}" for index, model in enumerate(tuned)]
    made = [arms[0], f"--set=interventions.1.vector={out / 'steering'}"]
    yield ["merge", "merges/smoke", *terms], out / "merged"
    yield ["steer", "extract", "training/steering/smoke"], out / "steering"
    yield ["similarity", *map(str, vectors)], None
    yield ["sweep", "eval/sweeps/smoke", *arms], out / "sweep"
    yield ["compare", "eval/compare/smoke", *made], out / "compare"
