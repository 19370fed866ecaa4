"""Supervised fine-tuning through TRL's ``SFTTrainer``, on rows of tokens and labels."""

import gc
import hashlib
import json
import logging
import math
import os
import random
import tempfile
import time
import warnings
from collections.abc import Generator, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import EarlyStoppingCallback, PrinterCallback, TrainerCallback

from personality_vector.checkpoint import Checkpoint, revision_of
from personality_vector.errors import RecipeError, TrainingError, foreign, heard
from personality_vector.files import AtomicDirectory
from personality_vector.finetuning import processes
from personality_vector.finetuning.arguments import adapter_of, arguments_of
from personality_vector.finetuning.guidance import Guidance, require_guidance
from personality_vector.finetuning.recipe import SftSpec, TrainRecipe
from personality_vector.finetuning.resuming import Checkpoints, Scratch
from personality_vector.finetuning.rows import Row, Rows, held_out_rows_of, rows_of
from personality_vector.finetuning.saving import add_missing, require_finite_weights
from personality_vector.manifest import WEIGHTS, write_manifest
from personality_vector.progress import progress
from personality_vector.subject.models import (
    chosen_for,
    load_model,
    load_tokenizer,
    resolve_device,
)

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class TrainReport:
    """The result of a fine-tune.

    Attributes:
        path: A checkpoint directory, or a LoRA adapter if the recipe has ``lora``.
        examples: Number of chats that it learned from.
        loss: Training loss of the last step, nats per token.
        manifest: The content of ``MANIFEST.json``.
    """

    path: Path
    examples: int
    loss: float
    manifest: dict[str, Any] = field(repr=False)


def train(
    recipe: TrainRecipe,
    out: str | Path,
    *,
    force: bool = False,
    guidance: Guidance | None = None,
) -> TrainReport:
    """Fine-tune ``recipe.base`` on one pole and write the result.

    The loss is on the response only. Weights are trained and saved in ``sft.dtype``, float32 by
    default: in bfloat16 most of a small fine-tune is rounded away. A killed training leaves
    ``.OUT.training``, from which the same call resumes; on a CPU the weights are then those of an
    uninterrupted one.

    Args:
        recipe: A recipe with one pole.
        out: The directory to write.
        force: Replace an output that this tool wrote, and a training of something else.
        guidance: Acts during the training steps alone, not where the held-out loss is measured; its
            penalty is part of the training loss. A recipe with ``steer`` needs it.

    Raises:
        DataError: The data cannot be read or selects nothing.
        TrainingError: The loss is not finite, ``sft.max_length`` leaves nothing to learn or more
            than the model reads, or the guidance of a recipe with ``steer`` is missing.
        BaseMismatchError: The guidance is of another model.
        OutputExistsError: ``out`` exists, or ``.OUT.training`` is of another training.
    """
    out = Path(out)
    processes.require_several_for(fsdp=recipe.sft.fsdp)
    processes.join(resolve_device(recipe.device))
    base = Checkpoint.open(recipe.base)
    require_guidance(recipe, guidance, base)
    tokenizer = load_tokenizer(base.path, recipe.template)
    rows = rows_of(recipe, tokenizer)
    held_out = held_out_rows_of(recipe, tokenizer).rows if recipe.sft.evaluate_every else []
    with _published(out, base, force=force) as partial:
        guided = {} if guidance is None else {"guidance": guidance.identity()}
        identity = {**_identity(recipe, base, rows), **guided}
        scratch = processes.agreed(lambda: Scratch(out, identity, force=force))
        inputs = _Inputs(tokenizer, rows.rows, held_out, guidance)
        with scratch.kept_if_useful():
            trained = _fit(recipe, base, inputs, scratch)
            _save(trained, recipe, base, partial)
        manifest = {**_manifest(recipe, base, rows, trained), **guided}
        if processes.is_main_process():
            digest = Checkpoint.written(partial).fingerprint.digest
            manifest = write_manifest(partial, "train", {**manifest, WEIGHTS: digest})
    if processes.is_main_process():
        scratch.remove()
    log.info("trained %s on %d chats into %s", recipe.pole, len(rows.rows), out)
    return TrainReport(out, len(rows.rows), manifest["losses"][-1], manifest)


