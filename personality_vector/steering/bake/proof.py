"""The proof of an export: loaded in a new process, it gives the outputs of the steered model.

``python -m personality_vector.steering.bake.proof MODEL ADAPTER OUT DTYPE...`` is that process. It
knows nothing of how an export was made: it loads the files as any user would, and writes down what
they give.
"""

import gc
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from safetensors.torch import load_file, save_file
from torch import Tensor

from personality_vector.checkpoint import FLOATS
from personality_vector.errors import (
    CheckpointError,
    DataError,
    ModelError,
    PersonalityVectorError,
    VerificationError,
    some,
)
from personality_vector.subject.models import load_model, load_tokenizer

# One topic each: business, self-report, code, story.
_TEXTS = (
    "The committee met on Tuesday to decide how the money from the old mill should be spent, and",
    "I have been thinking about the party next weekend, and to be honest with you, I would rather",
    "def mean(values):\n    total = 0.0\n    for value in values:\n        total += value\n    ret",
    "When the ferry was late again, the passengers on the pier began to talk to one another about",
)
_LONGEST = 16

TOLERANCE = 1e-5
"""Largest error of a logit in float32; for logits above 1, relative to the largest."""

TOKENS = 64

# Steers a model in memory while a ``with`` block runs.
Steering = Callable[[Any], AbstractContextManager[Any]]


@dataclass(frozen=True, slots=True)
class Export:
    """What one route writes, and what that should be equal to.

    Attributes:
        write: Writes it into an empty directory.
        asked: Steers by the requested hooks.
        realised: Steers by the same hooks, with the numbers rounded to the dtype of the export.
        unrounded: Makes the export without rounding, if that differs from ``asked``.
        size: Bytes that it will take, if known.
    """

    write: Callable[[Path], None]
    asked: Steering
    realised: Steering
    unrounded: Steering | None = None
    size: int = 0


@dataclass(frozen=True, slots=True)
class Proof:
    """How far an export is from the hooks; largest absolute differences of logits.

    Attributes:
        error: Difference without the rounding of weights, in float32; only the order of additions
            is left. Below ``tolerance``, or nothing is published. It is the difference to hooks
            with the numbers that the export holds. Rounded ablations have no such hooks; then it
            is the larger of two: the export to the base in memory with the same rounded weights,
            and that with weights before rounding to the hooks.
        error_asked: Difference to the requested hooks in float32, with weights rounded when stored.
        error_stored: Difference to the requested hooks, both computed in the stored dtype.
        effect: Difference that the hooks make to the plain model, in float32.
        tolerance: :data:`TOLERANCE` times the largest logit, if that is above 1.
        dtype: The stored dtype.
        prompts: Number of prompts, and number of tokens in each.
        greedy_tokens: Number of tokens generated after each prompt, all equal.
    """

    error: float
    error_asked: float
    error_stored: float
    effect: float
    tolerance: float
    dtype: str
    prompts: tuple[int, int]
    greedy_tokens: int


def prove(model: Path, export: Export, dtype: torch.dtype, folder: Path) -> Proof:
    """Return how far an export is from the hooks on its base; one model in memory at a time.

    Args:
        model: The base's directory.
        export: What was written, and what it should be.
        dtype: Dtype of the stored weights.
        folder: The export: a checkpoint, or a PEFT adapter for ``model``.

    Raises:
        VerificationError: The export does not load whole, or differs by more than the tolerance,
            or generates another token.
        DataError: The steering changes no logit by more than the tolerance.
    """
    name = str(dtype).removeprefix("torch.")
    dtypes = ("float32", name) if name in FLOATS and name != "float32" else ("float32",)
    expected = _expected(model, export, dtypes)
    tolerance = TOLERANCE * max(1.0, float(expected["realised"].abs().max()))
    unrounded = _largest(expected["unrounded"], expected["asked"])
    if not unrounded <= tolerance:
        raise VerificationError(
            f"the edited weights differ from the hooks by {unrounded:.1e} in a logit "
            f"before rounding (at most {tolerance:.1e}); nothing was published"
        )
    effect = _largest(expected["asked"], expected["plain"])
    if effect <= tolerance:
        raise DataError(
            f"the steering changes logits by at most {effect:.1e}, which cannot be told from "
            "rounding; use a larger coefficient"
        )
    seen = _seen(model, folder, dtypes)
    _require_equal(expected, seen, tolerance, folder)
    return Proof(
        error=max(unrounded, _largest(seen["logits.float32"], expected["realised"])),
        error_asked=_largest(seen["logits.float32"], expected["asked"]),
        error_stored=_largest(seen[f"logits.{dtypes[-1]}"], expected["stored"]),
        effect=effect,
        tolerance=tolerance,
        dtype=name,
        prompts=(len(expected["prompts"]), expected["prompts"].shape[1]),
        greedy_tokens=TOKENS,
    )


