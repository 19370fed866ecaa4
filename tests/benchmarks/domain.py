"""Perplexity of the held-out texts of a domain, at every point of a sweep.

    python -m tests.benchmarks.domain RUN [--measure domain]

``RUN`` is one of ``pvec sweep transfer`` with a likelihood of this name, whose high pole is texts
of the domain: the sweep keeps the likelihood of each, from which this is computed.
"""

import argparse
import math
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from personality_vector.study.run import Run


def perplexities(observations: pd.DataFrame) -> pd.DataFrame:
    """Return the perplexity per token, a row for each intervention and a column for each strength.

    An observation is weighted so that the mean of all is mean(high) - mean(low), per cell.
    """
    points = ["intervention", "strength", "seed"]
    total = observations.groupby(points)["item"].transform("size")
    high = observations[observations["item"].str.contains(":high ")]
    loss = -high["value"] * high.groupby(points)["item"].transform("size") / total[high.index]
    means = loss.groupby([high["intervention"], high["strength"]]).mean()
    return means.map(math.exp).unstack()


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("run", type=Path)
    parser.add_argument("--measure", default="domain")
    given = parser.parse_args(arguments)
    print(perplexities(Run(given.run).observations().query("measure == @given.measure")).round(1))


if __name__ == "__main__":
    main()