def time_step(recipe: TrainRecipe, guidance: Guidance | None = None) -> float:
    """Return the seconds of one step, the second of two that are trained and thrown away.

    Args:
        recipe: A recipe with one pole.
        guidance: What acts during the training.

    Raises:
        PersonalityVectorError: The model cannot be loaded or trained, for want of memory too.
    """
    short = {"max_steps": 2, "checkpoints": 0, "evaluate_every": None, "patience": None}
    sft = recipe.sft.model_copy(update={**short, "report_to": ()})
    base = Checkpoint.open(recipe.base)
    tokenizer = load_tokenizer(base.path, recipe.template)
    rows = rows_of(recipe, tokenizer).rows
    clock = _Clock()
    with tempfile.TemporaryDirectory() as folder:
        scratch = processes.agreed(lambda: Scratch(Path(folder, "step"), {}, force=False))
        inputs = _Inputs(tokenizer, rows, [], guidance, clock)
        _fit(recipe.model_copy(update={"sft": sft}), base, inputs, scratch)
    gc.collect()  # a trainer and its model hold each other
    return clock.seconds


@dataclass(frozen=True, slots=True)
class _Inputs:
    tokenizer: Any
    rows: list[Row]
    held_out: list[Row]
    guidance: Guidance | None
    watch: TrainerCallback | None = None


@contextmanager
def _published(out: Path, base: Checkpoint, *, force: bool) -> Generator[Path]:
    """Yield the directory to write into; of several processes, the main one publishes it."""
    with ExitStack() as stack:

        def begin() -> Path:
            directory = AtomicDirectory(out, kind="train", force=force, inputs=[base.path])
            return stack.enter_context(directory)

        yield processes.agreed(begin)


def _identity(recipe: TrainRecipe, base: Checkpoint, rows: Rows) -> dict[str, Any]:
    """Return everything that decides the weights."""
    digest = hashlib.blake2b(json.dumps(rows.rows).encode(), digest_size=16).hexdigest()
    return {
        "recipe": recipe.model_dump(mode="json", exclude={"sft": {"checkpoints", "report_to"}}),
        "base": base.fingerprint.digest,
        "rows": digest,
        "processes": processes.count(),
    }


def _manifest(recipe: TrainRecipe, base: Checkpoint, rows: Rows, trained: "Any") -> dict[str, Any]:
    history, evaluated = trained.state.log_history, {}
    if recipe.sft.evaluate_every:
        found = {str(row["step"]): row["eval_loss"] for row in history if "eval_loss" in row}
        evaluated = {"held_out_losses": found}
    several = {"count": processes.count(), "wrapper": processes.wrapper_of(trained)}
    return {
        "recipe": recipe.model_dump(mode="json"),
        "base": {
            "path": str(base.path),
            "fingerprint": base.fingerprint.digest,
            **revision_of(base.path),
        },
        "pole": str(recipe.pole),
        "seed": recipe.seed,
        **rows.counts(),
        "losses": [row["loss"] for row in history if "loss" in row],
        **evaluated,
        **({"processes": several} if processes.count() > 1 else {}),
        **chosen_for(base.path, recipe.template),
    }


def _fit(recipe: TrainRecipe, base: Checkpoint, inputs: _Inputs, scratch: Scratch) -> Any:
    """Train, from the last whole checkpoint if there is one, and return the trainer."""
    device = resolve_device(recipe.device)
    _require_trackers(recipe.sft)
    os.environ.setdefault("TENSORBOARD_LOGGING_DIR", str(scratch.logs))
    with warnings.catch_warnings(), _random_state_kept(device):
        warnings.simplefilter("ignore", FutureWarning)  # v6 renames gradient_checkpointing
        last = processes.agreed(scratch.begin)
        model = load_model(base.path, dtype=recipe.sft.dtype)
        with foreign(TrainingError, f"{base.reference}: TRL cannot train it like this"), heard():
            arguments = arguments_of(recipe, scratch.path, device, model)
            trainer = _trainer(recipe, model, inputs, arguments)
            _require_count(trainer, recipe.sft, len(inputs.rows))
            trainer.train(resume_from_checkpoint=None if last is None else str(last))
    return trainer


