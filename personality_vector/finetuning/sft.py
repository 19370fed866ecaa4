"""Supervised fine-tuning through TRL's ``SFTTrainer``, on prompt-completion chats."""

import logging
import math
import random
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from transformers import PrinterCallback, TrainerCallback

from personality_vector.checkpoint import (
    Checkpoint,
    ShardWriter,
    TensorPlan,
    read_header,
    revision_of,
)
from personality_vector.data.chats import Selection, select_chats
from personality_vector.delta.provenance import matched
from personality_vector.delta.sources import require_finite
from personality_vector.errors import NonFiniteError, TrainingError, foreign
from personality_vector.files import AtomicDirectory
from personality_vector.finetuning.recipe import TrainRecipe
from personality_vector.manifest import WEIGHTS, write_manifest
from personality_vector.progress import progress
from personality_vector.subject import Chat
from personality_vector.subject.chat import fitted, render
from personality_vector.subject.encoding import training_row
from personality_vector.subject.models import (
    chosen_for,
    load_model,
    load_tokenizer,
    resolve_device,
)
from personality_vector.subject.thoughts import left_open, marks_of

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


def train(recipe: TrainRecipe, out: str | Path, *, force: bool = False) -> TrainReport:
    """Fine-tune ``recipe.base`` on one pole and write the result.

    The loss is on the response only. Weights are trained and saved in ``sft.dtype``, float32 by
    default: in bfloat16 most of a small fine-tune is rounded away.

    Raises:
        DataError: The data cannot be read or selects nothing.
        TrainingError: The loss is not finite, or ``sft.max_length`` leaves nothing to learn or more
            than the model reads.
        OutputExistsError: ``out`` exists.
    """
    base = Checkpoint.open(recipe.base)
    data = select_chats(recipe.data.narrowed(recipe.pole))
    with AtomicDirectory(out, kind="train", force=force, inputs=[base.path]) as partial:
        losses, lengths = _fit(recipe, base, data.chats, partial)
        counts = _counts(data, lengths)
        manifest = write_manifest(
            partial,
            "train",
            {
                "recipe": recipe.model_dump(mode="json"),
                "base": {
                    "path": str(base.path),
                    "fingerprint": base.fingerprint.digest,
                    **revision_of(base.path),
                },
                "pole": str(recipe.pole),
                "seed": recipe.seed,
                **counts,
                "losses": losses,
                **chosen_for(base.path, recipe.template),
                WEIGHTS: Checkpoint.written(partial).fingerprint.digest,
            },
        )
    log.info("trained %s on %d chats into %s", recipe.pole, counts["examples"], out)
    return TrainReport(Path(out), counts["examples"], manifest["losses"][-1], manifest)


def rehearse(recipe: TrainRecipe) -> dict[str, Any]:
    """Return what a training would learn from, and what it would drop and cut, without weights.

    Raises:
        DataError: The data cannot be read, or the chat template cannot show them.
        TrainingError: ``sft.max_length`` leaves nothing to learn, or more than the model reads.
    """
    base = Checkpoint.open(recipe.base)
    data = select_chats(recipe.data.narrowed(recipe.pole))
    tokenizer = load_tokenizer(base.path, recipe.template)
    if _opens_a_thought(tokenizer, data.chats[0]):
        rows = [training_row(tokenizer, chat)["labels"] for chat in data.chats]
        spans = [(_start(labels), len(labels)) for labels in rows]
    else:
        spans = [_span(tokenizer, chat) for chat in data.chats]
    lengths = _measured(tokenizer, spans, recipe.sft.max_length)
    return {**_counts(data, lengths), **chosen_for(base.path, recipe.template)}


class _Lengths(NamedTuple):
    """How many chats ``max_length`` left without a token to learn, and how many it cut."""

    too_long: int
    cut: int


def _counts(data: Selection, lengths: _Lengths) -> dict[str, Any]:
    return {
        "examples": len(data.chats) - lengths.too_long,
        "dropped": dict(+Counter({**data.dropped, "too long": lengths.too_long})),
        "cut": lengths.cut,
    }


