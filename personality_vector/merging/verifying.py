"""Computing a merge again that somebody has written, and comparing the two entry by entry."""

from contextlib import closing
from dataclasses import dataclass
from functools import partial

import torch

from personality_vector.checkpoint import Checkpoint, TensorPlan
from personality_vector.delta import matched
from personality_vector.errors import TensorMismatchError, UndecidedError
from personality_vector.merging.engine import merged_runs
from personality_vector.merging.plan import MergePlan
from personality_vector.merging.terms import BATCH, runs
from personality_vector.numeric.parallel import in_parallel
from personality_vector.progress import progress


@dataclass(frozen=True, slots=True)
class Difference:
    """How far some entries are from what the merge writes.

    Attributes:
        entries: Number of entries that are not the same bits.
        coarse: Number of those that are farther away than one rounding.
        largest: Largest difference.
        tensor: Where that is.
    """

    entries: int = 0
    coarse: int = 0
    largest: float = 0.0
    tensor: str = ""

    def plus(self, other: "Difference") -> "Difference":
        """Return that of both together."""
        largest = max(self, other, key=lambda one: one.largest)
        return Difference(
            self.entries + other.entries,
            self.coarse + other.coarse,
            largest.largest,
            largest.tensor,
        )


def verify_merge(plan: MergePlan, written: Checkpoint) -> Difference:
    """Compute a merge again and compare it with a checkpoint, in the dtypes of that checkpoint.

    A merge by this tool is the same to the bit. One by PEFT or mergekit, which add in another
    order or precision, may be one rounding away.

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
    total = Difference()
    with closing(in_parallel(partial(_compared, plan, found), batches)) as done:
        for _, difference in zip(shown, done, strict=True):
            total = total.plus(difference)
    if total.coarse and "drop_rate" in plan.merged.combine.options:
        raise UndecidedError(
            f"{written.path}: cannot tell: {total.coarse} entries differ from {plan.method} with "
            f"seed {plan.merged.seed}, and its masks are random; give the seed it was made with"
        )
    return total


def _compared(plan: MergePlan, found: Checkpoint, batch: tuple[TensorPlan, slice]) -> Difference:
    """Compare some entries of one tensor."""
    (tensor, part), total = batch, Difference()
    for start, wanted, _ in merged_runs(plan, tensor, part):
        entries = found.part(tensor.name, slice(start, start + len(wanted)))
        if torch.equal(wanted, entries):
            continue
        if not tensor.dtype.is_floating_point:
            unequal = int((wanted != entries).sum())
            total = total.plus(Difference(unequal, unequal, 1.0, tensor.name))
            continue
        one, other = wanted.double(), entries.double()
        distance = torch.nan_to_num((one - other).abs(), nan=torch.inf)
        step = torch.finfo(tensor.dtype).eps * torch.maximum(one.abs(), other.abs())
        difference = Difference(
            int((distance > 0).sum()),
            int((distance > step).sum()),
            float(distance.max()),
            tensor.name,
        )
        total = total.plus(difference)
    return total
