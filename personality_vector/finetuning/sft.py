"""Supervised fine-tuning through TRL's ``SFTTrainer``, on rows of tokens and labels."""

import gc
import hashlib
import json
import logging
import os
import random
import sys
import tempfile
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
from personality_vector.finetuning.callbacks import Clock, Monitor
from personality_vector.finetuning.guidance import Guidance, require_guidance
from personality_vector.finetuning.recipe import SftSpec, TrainRecipe
from personality_vector.finetuning.resuming import Checkpoints, Scratch
from personality_vector.finetuning.rows import Row, Rows, held_out_rows_of, rows_of
from personality_vector.finetuning.saving import add_missing, require_finite_weights
from personality_vector.manifest import WEIGHTS, write_manifest
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
    out, learned, scratch = Path(out), prepare(recipe, guidance), None
    try:
        with _published(out, learned.base, force=force) as partial:
            identity = {"training": learned.identity, "processes": processes.count()}
            scratch = processes.agreed(lambda: Scratch(out, identity, force=force))
            trained = _fit(recipe, learned, scratch)
            _save(trained, recipe, learned.base, partial)
            manifest = _manifest(recipe, learned, trained)
            if processes.is_main_process():
                digest = Checkpoint.written(partial).fingerprint.digest
                manifest = write_manifest(partial, "train", {**manifest, WEIGHTS: digest})
    except BaseException as error:
        if scratch is not None:
            scratch.remove_if_useless(error)
        raise
    if processes.is_main_process():
        scratch.remove()
    count = len(learned.rows.rows)
    log.info("trained %s on %d chats into %s", recipe.pole, count, out)
    return TrainReport(out, count, manifest["losses"][-1], manifest)


@dataclass(frozen=True, slots=True)
class Prepared:
    """Everything that a training learns from and with, but the model.

    Attributes:
        base: What is trained.
        tokenizer: Its tokenizer.
        rows: The training rows.
        held_out: Those that the held-out loss is measured on.
        guidance: What acts during training alone.
        identity: Digest of all that decides the weights, but the number of processes.
    """

    base: Checkpoint
    tokenizer: Any
    rows: Rows
    held_out: list[Row]
    guidance: Guidance | None
    identity: str


def prepare(recipe: TrainRecipe, guidance: Guidance | None = None) -> Prepared:
    """Read what a recipe with one pole learns from; no model is loaded.

    Raises: as :func:`train`.
    """
    processes.require_several_for(fsdp=recipe.sft.fsdp)
    processes.join(resolve_device(recipe.device))
    adapter_of(recipe)  # what PEFT refuses is refused now
    base = Checkpoint.open(recipe.base)
    require_guidance(recipe, guidance, base)
    tokenizer = load_tokenizer(base.path, recipe.template)
    rows = rows_of(recipe, tokenizer)
    held_out = held_out_rows_of(recipe, tokenizer).rows if recipe.sft.evaluate_every else []
    unimportant = {"sft": {"checkpoints", "report_to"}}
    decisive = [
        recipe.model_dump(mode="json", exclude=unimportant),
        base.fingerprint.digest,
        rows.digest(),
        held_out if recipe.sft.patience else [],
        guidance and guidance.identity(),
    ]
    digest = hashlib.blake2b(json.dumps(decisive).encode(), digest_size=16).hexdigest()
    return Prepared(base, tokenizer, rows, held_out, guidance, digest)


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
    brief, clock = recipe.model_copy(update={"sft": sft}), Clock()
    learned = prepare(brief, guidance)
    with tempfile.TemporaryDirectory() as folder:
        scratch = processes.agreed(lambda: Scratch(Path(folder, "step"), {}, force=False))
        _fit(brief, learned, scratch, clock)
    gc.collect()  # a trainer and its model hold each other
    return clock.seconds


@contextmanager
def _published(out: Path, base: Checkpoint, *, force: bool) -> Generator[Path]:
    """Yield the directory to write into; of several processes, the main one publishes it."""
    with ExitStack() as stack:

        def begin() -> Path:
            directory = AtomicDirectory(out, kind="train", force=force, inputs=[base.path])
            return stack.enter_context(directory)

        yield processes.agreed(begin)


def _manifest(recipe: TrainRecipe, learned: Prepared, trained: Any) -> dict[str, Any]:
    history, evaluated, base = trained.state.log_history, {}, learned.base
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
        "training": learned.identity,
        **learned.rows.counts(),
        "losses": [row["loss"] for row in history if "loss" in row],
        **evaluated,
        **({"guidance": learned.guidance.identity()} if learned.guidance else {}),
        **({"processes": several} if processes.count() > 1 else {}),
        **chosen_for(base.path, recipe.template),
    }


def _fit(
    recipe: TrainRecipe, learned: Prepared, scratch: Scratch, watch: TrainerCallback | None = None
) -> Any:
    """Train, from the last whole checkpoint if there is one, and return the trainer."""
    device, base = resolve_device(recipe.device), learned.base
    _require_trackers(recipe.sft)
    with warnings.catch_warnings(), _random_state_kept(device), _logging_to(scratch.logs):
        warnings.simplefilter("ignore", FutureWarning)  # v6 renames gradient_checkpointing
        last = processes.agreed(scratch.begin)
        model = load_model(base.path, dtype=recipe.sft.dtype)
        with foreign(TrainingError, f"{base.reference}: TRL cannot train it like this"), heard():
            arguments = arguments_of(recipe, scratch.path, device, model)
            trainer = _trainer(recipe, model, learned, arguments)
            if watch is not None:
                trainer.add_callback(watch)
            _require_count(trainer, recipe.sft, len(learned.rows.rows))
            trainer.train(resume_from_checkpoint=None if last is None else str(last))
    return trainer


@contextmanager
def _logging_to(folder: Path) -> Generator[None]:
    """Let tensorboard write into a folder of this training, unless the user names one."""
    name = "TENSORBOARD_LOGGING_DIR"
    given = os.environ.get(name)
    os.environ[name] = given or str(folder)
    try:
        yield
    finally:
        if not given:
            del os.environ[name]
        if "wandb" in sys.modules:  # the next training has a run of its own
            sys.modules["wandb"].finish()


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


def _trainer(recipe: TrainRecipe, model: Any, learned: Prepared, arguments: Any) -> Any:
    from datasets import Dataset
    from datasets.utils.logging import disable_progress_bar

    from personality_vector.finetuning.trainer import GuidedTrainer

    disable_progress_bar()
    patience = recipe.sft.patience
    callbacks = [Monitor(), Checkpoints(0 if patience else recipe.sft.checkpoints)]
    if patience is not None:
        callbacks.append(EarlyStoppingCallback(patience))
    trainer = GuidedTrainer(
        model=model,
        args=arguments,
        train_dataset=Dataset.from_list(learned.rows.rows),
        eval_dataset=Dataset.from_list(learned.held_out) if learned.held_out else None,
        processing_class=learned.tokenizer,
        peft_config=adapter_of(recipe),
        callbacks=callbacks,
    )
    trainer.guidance = learned.guidance
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
    if not recipe.sft.is_adapter:
        add_missing(out, base)
        if recipe.chat_template is not None:
            # What it was trained on is what it should be asked with.
            (out / "chat_template.jinja").write_text(recipe.chat_template, encoding="utf-8")