def _fit(
    recipe: TrainRecipe, base: Checkpoint, chats: list[Chat], out: Path
) -> tuple[list[float], _Lengths]:
    """Train, save into ``out`` and return the loss of every step."""
    device = resolve_device(recipe.device)
    with (
        tempfile.TemporaryDirectory() as scratch,
        warnings.catch_warnings(),
        _random_state_kept(device),
    ):
        warnings.simplefilter("ignore", FutureWarning)  # v6 renames gradient_checkpointing
        with foreign(TrainingError, f"{base.reference}: TRL cannot train it like this"):
            trainer = _trainer(recipe, base, chats, _arguments(recipe, scratch, device))
            lengths = _shorten(trainer, recipe.sft.max_length)
            trainer.train()
    trainer.model.save_pretrained(out)
    _require_finite(out)
    if recipe.sft.lora is None:
        _add_missing(out, base)
        if recipe.chat_template is not None:
            # What it was trained on is what it should be asked with.
            (out / "chat_template.jinja").write_text(recipe.chat_template, encoding="utf-8")
    return [row["loss"] for row in trainer.state.log_history if "loss" in row], lengths


def _shorten(trainer: Any, most: int) -> _Lengths:
    """Cut the trainer's examples to ``most`` tokens as TRL does, which does not count them."""
    whole = trainer.train_dataset
    spans = [(_start(labels), len(labels)) for labels in whole["labels"]]
    found = _measured(trainer.processing_class, spans, most)
    if any(found):
        shorter = whole.map(lambda row: {key: row[key][:most] for key in ("input_ids", "labels")})
        trainer.train_dataset = shorter.filter(lambda row: max(row["labels"]) >= 0)
    return found


def _start(labels: list[int]) -> int:
    """Return where a completion starts: -100 stands for a token that is not learned."""
    return next((at for at, label in enumerate(labels) if label >= 0), len(labels))


def _span(tokenizer: Any, chat: Chat) -> tuple[int, int]:
    """Return where the completion of a chat starts and ends, in tokens, as TRL finds it."""
    prompt, whole = (
        tokenizer(render(tokenizer, shown, reply_follows=follows), add_special_tokens=False)
        for shown, follows in ((chat[:-1], True), (chat, False))
    )
    ids = whole["input_ids"]
    same = takewhile(lambda pair: pair[0] == pair[1], zip(prompt["input_ids"], ids, strict=False))
    return len(list(same)), len(ids)


def _measured(tokenizer: Any, spans: list[tuple[int, int]], most: int) -> _Lengths:
    """Count the completions that ``most`` tokens leave nothing of, and those that they cut.

    Raises:
        TrainingError: They leave nothing of any, or more than the model reads.
    """
    starts, sizes = zip(*spans, strict=True)
    longest = max((min(size, most) for start, size in spans if start < most), default=0)
    if tokenizer.most_tokens is not None and longest > tokenizer.most_tokens:
        raise TrainingError(
            f"sft.max_length: allows chats of {longest:,} tokens, and the model reads at most "
            f"{tokenizer.most_tokens:,}; set it to {tokenizer.most_tokens} or less"
        )
    too_long = sum(map(most.__le__, starts))
    cut = sum(map(most.__lt__, sizes)) - too_long
    if too_long == len(sizes):
        raise TrainingError(
            f"sft.max_length: {most} tokens cut away every completion, since the shortest prompt "
            f"has {min(starts)}; {max(sizes)} would hold every chat"
        )
    if too_long or cut:
        log.warning(
            "sft.max_length: %d tokens are too few for %d of %d chats (dropped for want of a "
            "completion: %d, cut: %d); %d would hold every chat",
            *(most, too_long + cut, len(sizes), too_long, cut, max(sizes)),
        )
    return _Lengths(too_long, cut)


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


def _trainer(recipe: TrainRecipe, base: Checkpoint, chats: list[Chat], arguments: Any) -> Any:
    from datasets import Dataset
    from datasets.utils.logging import disable_progress_bar
    from trl import SFTTrainer

    disable_progress_bar()
    tokenizer = load_tokenizer(base.path, recipe.template)
    if _opens_a_thought(tokenizer, chats[0]):
        rows: list[dict[str, Any]] = [training_row(tokenizer, chat) for chat in chats]
    else:
        shown = [fitted(tokenizer, chat) for chat in chats]
        rows = [{"prompt": chat[:-1], "completion": [chat[-1]]} for chat in shown]
    trainer = SFTTrainer(
        model=load_model(base.path, dtype=recipe.sft.dtype),
        args=arguments,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        peft_config=_peft_config(recipe),
        callbacks=[_TrainingMonitor()],
    )
    trainer.remove_callback(PrinterCallback)  # it prints every log line to stdout
    return trainer


