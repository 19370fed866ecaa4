"""What steering costs: tokens per second of ``generate``, steered by us, by others, and baked in.

    python tests/benchmarks/steering/overhead.py --model builtin:demo

All cases take turns in one process; each number is the median of the repeats, and each ratio the
median over the repeats of the ratio to the unsteered run of the same repeat. The hooks of other
tools are re-stated: what they do at each call, without the rest of their code.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from personality_vector.checkpoint import Checkpoint
from personality_vector.numeric.random import generator_for
from personality_vector.steering import Positions, SteeringVector, steered
from personality_vector.steering.bake import bake
from personality_vector.subject.models import decoder_blocks, hidden_size, load_model

Case = tuple[Any, AbstractContextManager[None]]
UNSTEERED = "unsteered"


class ControlModule(nn.Module):
    """repeng's way, re-stated: a module around the block, with a mask made from position ids."""

    def __init__(self, block: nn.Module, addition: Tensor) -> None:
        super().__init__()
        self.block, self.addition = block, addition

    def forward(self, *args: Any, **given: Any) -> Any:
        output = self.block(*args, **given)
        hidden = output[0] if isinstance(output, tuple) else output
        control = self.addition.to(hidden.device, hidden.dtype).reshape(1, 1, -1)
        positions = given.get("position_ids")
        if positions is not None:
            mask = positions.ne(0).to(hidden.dtype).unsqueeze(-1)
            mask = mask.expand(hidden.shape[0], -1, hidden.shape[-1])
            control = control * mask
        moved = hidden + control
        return (moved, *output[1:]) if isinstance(output, tuple) else moved


@contextmanager
def wrapped(model: nn.Module, additions: Mapping[int, Tensor]) -> Generator[None]:
    """Steer by modules around the blocks."""
    blocks = decoder_blocks(model)
    plain = {layer: blocks[layer] for layer in additions}
    for layer, addition in additions.items():
        blocks[layer] = ControlModule(plain[layer], addition)
    try:
        yield
    finally:
        for layer, block in plain.items():
            blocks[layer] = block


@contextmanager
def hooked(
    model: nn.Module, additions: Mapping[int, Tensor], edit: Callable[[Tensor, Tensor], Tensor]
) -> Generator[None]:
    """Steer by hooks that do ``edit`` at every call."""

    def hook(addition: Tensor) -> Callable[..., Any]:
        def steer(_block: Any, _args: Any, output: Any) -> Any:
            if isinstance(output, tuple):
                return (edit(output[0], addition), *output[1:])
            return edit(output, addition)

        return steer

    blocks = decoder_blocks(model)
    handles = [blocks[layer].register_forward_hook(hook(v)) for layer, v in additions.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def masked_in_place(hidden: Tensor, addition: Tensor) -> Tensor:
    """steering-vectors' way: a mask that is built at every call, and an edit in place."""
    mask = torch.ones(hidden.shape[1])
    mask[:0] = 0
    delta = addition.reshape(1, 1, -1).to(hidden.device)
    hidden[None] = hidden[None] + mask.to(hidden.device).reshape(1, -1, 1) * delta
    return hidden


def last_position(hidden: Tensor, addition: Tensor) -> Tensor:
    """Persona vectors' way: a copy, of which the last position moves."""
    moved = hidden.clone()
    moved[:, -1, :] += addition.to(hidden.device)
    return moved


def cases(model: Any, baked: Any, size: float) -> dict[str, Case]:
    """Return every way to run: a model, and what to do to it."""
    count = len(decoder_blocks(model))
    every = {layer: _direction(model, layer, size) for layer in range(count)}
    one = {count // 2: every[count // 2]}
    response = Positions.parse("response")
    found: dict[str, Case] = {UNSTEERED: (model, nullcontext())}
    for name, additions in (("one layer", one), ("all layers", every)):
        found |= {
            f"pvec, {name}": (model, steered(model, additions)),
            f"pvec, {name}, response": (model, steered(model, additions, positions=response)),
            f"repeng, {name}": (model, wrapped(model, additions)),
            f"steering-vectors, {name}": (model, hooked(model, additions, masked_in_place)),
            f"persona vectors, {name}": (model, hooked(model, additions, last_position)),
        }
    return found | {"pvec, one layer, baked": (baked, nullcontext())}


def _direction(model: Any, layer: int, size: float) -> Tensor:
    drawn = torch.randn(hidden_size(model), generator=generator_for(0, f"direction {layer}"))
    return size * drawn / drawn.norm()


def tokens_per_second(model: Any, prompts: Tensor, new: int) -> float:
    """Generate ``new`` greedy tokens for every row, and return tokens per second."""
    start = time.perf_counter()
    model.generate(
        prompts,
        attention_mask=torch.ones_like(prompts),
        max_new_tokens=new,
        min_new_tokens=new,
        do_sample=False,
        pad_token_id=0,
    )
    return prompts.shape[0] * new / (time.perf_counter() - start)


def measure(given: argparse.Namespace, model: Any, baked: Any) -> dict[str, list[float]]:
    """Run every case ``repeats`` times, in turns."""
    generator = generator_for(0, "prompts")
    prompts = torch.randint(8, 200, (given.batch, given.prompt), generator=generator)
    prompts = prompts.to(given.device)
    found: dict[str, list[float]] = {}
    for repeat in range(given.repeats + 1):
        for name, (runs, context) in cases(model, baked, given.size).items():
            with context:
                speed = tokens_per_second(runs, prompts, given.new)
            if repeat:  # the first round warms up
                found.setdefault(name, []).append(speed)
    return found


def table(found: Mapping[str, list[float]]) -> str:
    """Return medians, and medians of the ratios to the unsteered run of the same round."""
    lines = ["| case | tokens/s | of unsteered |", "| --- | ---: | ---: |"]
    for name, speeds in found.items():
        ratios = [own / plain for own, plain in zip(speeds, found[UNSTEERED], strict=True)]
        share = statistics.median(ratios)
        lines.append(f"| {name} | {statistics.median(speeds):.0f} | {share:.3f} |")
    return "\n".join(lines)


def main() -> None:
    """Bake a vector, run every case and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="builtin:demo")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--prompt", type=int, default=16)
    parser.add_argument("--new", type=int, default=64)
    parser.add_argument("--size", type=float, default=0.5, help="norm of the vectors")
    parser.add_argument("--repeats", type=int, default=15)
    given = parser.parse_args()
    checkpoint = Checkpoint.open(given.model)
    model = load_model(checkpoint.path, device=given.device)
    layer = len(decoder_blocks(model)) // 2
    vector = SteeringVector(
        {layer: _direction(model, layer, given.size)}, "", None, "random", "none", (1, 1)
    )
    with TemporaryDirectory() as folder:
        out = Path(folder) / "baked"
        bake(vector, checkpoint.path, [layer], 1.0, out)
        baked = load_model(out, device=given.device)
        print(table(measure(given, model, baked)))


if __name__ == "__main__":
    main()
