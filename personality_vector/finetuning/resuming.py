"""Checkpoints of a training that was interrupted: whole ones, of the same training."""

import json
import shutil
from pathlib import Path
from typing import Any

from transformers import TrainerCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from personality_vector.errors import DivergedError, OutputExistsError
from personality_vector.files import write_file
from personality_vector.files.directory import sync_tree
from personality_vector.files.owned import sizes_in
from personality_vector.files.reading import parse_json, read_text
from personality_vector.finetuning.processes import is_main_process, wait

_WHOLE = "whole.json"
"""Written last into a checkpoint, with the sizes of its files."""
_TRAINING = "training.json"


def scratch_of(out: Path) -> Path:
    """Return the folder of the checkpoints of an output."""
    return out.with_name(f".{out.name}.training")


class Scratch:
    """The hidden folder ``.NAME.training`` beside an output, which a killed training leaves.

    Args:
        out: The output.
        identity: Everything that decides the weights, as JSON-like data.
        force: Whether to remove the checkpoints of another training.

    Raises:
        OutputExistsError: It has the checkpoints of another training.
    """

    def __init__(self, out: Path, identity: dict[str, Any], *, force: bool) -> None:
        self.path = scratch_of(out)
        self.logs = out.with_name(f"{out.name}.logs")
        self._identity = json.loads(json.dumps(identity, default=str))
        if self.path.is_dir() and self._known() != self._identity:
            is_ours = (self.path / _TRAINING).is_file()
            begun = f".{_TRAINING}"  # how a file is called that was being written
            left = [one for one in self.path.iterdir() if not one.name.startswith(begun)]
            if left and not (force and is_ours):
                remedy = ", or add --force" if is_ours else ""
                raise OutputExistsError(
                    f"{self.path}: has checkpoints of a training with another recipe, base or "
                    f"data; give that recipe again, delete the folder{remedy}"
                )
            shutil.rmtree(self.path)

    def _known(self) -> Any:
        file = self.path / _TRAINING
        return parse_json(read_text(file)) if file.is_file() else None

    def begin(self) -> Path | None:
        """Create the folder, and return its last whole checkpoint; half-written ones are removed.

        Raises:
            StorageError: It cannot be written.
        """
        write_file(self.path / _TRAINING, json.dumps(self._identity, indent=2).encode())
        for folder in self.path.glob(f"{PREFIX_CHECKPOINT_DIR}-*"):
            if not is_whole(folder):
                shutil.rmtree(folder)
        return self.last()

    def last(self) -> Path | None:
        """Return the last whole checkpoint."""
        folders = self.path.glob(f"{PREFIX_CHECKPOINT_DIR}-*")
        found = {int(one.name.rpartition("-")[2]): one for one in folders if is_whole(one)}
        return found[max(found)] if found else None

    def remove_if_useless(self, error: BaseException) -> None:
        """Remove the folder after an error, unless the same training can resume from it."""
        is_useless = isinstance(error, DivergedError) or self.last() is None
        if is_main_process() and is_useless:
            self.remove()

    def remove(self) -> None:
        """Remove it: its output is published."""
        shutil.rmtree(self.path, ignore_errors=True)


def is_whole(checkpoint: Path) -> bool:
    """Return whether every file of a checkpoint is there in the size in which it was written."""
    mark = checkpoint / _WHOLE
    if not mark.is_file():
        return False
    sizes = {name: size for name, size in sizes_in(checkpoint).items() if name != _WHOLE}
    return bool(parse_json(read_text(mark)) == sizes)


class Checkpoints(TrainerCallback):  # type: ignore[misc]  # transformers is not typed
    """Asks for so many checkpoints, evenly spaced, and marks each as whole once it is on disk."""

    def __init__(self, count: int) -> None:
        self._count = count

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        """Ask for a checkpoint; after the last step the output itself is written."""
        every = max(1, state.max_steps // (self._count + 1))
        is_due = state.global_step % every == 0 and state.global_step < state.max_steps
        control.should_save = control.should_save or bool(self._count and is_due)

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        """Mark the checkpoint that was written, once every process has written its part."""
        wait()
        if state.is_world_process_zero:
            folder = Path(args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
            sync_tree(folder)
            write_file(folder / _WHOLE, json.dumps(sizes_in(folder)).encode())
