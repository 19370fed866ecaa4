"""Computing a merge again that somebody has written, and comparing the two entry by entry."""

from contextlib import closing
from dataclasses import dataclass
from functools import partial, reduce

import torch
from torch import Tensor

from personality_vector.checkpoint import Checkpoint, TensorPlan
from personality_vector.delta import matched
from personality_vector.errors import TensorMismatchError, UndecidedError
from personality_vector.merging.engine import merge_batch
from personality_vector.merging.plan import MergePlan
from personality_vector.merging.terms import BATCH, runs
from personality_vector.numeric.parallel import in_parallel
from personality_vector.progress import progress

_BIAS = 1e-3
"""Rounding errors cancel: their projection on the change is a far smaller share of it than this."""


@dataclass(frozen=True, slots=True)
class Distance:
    """How far some entries are from what the merge writes.

    Attributes:
        entries: Number of entries that are not the same bits.
        coarse: Number of those that are farther away than rounding explains.
        largest: Largest difference.
        tensor: Where that is.
        along: Inner product of the difference with the change that the merge makes.
        change: Squared norm of that change.
    """

    entries: int = 0
    coarse: int = 0
    largest: float = 0.0
    tensor: str = ""
    along: float = 0.0
    change: float = 0.0

    @property
    def is_rounding(self) -> bool:
        """Whether no entry is too far away, and all together are not on one side."""
        return not self.coarse and abs(self.along) <= _BIAS * self.change

    def plus(self, other: "Distance") -> "Distance":
        """Return that of both together."""
        largest = max(self, other, key=lambda one: one.largest)
        return Distance(
            self.entries + other.entries,
            self.coarse + other.coarse,
            largest.largest,
            largest.tensor,
            self.along + other.along,
            self.change + other.change,
        )


def verify_merge(plan: MergePlan, written: Checkpoint) -> Distance:
    """Compute a merge again and compare it with a checkpoint, in the dtypes of that checkpoint.

    A merge by this tool is the same to the bit. One by PEFT or mergekit, which multiply and add in
    the precision of the weights, may be as far away as two roundings.

    Args:
        plan: The merge that the checkpoint is supposed to be.
        written: The checkpoint.

    Raises:
        UndecidedError: It does not have the tensors of the base; or it differs, and the method
            draws random masks, of which another tool draws others.
    """
    try:
        found = matched(plan.base, written)
    except TensorMismatchError as error:
        raise UndecidedError(f"cannot tell whether this is the merge: {error}") from error
    tensors = [
        TensorPlan(name, found.entries[name].dtype, plan.base.entries[name].shape)
        for name in found.names
    ]
    plan.merged.survey(plan.device)
    batches = [(tensor, part) for tensor in tensors for part in runs(tensor.shape, BATCH)]
    shown = progress(batches, "verify", lambda b: (b[1].stop - b[1].start) * b[0].dtype.itemsize)
    with closing(in_parallel(partial(_compared, plan, found), batches)) as done:
        total = reduce(Distance.plus, (one for _, one in zip(shown, done, strict=True)), Distance())
    if not total.is_rounding and "drop_rate" in plan.merged.combine.options:
        raise UndecidedError(
            f"{written.path}: cannot tell: {total.entries} entries differ from {plan.method} with "
            f"seed {plan.merged.seed}, and its masks are random; give the seed it was made with"
        )
    return total


def _compared(plan: MergePlan, found: Checkpoint, batch: tuple[TensorPlan, slice]) -> Distance:
    """Compare some entries of one tensor."""
    distances: list[Distance] = []

    def compare(name: str, start: int, wanted: Tensor) -> None:
        run = slice(start, start + len(wanted))
        numbers = wanted, found.part(name, run), plan.base.part(name, run)
        distances.append(_distance(name, wanted.dtype, *(one.double() for one in numbers)))

    merge_batch(plan, compare, batch)
    return reduce(Distance.plus, distances, Distance())


def _distance(
    name: str, dtype: torch.dtype, wanted: Tensor, found: Tensor, base: Tensor
) -> Distance:
    """Return how far entries of a tensor are from what is wanted, all as float64."""
    if not len(wanted):
        return Distance()
    change, apart = wanted - base, torch.nan_to_num(found - wanted, nan=torch.inf)
    # The product of two factors is rounded in proportion to what cancels in it, which is of the
    # size of the largest entries near by.
    scale = max(base.abs().max().item(), wanted.abs().max().item())
    step = 2 * torch.finfo(dtype).eps * scale if dtype.is_floating_point else 0.0
    return Distance(
        int((apart != 0).sum()),
        int((apart.abs() > step).sum()),
        float(apart.abs().max()),
        name,
        float(torch.dot(apart, change)) if torch.isfinite(apart).all() else torch.inf,
        float(change.square().sum()),
    )
