"""``pvec demo``: the whole job on the embedded model."""

from pathlib import Path
from typing import Annotated

import typer

from personality_vector.cli import options


def demo(
    out: Annotated[Path, typer.Option("--out", help="Directory to write.")] = Path("runs/demo"),
    force: options.Force = False,
    quiet: options.Quiet = False,
) -> None:
    """The whole job on the embedded model.

    Train, diff, merge, sweep, steer and compare: no network, two minutes.
    """
    from personality_vector.demo.run import run

    run(out, force=force)
