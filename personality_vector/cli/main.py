"""``pvec``: parse, run a verb, turn an error into one sentence and an exit code."""

import errno
import gc
import logging
import os
import signal
import sys
import traceback
from collections.abc import Callable
from importlib.metadata import version
from types import FrameType
from typing import Annotated, Any, NoReturn

import typer
from typer.exceptions import TyperException

from personality_vector.cli import (
    elicit,
    end_on_interrupt,
    judge,
    merge,
    profile,
    push,
    runs,
    screen,
    shipped,
    show,
    streams,
    verify,
    weights,
)
from personality_vector.cli.options import recipe_verb
from personality_vector.cli.steer import creativity, effect, extract, sae, shift, vectors
from personality_vector.errors import FULL, PersonalityVectorError

app = typer.Typer(
    name="pvec",
    help="Give a language model a personality by arithmetic on its weights.",
    epilog="Every command takes --traceback. "
    "Exit codes: 0 done, 1 refused, 2 usage, 3 locked, 4 disk, 5 damaged, 6 cannot tell.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _print_version(wanted: bool) -> bool:
    if wanted:
        typer.echo(f"pvec {version('personality-vector')}")
        raise typer.Exit
    return wanted


@app.callback()
def _pvec(
    show_version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    """Give a language model a personality by arithmetic on its weights."""


steering = typer.Typer(help="Make, inspect and bake steering vectors.", no_args_is_help=True)
app.add_typer(steering, name="steer")
_VERBS: dict[typer.Typer, dict[str, Callable[..., None]]] = {
    app: {
        "demo": shipped.demo,
        "elicit": elicit.elicit,
        "train": weights.train,
        "diff": weights.diff,
        "merge": merge.merge,
        "export-mergekit": merge.export_mergekit,
        "sweep": runs.sweep,
        "compare": runs.compare,
        "profile": profile.profile,
        "eval": runs.evaluate,
        "judge": judge.judge,
        "screen": screen.screen,
        "show": show.show,
        "verify": verify.verify,
        "similarity": show.similarity,
        "report": runs.report,
        "convert": weights.convert,
        "push": push.push,
        "recipes": shipped.recipes,
    },
    steering: {
        "write-persona": extract.write_persona,
        "extract": recipe_verb("elicitation.recipe.SteerRecipe", extract.extract, extract.check),
        "between": vectors.between,
        "write-twins": creativity.write_twins,
        "creativity": creativity.creativity,
        "creativity-layer": creativity.creativity_layer,
        "fuse": vectors.fuse,
        "choose": recipe_verb("study.recipe.ChooseRecipe", extract.choose, extract.check_choice),
        "monitor": effect.monitor,
        "shift": shift.shift,
        "sae": sae.sae,
        "bake": effect.bake,
        "export-gguf": effect.export_gguf,
        "neurons": recipe_verb(
            "elicitation.recipe.SteerRecipe", extract.neurons, extract.check_neurons
        ),
    },
}
"""Every verb, in the order in which the help lists them."""
for group, verbs in _VERBS.items():
    for name, verb in verbs.items():
        group.command(name)(verb)


_is_interrupted = False
_OF_DISK = (*FULL, errno.EIO)
_PRINTED = (
    *("show", "similarity", "recipes", "export-mergekit"),
    *("monitor", "shift", "creativity-layer", "sae"),
    *("--dry-run", "--help"),
)
"""With these words, what is printed is the result, and not a note about one that is on disk."""


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit with its code."""
    # What torch creates during its import stays alive. Looking for garbage in it every 700 objects,
    # as Python does by default, takes a tenth of a merge's time.
    given = sys.argv[1:] if arguments is None else arguments
    gc.set_threshold(0 if given[:1] == ["merge"] else 100_000)
    streams.prepare()
    with_traceback = "--traceback" in given
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    sys.unraisablehook = _not_lost
    words = [word for word in given if word != "--traceback"]
    try:
        signal.signal(signal.SIGINT, _interrupt)
        signal.signal(signal.SIGALRM, lambda *_: signal.raise_signal(signal.SIGINT))
        code = run(words, with_traceback=with_traceback)
        signal.signal(signal.SIGINT, end_on_interrupt)
        signal.setitimer(signal.ITIMER_REAL, 0)
    except KeyboardInterrupt:
        end_on_interrupt()
    failure = streams.failure_of_stdout()
    if failure is not None and failure.errno != errno.EPIPE:
        sys.stderr.write(f"the result could not be printed: {failure.strerror}\n")
        code = code or (4 if set(words).intersection(_PRINTED) else 0)
    sys.stderr.flush()
    if given[:1] == ["merge"]:
        # Everything is on disk, and an orderly shutdown of torch would take half a second.
        os._exit(code)
    sys.exit(code)


def _interrupt(_: int, frame: FrameType | None) -> NoReturn:
    """Raise KeyboardInterrupt, and remember it: a library may swallow it and fail otherwise.

    Within an import the process ends here: a module in C++ may abort on an exception, and what a
    failed import left behind is used later. What was being written is in a hidden folder.
    """
    global _is_interrupted
    _is_interrupted = True
    while frame is not None:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            end_on_interrupt()
        frame = frame.f_back
    raise KeyboardInterrupt


def _not_lost(unraisable: Any) -> None:
    """Repeat a Ctrl-C that came while an object was being destroyed, where it raises nothing.

    It is repeated a moment later: raised in this function, it would be lost once more.
    """
    if issubclass(unraisable.exc_type, KeyboardInterrupt):
        signal.setitimer(signal.ITIMER_REAL, 0.05)
    else:
        sys.__unraisablehook__(unraisable)


def run(arguments: list[str], *, with_traceback: bool = False) -> int:
    """Run one verb and return its exit code."""
    try:
        code = int(app(arguments or ["--help"], standalone_mode=False) or 0)
    except TyperException as error:
        message = str(getattr(error, "format_message", lambda: error)()).rstrip(".")
        sys.stderr.write(f"error: {message}; see pvec --help\n")
        code = 2
    except (KeyboardInterrupt, typer.Abort):
        code = 130
    except (PersonalityVectorError, OSError) as error:
        code = getattr(error, "exit_code", 4 if getattr(error, "errno", 0) in _OF_DISK else 1)
        _refuse(error, with_traceback=with_traceback)
    except Exception as error:
        if not (_is_interrupted or _was_interrupted(error)):
            raise
        code = 130
    if code == 130:
        sys.stderr.write("interrupted; nothing half-written is left\n")
    return code


def _was_interrupted(error: BaseException | None) -> bool:
    """Return whether a library turned a Ctrl-C into an error of its own, as imports do."""
    while error is not None:
        if isinstance(error, KeyboardInterrupt):
            return True
        error = error.__cause__ or error.__context__
    return False


def _refuse(error: Exception, *, with_traceback: bool) -> None:
    if with_traceback:
        traceback.print_exception(error)
    notes = "".join(f" ({note})" for note in getattr(error, "__notes__", []))
    said = str(error)
    if isinstance(error, OSError) and error.strerror:
        said = f"{error.filename or 'a file'}: cannot be read or written: {error.strerror}"
    sentence = " ".join(f"{said}{notes}".split())
    # A name from a file may hold control characters; a terminal would obey them.
    sys.stderr.write("error: " + "".join(c if c.isprintable() else repr(c)[1:-1] for c in sentence))
    sys.stderr.write("\n")
