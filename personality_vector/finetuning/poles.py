"""Many poles from one recipe: each trained once, several at a time, with their deltas."""

import ctypes
import os
import shutil
import signal
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import current_process, get_context
from pathlib import Path
from typing import Any

import torch

from personality_vector.checkpoint import Checkpoint, read_manifest
from personality_vector.delta import (
    Delta,
    is_saved_delta,
    open_fine_tune,
    read_record,
    require_not_swapped,
)
from personality_vector.delta.opening import Allowed
from personality_vector.delta.record import DeltaRecord
from personality_vector.errors import (
    LockedError,
    OutputExistsError,
    RecipeError,
    TrainingError,
)
from personality_vector.finetuning import processes
from personality_vector.finetuning.guidance import Guidance
from personality_vector.finetuning.processes import is_main_process
from personality_vector.finetuning.recipe import TrainRecipe
from personality_vector.finetuning.resuming import scratch_of
from personality_vector.finetuning.rows import require_distinct
from personality_vector.finetuning.sft import prepare, train
from personality_vector.numeric.parallel import cores
from personality_vector.progress import is_silent, silence
from personality_vector.subject.models import resolve_device
from personality_vector.traits import Level, Pole

DELTAS = "deltas"
"""The folder of deltas beside the poles."""
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True, slots=True)
class PoleReport:
    """What became of one pole.

    Attributes:
        pole: The pole.
        path: Its folder.
        state: ``trained``, ``there`` if it was trained before, or ``locked`` if another process is
            at it.
        manifest: The content of its ``MANIFEST.json``; empty if it is locked.
    """

    pole: Pole
    path: Path
    state: str
    manifest: dict[str, Any]


def folder_of(out: Path, pole: Pole) -> Path:
    """Return the folder of a pole: ``OUT/extraversion-high``."""
    return out / f"{pole.trait}-{pole.level}"


def train_poles(
    recipe: TrainRecipe,
    out: str | Path,
    *,
    force: bool = False,
    guidance: Guidance | None = None,
) -> Iterator[PoleReport]:
    """Train what is not there yet of a recipe with ``poles``, and yield a report for each pole.

    Each is published as ``OUT/{trait}-{level}`` when it is done; with ``delta``, its delta as
    ``OUT/deltas/{trait}-{level}`` and half the difference of both poles as ``OUT/deltas/{trait}``.

    Args:
        recipe: A recipe with ``poles``.
        out: The folder.
        force: Replace what another recipe trained.
        guidance: Acts during training alone, on every pole; see :func:`train`.

    Raises:
        OutputExistsError: A pole is there, from another recipe, base or data.
        PersonalityVectorError: As :func:`train`.
    """
    poles, folder = recipe.chosen, Path(out)
    if recipe.workers > 1 and processes.count() > 1:
        raise RecipeError(
            "workers: trains poles in processes of its own; set it to 1 under torchrun, whose "
            "processes train each pole together"
        )
    processes.join(resolve_device(recipe.device))
    done = processes.agreed(lambda: _done(recipe, folder, guidance, force=force))
    for pole, manifest in done.items():
        if manifest is not None:
            shutil.rmtree(scratch_of(folder_of(folder, pole)), ignore_errors=True)
            yield PoleReport(pole, folder_of(folder, pole), "there", manifest)
    left = [pole for pole, manifest in done.items() if manifest is None]
    for report in _trained(recipe, folder, left, guidance, force=force):
        yield report
        if recipe.delta and is_main_process():
            save_deltas(recipe, folder, report.pole)
    if recipe.delta and is_main_process():  # a killed run may have left some out
        for pole in poles:
            save_deltas(recipe, folder, pole)


def _done(
    recipe: TrainRecipe, out: Path, guidance: Guidance | None, *, force: bool
) -> dict[Pole, dict[str, Any] | None]:
    """Return the manifest of each pole that this recipe trained, and ``None`` of the others.

    The data of all poles are read, so that nothing is refused after the first pole is trained.

    Raises:
        PersonalityVectorError: As :func:`train_poles`.
    """
    digests, identities = dict[Pole, str](), dict[Pole, str]()
    for pole in recipe.chosen:
        learned = prepare(recipe.of(pole), guidance)
        digests[pole], identities[pole] = learned.rows.digest(), learned.identity
    require_distinct(digests, recipe.data.source)
    return {
        pole: _there(folder_of(out, pole), identity, force=force)
        for pole, identity in identities.items()
    }


