"""Whole processes, measured from outside: wall and CPU time, memory; and the cases to measure."""

import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml
from models import Models

ALPHAS = (0.5, -0.3, 0.4, 0.2, 0.3)
PVEC = {
    "task_arithmetic": ("task_arithmetic", {}),
    "ties": ("ties", {"density": 0.2}),
    "ties per tensor": ("ties", {"density": 0.2, "trim": "per_tensor"}),
    "dare": ("dare", {"drop_rate": 0.5}),
    "dare_ties": ("dare_ties", {"drop_rate": 0.5}),
    "della": ("della", {}),
    "breadcrumbs": ("breadcrumbs", {}),
}
"""Name of a case, its method and its options."""

MERGEKIT = {
    "task_arithmetic": ("task_arithmetic", {}),
    "ties": ("ties", {"density": 0.2}),
    "dare": ("dare_linear", {"density": 0.5}),
    "dare_ties": ("dare_ties", {"density": 0.5}),
}
"""The same cases in mergekit, which trims per tensor; its density is 1 - drop_rate."""

_SHARD_BYTES = 300 * 10**6


@dataclass(frozen=True)
class Usage:
    """What a process took: seconds of wall clock and of CPU (user + system); bytes of memory.

    ``anonymous`` is the peak of RssAnon, sampled every 20 ms: what the process itself allocated.
    ``resident`` is ru_maxrss, which counts mapped files too.
    """

    wall: float
    cpu: float
    anonymous: float
    resident: float


def measure(command: Sequence[str | Path], threads: int) -> Usage:
    """Run a command to its end; a command that fails ends the benchmark with its last words."""
    count = str(threads)
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": count,
        "PVEC_THREADS": count,
        "HF_HUB_OFFLINE": "1",
    }
    start = time.perf_counter()
    process = subprocess.Popen(
        [str(word) for word in command],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    peak = _Peak(process.pid)
    said: list[bytes] = []
    reader = threading.Thread(target=lambda: said.append(process.stderr.read()))
    reader.start()
    _, status, used = os.wait4(process.pid, 0)
    wall = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    reader.join()
    if process.returncode != 0:
        raise SystemExit(f"{command[0]} failed:\n{said[0].decode()[-2000:]}")
    return Usage(wall, used.ru_utime + used.ru_stime, peak.end(), used.ru_maxrss * 1024)


class _Peak:
    """Samples the anonymous memory of a process in a thread of its own."""

    def __init__(self, pid: int) -> None:
        self._status = Path(f"/proc/{pid}/status")
        self._peak = 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._sample)
        self._thread.start()

    def _sample(self) -> None:
        while not self._over.wait(0.02):
            try:
                lines = self._status.read_text().splitlines()
            except OSError:
                return
            for line in lines:
                if line.startswith("RssAnon:"):
                    self._peak = max(self._peak, int(line.split()[1]) * 1024)

    def end(self) -> int:
        """Return the peak in bytes."""
        self._over.set()
        self._thread.join()
        return self._peak


def median(usages: Sequence[Usage]) -> Usage:
    """Return the median of each number by itself."""
    names = [field.name for field in fields(Usage)]
    return Usage(*(statistics.median(getattr(u, name) for u in usages) for name in names))


def bare_command(models: Models, out: Path) -> list[str | Path]:
    """Return the command that only reads the inputs and writes as many bytes."""
    return [sys.executable, Path(__file__).with_name("bare.py"), out, *models.folders]


def pvec_command(case: str, models: Models, out: Path) -> list[str | Path]:
    """Return the command of a merge by this tool."""
    method, options = PVEC[case]
    recipe = {
        "base": str(models.base.resolve()),
        "method": method,
        "options": options,
        "terms": [
            {"tuned": str(path.resolve()), "alpha": alpha}
            for path, alpha in zip(models.tuned, ALPHAS, strict=True)
        ],
        "output": {"shard_size": f"{_SHARD_BYTES // 10**6}MB"},
    }
    file = _written(out, recipe)
    return [_script("pvec"), "merge", file, "--out", out, "--quiet"]


def mergekit_command(case: str, models: Models, out: Path, dtype: str) -> list[str | Path]:
    """Return the command of the same merge by mergekit, computed in ``dtype``."""
    method, options = MERGEKIT[case]
    recipe = {
        "merge_method": method,
        "base_model": str(models.base.resolve()),
        "dtype": dtype,
        "out_dtype": "bfloat16",
        "models": [
            {"model": str(path.resolve()), "parameters": {"weight": alpha, **options}}
            for path, alpha in zip(models.tuned, ALPHAS, strict=True)
        ],
    }
    return [
        *(_script("mergekit-yaml"), _written(out, recipe), out, "--quiet"),
        *("--random-seed", "0", "--no-copy-tokenizer", "--no-write-model-card"),
        # mergekit counts parameters; these have two bytes.
        *("--out-shard-size", str(_SHARD_BYTES // 2)),
    ]


def _written(out: Path, recipe: dict[str, Any]) -> Path:
    file = out.with_suffix(".yaml")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(yaml.safe_dump(recipe))
    return file


def _script(name: str) -> Path:
    return Path(sys.executable).with_name(name)


def clear(out: Path) -> None:
    """Remove an output and let the disk come to rest, so that no run pays for another's writes."""
    shutil.rmtree(out, ignore_errors=True)
    os.sync()


def warm(models: Models) -> None:
    """Read every checkpoint into the page cache."""
    for folder in models.folders:
        for file in folder.glob("*.safetensors"):
            with file.open("rb", buffering=0) as stream:
                buffer = bytearray(1 << 24)
                while stream.readinto(buffer):
                    pass


def machine(threads: int) -> dict[str, Any]:
    """Return what the numbers were measured on and with."""
    models = [
        line.split(":", 1)[1].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    return {
        "cpu": models[0] if models else platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "threads": threads,
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("personality-vector", "torch", "mergekit")},
    }


def markdown(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table; all columns but the first are numbers."""
    ruler = ["---", *["---:"] * (len(columns) - 1)]
    return "\n".join(f"| {' | '.join(line)} |" for line in [columns, ruler, *rows])


def save(out: Path, content: dict[str, Any]) -> None:
    """Write results as JSON."""
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(content, indent=2, default=asdict) + "\n")
    print(f"\n{out}")
