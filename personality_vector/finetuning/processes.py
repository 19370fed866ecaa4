"""The processes of torchrun that train one model together."""

import os
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import (
    DistributedType,
    FullyShardedDataParallelPlugin,
    broadcast_object_list,
)
from transformers import TrainerCallback

from personality_vector.errors import PersonalityVectorError, TrainingError
from personality_vector.progress import silence

T = TypeVar("T")

_LONGEST_WAIT = timedelta(hours=3)
"""How long the others wait while the main process writes a model and its deltas."""
_WRAPPERS = ("FSDPModule", "DistributedDataParallel")
_HOW = "torchrun --nproc-per-node N -m personality_vector.cli train RECIPE --out DIR"


def count() -> int:
    """Return how many processes torchrun started; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main_process() -> bool:
    """Return whether this is the one of torchrun's processes that writes and prints."""
    return os.environ.get("RANK", "0") == "0"


def join(device: str) -> None:
    """Connect the processes of torchrun; one process alone has nothing to connect.

    Raises:
        TrainingError: ``accelerate launch`` was asked for several processes and started one.
    """
    if "WORLD_SIZE" not in os.environ and {"ACCELERATE_MIXED_PRECISION", "MASTER_ADDR"} <= (
        os.environ.keys()
    ):  # what `accelerate launch --cpu --num_processes 2` leaves
        raise TrainingError(
            f"accelerate launch was asked for several processes and started one; use {_HOW}"
        )
    if count() > 1:
        PartialState(cpu=device == "cpu", timeout=_LONGEST_WAIT)
    if not is_main_process():
        silence()


def leave() -> None:
    """Disconnect the processes at the end, after all of them have come here."""
    if count() > 1 and torch.distributed.is_initialized():
        wait()
        torch.distributed.destroy_process_group()


def wait() -> None:
    """Wait until every process has come here."""
    if count() > 1:
        PartialState().wait_for_everyone()


def agreed(find: Callable[[], T]) -> T:
    """Return what the main process finds, in every process; what it raises is raised in each.

    Args:
        find: Is called in the main process only, and returns something that can be pickled.

    Raises:
        PersonalityVectorError: ``find`` raised it.
    """
    if count() == 1:
        return find()
    found: list[Any] = [None, None]
    if is_main_process():
        try:
            found[0] = find()
        except PersonalityVectorError as error:
            found[1] = error
    broadcast_object_list(found)
    if found[1] is not None:
        raise found[1]
    return found[0]  # type: ignore[no-any-return]


def require_several_for(*, fsdp: bool) -> None:
    """Refuse to shard a model in one process.

    Raises:
        TrainingError: There is one.
    """
    if fsdp and count() == 1:
        raise TrainingError(
            "sft.fsdp: true shards a model over several processes, and this is one; "
            f"use {_HOW}, or set sft.fsdp: false"
        )


def shard_on_cpu(trainer: Any) -> None:
    """Let accelerate shard a model over processes on a CPU, as it does over GPUs.

    accelerate 1.15 has a list of devices to shard over (``AcceleratorState.__init__``), which lacks
    the CPU, and would use DistributedDataParallel without a word.
    """
    state = trainer.accelerator.state
    if state.distributed_type == DistributedType.MULTI_CPU:
        plugin = FullyShardedDataParallelPlugin(**trainer.args.fsdp_plugin_args)
        if state.mixed_precision != "no":
            plugin.set_mixed_precision(state.mixed_precision)
        state.distributed_type, state.fsdp_plugin = DistributedType.FSDP, plugin
        PartialState._shared_state["distributed_type"] = DistributedType.FSDP  # as accelerate does
        trainer.is_fsdp_enabled = True


def wrapper_of(trainer: Any) -> str:
    """Return the name of the class that spreads a trainer's model over processes, or ``""``."""
    kinds = {kind.__name__ for kind in type(trainer.model_wrapped).__mro__}
    return next((name for name in _WRAPPERS if name in kinds), "")


class SpreadCheck(TrainerCallback):  # type: ignore[misc]  # transformers is not typed
    """Stops a training of several processes that would not share their gradients.

    Launchers start one process, or leave out FSDP, without a word (``accelerate launch --cpu``).

    Args:
        trainer: The trainer, whose model is wrapped when the training begins.
        fsdp: Whether the recipe asks for FSDP2.
    """

    def __init__(self, trainer: Any, *, fsdp: bool) -> None:
        self._trainer, self._fsdp = trainer, fsdp

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        """Compare the number of processes and the class of the wrapped model with the recipe."""
        trainer, self._trainer = self._trainer, None  # a cycle would keep the model in memory
        found, wrapper = trainer.accelerator.num_processes, wrapper_of(trainer)
        if found != count():
            raise TrainingError(
                f"there are {count()} processes, and the trainer knows of {found}; use {_HOW}"
            )
        wanted = _WRAPPERS[0 if self._fsdp else 1]
        if found > 1 and wrapper != wanted:
            raise TrainingError(
                f"sft.fsdp: {str(self._fsdp).lower()} needs {wanted}, and the trainer uses "
                f"{wrapper or type(trainer.model_wrapped).__name__}; use {_HOW}, without a "
                "configuration of accelerate"
            )
