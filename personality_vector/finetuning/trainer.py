"""TRL's trainer, with what acts on the model during its training steps alone."""

from typing import Any

from torch import nn
from trl import SFTTrainer

from personality_vector.finetuning.guidance import Guidance, Penalty


class GuidedTrainer(SFTTrainer):  # type: ignore[misc]  # TRL is not typed
    """Applies a guidance around the forward and the backward pass of every training step.

    The backward pass is inside, since gradient checkpointing computes activations again there.
    An evaluation has no training step, so it sees the plain model.

    Attributes:
        guidance: What is applied, if anything.
    """

    guidance: Guidance | None = None
    _penalty: Penalty | None = None

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None
    ) -> Any:
        """Take one step on one batch; raises what the guidance raises."""
        if self.guidance is None:
            return super().training_step(model, inputs, num_items_in_batch)
        with self.guidance.applied(self.accelerator.unwrap_model(model)) as self._penalty:
            try:
                return super().training_step(model, inputs, num_items_in_batch)
            finally:
                self._penalty = None

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,  # noqa: FBT001, FBT002  (the signature is TRL's)
        num_items_in_batch: Any = None,
    ) -> Any:
        """Return the loss, in training with the penalty averaged over accumulated batches."""
        found = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        if self._penalty is None:
            return found
        with self.accelerator.autocast():
            penalty = self._penalty(inputs)
        if penalty is None:
            return found
        # As TRL does with the auxiliary loss of experts: a loss that was divided by the number of
        # items of all accumulated batches is not divided by the number of batches again.
        batches = self.current_gradient_accumulation_steps if num_items_in_batch is not None else 1
        return found + penalty / batches
