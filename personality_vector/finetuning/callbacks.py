"""What watches a training: its progress, its loss, and its speed."""

import math
import time
from collections.abc import Iterator
from typing import Any

import torch
from transformers import TrainerCallback

from personality_vector.errors import DivergedError
from personality_vector.progress import progress


class Monitor(TrainerCallback):  # type: ignore[misc]  # transformers is not typed
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
                raise DivergedError(
                    f"{key} is {value} at step {state.global_step}; nothing was saved; "
                    "try a lower sft.learning_rate"
                )


class Clock(TrainerCallback):  # type: ignore[misc]  # transformers is not typed
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