def _opens_a_thought(tokenizer: Any, chat: Chat) -> bool:
    """Return whether a prompt ends inside a thought; TRL would not bound a template."""
    prompt = render(tokenizer, chat[:-1], reply_follows=True)
    return left_open(prompt, marks_of(tokenizer)) is not None


def _require_finite(out: Path) -> None:
    """Check the weights, which the last step can break without a loss that shows it."""
    for file in sorted(out.glob("*.safetensors")):
        weights = Checkpoint(out, read_header(file))
        for name in weights.names:
            try:
                require_finite(weights, name)
            except NonFiniteError as error:
                raise TrainingError(
                    f"{name} is not finite after training; nothing was saved; "
                    "try a lower sft.learning_rate"
                ) from error


def _add_missing(out: Path, base: Checkpoint) -> None:
    """Add the base's side files, and the tensors of the base that transformers did not save.

    A tied tensor that the base stores twice is written twice; a buffer that transformers computes
    itself and does not load is copied from the base.
    """
    base.copy_side_files(out)
    saved = Checkpoint.open(out)
    absent = [name for name in base.names if name not in saved.entries]
    if absent:
        _rewrite_with(saved, base, absent)
    matched(base, Checkpoint.open(out))


def _rewrite_with(saved: Checkpoint, base: Checkpoint, absent: list[str]) -> None:
    """Rewrite a saved checkpoint so that it also has the ``absent`` tensors."""
    dtype = next(iter(saved.entries.values())).dtype
    twins = {name: _twin(base, saved, name) for name in absent}
    plans = [TensorPlan(name, entry.dtype, entry.shape) for name, entry in saved.entries.items()]
    plans += [
        TensorPlan(name, dtype if entry.dtype.is_floating_point else entry.dtype, entry.shape)
        for name, entry in ((name, base.entries[name]) for name in absent)
    ]
    with tempfile.TemporaryDirectory(dir=saved.path) as whole:
        with ShardWriter(Path(whole), plans) as writer:
            for plan in plans:
                twin = twins.get(plan.name, plan.name)
                source = base[plan.name] if twin is None else saved[twin]
                writer.write(plan.name, source.to(plan.dtype))
        for file in saved.path.glob("*.safetensors*"):
            file.unlink()
        for file in Path(whole).iterdir():
            file.rename(saved.path / file.name)


def _twin(base: Checkpoint, saved: Checkpoint, name: str) -> str | None:
    """Return the saved tensor that the base ties to ``name``: the same values under two names."""
    entry = base.entries[name]
    if not entry.dtype.is_floating_point or len(entry.shape) < 2:
        return None
    same = (other for other in saved.names if saved.entries[other].shape == entry.shape)
    return next((other for other in same if torch.equal(base[other], base[name])), None)


def _arguments(recipe: TrainRecipe, scratch: str, device: str) -> Any:
    from trl import SFTConfig

    sft = recipe.sft
    return SFTConfig(
        output_dir=scratch,
        num_train_epochs=sft.epochs,
        learning_rate=sft.learning_rate,
        per_device_train_batch_size=sft.batch_size,
        gradient_accumulation_steps=sft.gradient_accumulation,
        max_length=None,  # `_shorten` counts what it cuts
        lr_scheduler_type=sft.scheduler,
        warmup_steps=sft.warmup_steps,
        weight_decay=sft.weight_decay,
        gradient_checkpointing=sft.gradient_checkpointing,
        # Left unset, TRL turns on bfloat16 autocast, also on a CPU.
        bf16=sft.mixed_precision == "bfloat16",
        use_cpu=device == "cpu",
        seed=recipe.seed,
        data_seed=recipe.seed,
        logging_steps=1,
        # The default would replace a NaN loss by the running mean and continue.
        logging_nan_inf_filter=False,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        trust_remote_code=False,
    )


def _peft_config(recipe: TrainRecipe) -> Any:
    if recipe.sft.lora is None:
        return None
    from peft import LoraConfig

    lora, targets = recipe.sft.lora, recipe.sft.lora.target_modules
    return LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        use_rslora=lora.rank_stabilised,
        target_modules=targets if isinstance(targets, str) else list(targets),
        task_type="CAUSAL_LM",
    )
