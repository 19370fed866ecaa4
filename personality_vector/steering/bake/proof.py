"""The proof of an export: loaded in a new process, it says what the steered model says."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from personality_vector.errors import DataError, VerificationError
from personality_vector.steering.bake.observe import (
    Request,
    continued,
    encoded,
    logits_of,
    write_request,
)
from personality_vector.subject.models import DTYPES, load_model

TOLERANCE = 1e-5
"""Of a logit in float32, for logits up to 1 in size; in proportion to the largest above."""

TOKENS = 64

Steering = Callable[[Any], AbstractContextManager[None]]
"""Steers a model in memory while a ``with`` block runs."""


@dataclass(frozen=True, slots=True)
class Reference:
    """What an export should be equal to.

    Attributes:
        asked: The hooks that were asked for.
        realised: The same with the numbers that the export's dtype could hold.
        unrounded: What the export would be without rounding, if that is not ``asked`` by itself.
    """

    asked: Steering
    realised: Steering
    unrounded: Steering | None = None


@dataclass(frozen=True, slots=True)
class Proof:
    """How far an export is from the hooks; largest absolute differences of logits.

    Attributes:
        error: Without rounding of the weights, computed in float32: what is left is the order of
            additions. Below ``tolerance``, or nothing is published. It is the difference to hooks
            with the numbers that the export holds. Rounded ablations have no such hooks; then it
            is the larger of two: the export to the base in memory with the same rounded weights,
            and that with weights before rounding to the hooks.
        error_asked: To the hooks as asked for, in float32: with the rounding to the stored dtype.
        error_stored: To the hooks as asked for, both computed in the stored dtype.
        effect: Of the hooks: to the model without them, in float32.
        tolerance: :data:`TOLERANCE` times the largest logit, if that is above 1.
        dtype: The stored dtype.
        prompts: Number of prompts, and of tokens in each.
        greedy_tokens: Generated after each; all equal.
    """

    error: float
    error_asked: float
    error_stored: float
    effect: float
    tolerance: float
    dtype: str
    prompts: tuple[int, int]
    greedy_tokens: int


@dataclass(slots=True)
class _Expected:
    """What the base says under its hooks."""

    prompts: Tensor
    sequences: Tensor
    realised: Tensor
    asked: Tensor
    plain: Tensor
    stored: Tensor
    unrounded: float = 0.0
    tolerance: float = field(init=False)

    def __post_init__(self) -> None:
        self.tolerance = TOLERANCE * max(1.0, float(self.realised.abs().max()))


def prove(model: Path, reference: Reference, dtype: torch.dtype, export: Path) -> Proof:
    """Return how far an export is from the hooks on its base; one model in memory at a time.

    Args:
        model: The base's directory.
        reference: What the export should be.
        dtype: Of the stored weights.
        export: Directory of a checkpoint or of a PEFT adapter for ``model``.

    Raises:
        VerificationError: The export does not load whole, or differs by more than the tolerance,
            or generates another token.
        DataError: The steering changes no logit by more than the tolerance.
    """
    name = str(dtype).removeprefix("torch.")
    dtypes = ("float32", name) if name in DTYPES and name != "float32" else ("float32",)
    expected = _expected(model, reference, dtypes)
    effect = _largest(expected.asked, expected.plain)
    if effect <= expected.tolerance:
        raise DataError(
            f"the steering changes logits by at most {effect:.1e}, which no proof tells from "
            "rounding; use a larger coefficient"
        )
    seen = _seen(model, export, dtypes)
    _require_equal(expected, seen, export)
    return Proof(
        error=max(expected.unrounded, _largest(seen["logits.float32"], expected.realised)),
        error_asked=_largest(seen["logits.float32"], expected.asked),
        error_stored=_largest(seen[f"logits.{dtypes[-1]}"], expected.stored),
        effect=effect,
        tolerance=expected.tolerance,
        dtype=name,
        prompts=(len(expected.prompts), expected.prompts.shape[1]),
        greedy_tokens=TOKENS,
    )


def _expected(path: Path, reference: Reference, dtypes: tuple[str, ...]) -> _Expected:
    ids = encoded(path)
    model = load_model(path, dtype=dtypes[0])
    with reference.realised(model):
        sequences = continued(model, ids, TOKENS)
        realised = logits_of(model, sequences)
    with reference.asked(model):
        asked = logits_of(model, sequences)
    plain = logits_of(model, sequences)
    expected = _Expected(ids, sequences, realised, asked, plain, asked)
    if reference.unrounded is not None:
        with reference.unrounded(model):
            expected.unrounded = _largest(logits_of(model, sequences), asked)
        _require_exact(expected)
    if len(dtypes) > 1:
        del model
        model = load_model(path, dtype=dtypes[1])
        with reference.asked(model):
            expected.stored = logits_of(model, sequences)
    return expected


def _require_exact(expected: _Expected) -> None:
    """Check that it is rounding alone that parts the realised steering from the asked one."""
    if not expected.unrounded <= expected.tolerance:
        raise VerificationError(
            f"the edited weights differ from the hooks by {expected.unrounded:.1e} in a logit "
            f"before rounding (at most {expected.tolerance:.1e}); nothing was published"
        )


def _seen(model: Path, export: Path, dtypes: tuple[str, ...]) -> dict[str, Tensor]:
    """Return what a new process sees of an export."""
    is_adapter = (export / "adapter_config.json").is_file()
    with tempfile.TemporaryDirectory() as folder:
        file, out = Path(folder) / "request.json", Path(folder) / "seen.safetensors"
        whole, adapter = (model, str(export)) if is_adapter else (export, "")
        write_request(Request(str(whole), adapter, dtypes, TOKENS, str(out)), file)
        done = subprocess.run(
            [sys.executable, "-P", "-m", "personality_vector.steering.bake.observe", str(file)],
            env={**os.environ, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            why = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
            raise VerificationError(
                f"{export}: cannot be used in a new process, so nothing was published: {why}"
            )
        return load_file(out)


def _require_equal(expected: _Expected, seen: dict[str, Tensor], export: Path) -> None:
    if not torch.equal(seen["prompts"], expected.prompts):
        raise VerificationError(
            f"{export}: its tokenizer reads the prompts otherwise than that of the base"
        )
    differ = (seen["sequences"] != expected.sequences).any(0)
    # Up to the first token that differs both have read the same, and logits can be compared.
    same = int(differ.int().argmax()) if differ.any() else len(differ)
    error = _largest(seen["logits.float32"][:, :same], expected.realised[:, :same])
    if not error <= expected.tolerance or same < len(differ):
        token = "" if same == len(differ) else f", and greedy token {same} is another"
        raise VerificationError(
            f"{export}: differs from the hooks by {error:.1e} in a logit "
            f"(at most {expected.tolerance:.1e}){token}; nothing was published"
        )


def _largest(one: Tensor, other: Tensor) -> float:
    return float((one - other).abs().max())
