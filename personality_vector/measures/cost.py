"""Cost: tokens, time, memory and price of replies."""

import re
import resource
import statistics
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field, model_validator

from personality_vector.measures.spec import Asking, AskingSpec, BaseMeasure
from personality_vector.recipes.schema import Real
from personality_vector.subject import Better, Reading, Subject

_QUERIES = 10_000
_STATUS = Path("/proc/self/status")


class CostSpec(AskingSpec):
    """Tokens, seconds and memory of replies; a price where those of a million tokens are given."""

    price_in: Real | None = Field(default=None, ge=0)
    price_out: Real | None = Field(default=None, ge=0)

    @model_validator(mode="after")
    def _both_prices(self) -> "CostSpec":
        if (self.price_in is None) != (self.price_out is None):
            raise ValueError(
                "give price_in and price_out together, each for a million tokens; 0 is a price"
            )
        return self

    def open(self) -> "Cost":
        """Read the instrument.

        Raises:
            RecipeError: It is missing or not one.
        """
        return Cost(self.asking(), self.price_in, self.price_out, self.called)


@dataclass(frozen=True, slots=True)
class Cost(BaseMeasure):
    """What a reply costs, as means over replies.

    ``tokens_in`` and ``tokens_out``: of the prompt, what an edit adds to it included, and of the
    reply, its thoughts and end mark included. ``seconds``: the reply's share of the time of its
    batch, which may hold several samples. Replies to the same questions that another measure of the
    cell drew are not drawn again, and cost what they did then; but those from a batch of several
    points are, since its time is not that of one point.

    ``price``: ``10,000 * (tokens_in * price_in + tokens_out * price_out) / 1,000,000``, for 10,000
    queries in the currency of the two prices. ``memory``: most memory that the process had at one
    time so far, in GB (1e9 bytes): what torch allocated on a GPU, and otherwise the resident memory
    with the files that it maps. What was measured before counts, so compare processes with it, and
    not the cells of one.

    Attributes:
        asking: The questions, and how replies are drawn.
        price_in: Of a million tokens of prompts; ``None`` leaves the price out.
        price_out: Of a million tokens of replies.
    """

    asking: Asking
    price_in: float | None = None
    price_out: float | None = None
    name: str = "cost"

    version: ClassVar[int] = 2
    unit: ClassVar[str] = "tokens"
    better: ClassVar[Better] = "low"

    def collect(self, subject: Subject, seed: int) -> list[Reading]:
        """Return the means over replies, and the peak of memory."""
        replies = [one.reply for one in self.asking(subject, seed)]
        if any(reply.is_shared for reply in replies):
            own = replace(subject, memory=None)
            replies = [one.reply for one in self.asking(own, seed)]
        tokens_in = statistics.fmean(reply.tokens_in for reply in replies)
        tokens_out = statistics.fmean(reply.tokens_out for reply in replies)
        found = {
            "tokens_in": (tokens_in, ""),
            "tokens_out": (tokens_out, ""),
            "seconds": (statistics.fmean(reply.seconds for reply in replies), "seconds"),
        }
        if self.price_in is not None and self.price_out is not None:
            spent = tokens_in * self.price_in + tokens_out * self.price_out
            found["price"] = (_QUERIES * spent / 1e6, "for 10,000 queries")
        readings = [
            Reading(f"{self.name}.{number}", value, n=len(replies), unit=unit)
            for number, (value, unit) in found.items()
        ]
        peak = _peak_bytes(subject.model) / 1e9
        return [*readings, Reading(f"{self.name}.memory", peak, n=1, unit="GB")]


def _peak_bytes(model: Any) -> int:
    """Return the most memory that this process had at one time."""
    import torch

    from personality_vector.subject.models import device_of

    device = device_of(model)
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if _STATUS.is_file():
        # getrusage would count the process that started this one.
        found = re.search(r"VmHWM:\s*(\d+) kB", _STATUS.read_text(encoding="ascii"))
        if found:
            return int(found[1]) << 10
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most << 10
