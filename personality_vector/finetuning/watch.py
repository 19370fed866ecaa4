"""Watching a TRL run: our progress bar, and a stop at the first loss that is not finite."""

import math
from collections.abc import Iterator
from typing import Any

from transformers import TrainerCallback

from personality_vector.errors import TrainingError
from personality_vector.progress import progress


class Watch(TrainerCallback):  # type: ignore[misc]  # transformers is not typed
    """Draws progress and refuses to go on after NaN or infinity."""

    _steps: Iterator[int] = iter(())

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        """Open the bar."""
        self._steps = progress(range(state.max_steps), "train")

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        """Advance the bar."""
        next(self._steps, None)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        """Close the bar."""
        next(self._steps, None)

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