def _there(path: Path, identity: str, *, force: bool) -> dict[str, Any] | None:
    """Return the manifest of a training of this identity, or ``None`` if it is to be trained.

    Raises:
        OutputExistsError: What is there is of another recipe, base or data, or of nobody's.
    """
    if not path.exists():
        return None
    manifest = read_manifest(path)
    if manifest.get("kind") == "train" and manifest.get("training") == identity:
        return manifest
    if force:
        return None
    raise OutputExistsError(
        f"{path}: is not what this recipe trains from this base and these data; choose another "
        "--out, or add --force"
    )


def _trained(
    recipe: TrainRecipe,
    out: Path,
    poles: Sequence[Pole],
    guidance: Guidance | None,
    *,
    force: bool,
) -> Iterator[PoleReport]:
    """Train poles, one after the other or several at once, and yield each when it is done."""
    if recipe.workers == 1 or len(poles) < 2:
        for pole in poles:
            yield _one(recipe, out, pole, guidance, force=force)
        return
    workers = min(recipe.workers, len(poles))
    with ProcessPoolExecutor(
        workers,
        get_context("spawn"),
        initializer=_settle,
        initargs=(workers, os.getpid(), is_silent()),
    ) as pool:
        tasks = [pool.submit(_one, recipe, out, pole, guidance, force=force) for pole in poles]
        try:
            for task in as_completed(tasks):
                yield task.result()
        except BrokenProcessPool as error:
            raise TrainingError(
                "a worker was killed, perhaps for want of memory; what is finished is kept, and "
                f"fewer workers than {workers} need less"
            ) from error
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def _settle(workers: int, parent: int, silent: bool) -> None:  # noqa: FBT001  (by position alone)
    """Give a worker its share of the cores and a GPU of its own, and end it with its parent."""
    if silent:
        silence()
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit(1)
    torch.set_num_threads(max(1, cores() // workers))
    if (seen := torch.cuda.device_count()) > 1:
        # The trainer takes the first GPU that it sees. CUDA has not been started here yet.
        names = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(seen)))
        number = current_process()._identity[-1] - 1
        os.environ["CUDA_VISIBLE_DEVICES"] = names.split(",")[number % seen]


def _one(
    recipe: TrainRecipe, out: Path, pole: Pole, guidance: Guidance | None, *, force: bool
) -> PoleReport:
    path = folder_of(out, pole)
    try:
        report = train(recipe.of(pole), path, force=force, guidance=guidance)
    except LockedError:
        return PoleReport(pole, path, "locked", {})
    except OutputExistsError:  # another process has finished it meanwhile, or it is another's
        if force or not path.exists():
            raise
        manifest = _there(path, prepare(recipe.of(pole), guidance).identity, force=False)
        return PoleReport(pole, path, "there", manifest or {})
    return PoleReport(pole, path, "trained", report.manifest)


def save_deltas(recipe: TrainRecipe, out: Path, pole: Pole) -> None:
    """Save the delta of a pole, and half the difference of both poles once both are there.

    LoRA keeps its factors, also in the difference. What is saved of other fine-tunes is replaced,
    and what another process is saving is left to it.
    """
    base, storage = Checkpoint.open(recipe.base), "lora" if recipe.sft.is_low_rank else "float32"
    levels: tuple[Level, Level] = ("high", "low")
    tuned = {level: folder_of(out, Pole(pole.trait, level)) for level in levels}
    deltas = {level: _opened(path, base) for level, path in tuned.items() if path.is_dir()}
    found = {f"{pole.trait}-{level}": delta for level, delta in deltas.items()}
    if len(deltas) == len(levels):
        found[pole.trait] = Delta.contrast(deltas["high"], deltas["low"])
    for name, delta in found.items():
        saved = out / DELTAS / name
        if not is_saved_delta(saved) or not _is_of(read_record(saved), delta):
            with suppress(LockedError):
                delta.save(saved, storage=storage, force=saved.exists())


def _is_of(saved: DeltaRecord, delta: Delta) -> bool:
    """Return whether a saved delta was taken from these fine-tunes."""
    return saved.halves == delta.halves if delta.halves else saved.identity == delta.identity


def _opened(tuned: Path, base: Checkpoint) -> Delta:
    return open_fine_tune(tuned, base, require_not_swapped, allowed=Allowed(stated=True))