def _expected(path: Path, export: Export, dtypes: tuple[str, ...]) -> dict[str, Tensor]:
    """Return the outputs of the base under its hooks: tokens, and logits by name."""
    ids = encoded(path)
    model = load_model(path, dtype=dtypes[0])
    with export.realised(model):
        sequences = continued(model, ids)
    steerings = {
        "realised": export.realised,
        "asked": export.asked,
        "plain": nullcontext,
        "unrounded": export.unrounded or export.asked,
    }
    found = {"prompts": ids, "sequences": sequences}
    for name, steering in steerings.items():
        with steering(model):
            found[name] = logits_of(model, sequences)
    if len(dtypes) == 1:
        return found | {"stored": found["asked"]}
    del model
    model = load_model(path, dtype=dtypes[1])
    with export.asked(model):
        return found | {"stored": logits_of(model, sequences)}


def _seen(model: Path, export: Path, dtypes: tuple[str, ...]) -> dict[str, Tensor]:
    """Return the outputs of an export in a new process."""
    is_adapter = (export / "adapter_config.json").is_file()
    whole, adapter = (model, str(export)) if is_adapter else (export, "")
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "seen.safetensors"
        done = subprocess.run(
            [
                sys.executable,
                "-P",
                "-m",
                "personality_vector.steering.bake.proof",
                str(whole),
                adapter,
                str(out),
                *dtypes,
            ],
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


def _require_equal(
    expected: dict[str, Tensor], seen: dict[str, Tensor], tolerance: float, export: Path
) -> None:
    if not seen["prompts"].equal(expected["prompts"]):
        raise VerificationError(
            f"{export}: its tokenizer reads the prompts differently from that of the base"
        )
    differ = (seen["sequences"] != expected["sequences"]).any(0)
    # Up to the first token that differs both have read the same, and logits can be compared.
    same = int(differ.int().argmax()) if differ.any() else len(differ)
    error = _largest(seen["logits.float32"][:, :same], expected["realised"][:, :same])
    if not error <= tolerance or same < len(differ):
        token = "" if same == len(differ) else f", and greedy token {same} differs"
        raise VerificationError(
            f"{export}: differs from the hooks by {error:.1e} in a logit "
            f"(at most {tolerance:.1e}){token}; nothing was published"
        )


def _largest(one: Tensor, other: Tensor) -> float:
    return float((one - other).abs().max())


def encoded(path: str | Path) -> Int[Tensor, "texts seq"]:
    """Return the ids of our texts by a checkpoint's tokenizer, all cut to one length."""
    rows = load_tokenizer(path)(list(_TEXTS))["input_ids"]
    length = min(_LONGEST, *map(len, rows))
    if length < 1:
        raise CheckpointError(
            f"{path}: its tokenizer finds no token in {_TEXTS[0]!r}, so nothing can be proved; "
            "add the files of the tokenizer"
        )
    return torch.tensor([row[:length] for row in rows])


@torch.no_grad()
def continued(model: Any, ids: Int[Tensor, "texts seq"]) -> Int[Tensor, "texts more"]:
    """Return ``ids`` and :data:`TOKENS` greedy tokens, decoded with a cache.

    Generation continues after an end mark. Of equal logits the first one wins.
    """
    chunk, cache = ids, None
    for _ in range(TOKENS):
        output = model(input_ids=chunk, past_key_values=cache, use_cache=True)
        chunk, cache = output.logits[:, -1:].argmax(-1), output.past_key_values
        ids = torch.cat([ids, chunk], dim=1)
    return ids


@torch.no_grad()
def logits_of(model: Any, ids: Int[Tensor, "texts seq"]) -> Float[Tensor, "texts seq vocab"]:
    """Return the logits of one uncached pass; float32."""
    found: Tensor = model(input_ids=ids, use_cache=False).logits.float()
    return found


def load_export(model: str, adapter: str, dtype: str) -> Any:
    """Return a model by ``AutoModelForCausalLM``, and PEFT where there is an adapter.

    Raises:
        ModelError: A tensor on disk has no parameter in the model, or the reverse.
    """
    loaded = load_model(model, dtype=dtype)
    if not adapter:
        return loaded
    from peft import PeftModel

    adapted = PeftModel.from_pretrained(loaded, adapter).eval()
    stored = load_file(Path(adapter) / "adapter_model.safetensors")
    found = {
        name.replace(".default.", "."): parameter.data
        for name, parameter in adapted.named_parameters()
        if ".lora_" in name
    }
    lost = stored.keys() ^ found.keys()
    lost |= {name for name in stored.keys() - lost if not torch.equal(stored[name], found[name])}
    if lost:
        raise ModelError(f"{adapter}: PEFT does not load what is on disk: {some(lost)}")
    return adapted


def main(model: str, adapter: str, out: str, *dtypes: str) -> int:
    """Write the outputs of an export, generated in the first dtype; on failure say why on stderr.

    Args:
        model: A checkpoint directory.
        adapter: A PEFT adapter for it, or "".
        out: A safetensors file to write.
        dtypes: To compute in.
    """
    try:
        seen = {"prompts": encoded(model)}
        for dtype in dtypes:
            loaded = load_export(model, adapter, dtype)
            if "sequences" not in seen:
                seen["sequences"] = continued(loaded, seen["prompts"])
            seen[f"logits.{dtype}"] = logits_of(loaded, seen["sequences"])
            del loaded
            gc.collect()
        save_file(seen, out)
    except PersonalityVectorError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