def _require_trackers(sft: SftSpec) -> None:
    for name in sft.report_to:
        if find_spec(name) is None:
            extra = "wandb" if name == "wandb" else "track"
            raise RecipeError(
                f"sft.report_to: {name} is not installed; pip install 'personality-vector[{extra}]'"
            )


def _require_count(trainer: Any, sft: SftSpec, count: int) -> None:
    """Refuse a trainer that would learn from fewer chats than said."""
    data = trainer.train_dataset
    learned = sum(map(len, data["seq_lengths"])) if sft.packing else len(data)
    if learned != count:
        raise TrainingError(f"TRL would learn from {learned} chats of {count}; leave out packing")


@contextmanager
def _random_state_kept(device: str) -> Iterator[None]:
    """Restore the random state of the caller, since the trainer seeds every generator."""
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    try:
        with torch.random.fork_rng(devices=[] if device == "cpu" else [device]):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002


class _TrainingMonitor(TrainerCallback):  # type: ignore[misc]  # transformers is not typed
    """Draws progress, and stops the training at NaN or infinity."""

    _steps: Iterator[int] = iter(())

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        """Open the bar."""
        self._steps = progress(range(state.max_steps), "train")

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        """Advance the bar, and close it after the last step."""
        next(self._steps, None)

    on_train_end = on_step_end

    def on_log(
        self,
        args: Any,  # noqa: ARG002
        state: Any,
        control: Any,  # noqa: ARG002
        logs: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        """Stop at a loss or gradient that is not finite."""
        for key in ("loss", "grad_norm"):
            value = (logs or {}).get(key, 0.0)
            if not math.isfinite(value):
                raise TrainingError(
                    f"{key} is {value} at step {state.global_step}; nothing was saved; "
                    "try a lower sft.learning_rate"
                )


class _Clock(TrainerCallback):  # type: ignore[misc]  # transformers is not typed
    """Measures the last step, in seconds."""

    seconds = _began = 0.0

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        """Start."""
        self._began = time.monotonic()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """Stop, once a GPU has done what it was given."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.seconds = time.monotonic() - self._began


def _trainer(recipe: TrainRecipe, model: Any, inputs: _Inputs, arguments: Any) -> Any:
    from datasets import Dataset
    from datasets.utils.logging import disable_progress_bar

    from personality_vector.finetuning.trainer import GuidedTrainer

    disable_progress_bar()
    callbacks = [
        _TrainingMonitor(),
        Checkpoints(0 if recipe.sft.patience else recipe.sft.checkpoints),
        *([inputs.watch] if inputs.watch else []),
    ]
    if recipe.sft.patience is not None:
        callbacks.append(EarlyStoppingCallback(recipe.sft.patience))
    trainer = GuidedTrainer(
        model=model,
        args=arguments,
        train_dataset=Dataset.from_list(inputs.rows),
        eval_dataset=Dataset.from_list(inputs.held_out) if inputs.held_out else None,
        processing_class=inputs.tokenizer,
        peft_config=adapter_of(recipe),
        callbacks=callbacks,
    )
    trainer.guidance = inputs.guidance
    trainer.remove_callback(PrinterCallback)  # it prints every log line to stdout
    if recipe.sft.fsdp:
        processes.shard_on_cpu(trainer)
    trainer.add_callback(processes.SpreadCheck(trainer, fsdp=recipe.sft.fsdp))
    return trainer


def _save(trainer: Any, recipe: TrainRecipe, base: Checkpoint, out: Path) -> None:
    """Write the weights, gathered from all processes, and what belongs to them."""
    model = trainer.accelerator.unwrap_model(trainer.model_wrapped)
    weights = trainer.accelerator.get_state_dict(trainer.model_wrapped)
    if not processes.is_main_process():
        return
    if recipe.sft.fsdp:  # what is gathered no longer shares its memory with what it is tied to
        every = dict(model.named_parameters(remove_duplicate=False)).keys()
        tied = every - dict(model.named_parameters()).keys()
        weights = {name: one for name, one in weights.items() if name not in tied}
    model.save_pretrained(out, state_dict=weights)
    require_finite_weights(out)
    if recipe.sft.lora is None:
        add_missing(out, base)
        if recipe.chat_template is not None:
            # What it was trained on is what it should be asked with.
            (out / "chat_template.jinja").write_text(recipe.chat_template, encoding="utf-8")
