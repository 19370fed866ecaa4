"""The finetuning shift: how far fine-tuning moved a model along a direction before it replies."""

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor

from personality_vector.steering.activations import Reader
from personality_vector.steering.monitor import unit_at
from personality_vector.steering.vector import SteeringVector
from personality_vector.subject import Chat
from personality_vector.subject.subject import Subject


class Baseline:
    """Where a base is along a direction before it replies: what its fine-tunes are compared with.

    The base is read once, here. A fine-tune may be the same model object under a live edit, so
    that there is never more than one model in memory.

    Args:
        base: The base, unedited.
        chats: Prompts that base and fine-tunes read; a reply at the end of one is not read.
        vector: A vector with a direction for ``layer``; its length does not matter, its sign does.
        layer: 0-based decoder block, ``-1`` the last.
        batch_size: Chats per forward pass; it changes speed and memory only.

    Raises:
        ModelError: The model does not have this layer.
        TensorMismatchError: The vector has no direction for it.
        BaseMismatchError: The vector has another width than the model.
        DataError: There is no chat, or one has no prompt or cannot be rendered.
        NonFiniteError: An activation is NaN or infinite.

    Source:
        Finetuning shift of persona vectors, Chen et al. 2025, arXiv:2507.21509: the projection on
        ``v_l / |v_l|`` of the mean activation at the last prompt token of the fine-tuned model,
        minus that of the base. Our layer ``l`` is their ``l + 1`` (they count the embeddings).
    """

    def __init__(
        self,
        base: Subject,
        chats: Sequence[Chat],
        vector: SteeringVector,
        layer: int,
        batch_size: int = 16,
    ) -> None:
        self._chats, self._batch_size = chats, batch_size
        self._layer, self._unit = unit_at(base.model, vector, layer)
        self._mean = self._mean_of(base)

    def shift_of(self, tuned: Subject) -> float:
        """Return ``(mean a_tuned - mean a_base) . v / |v|``, in the unit of the activation.

        0 for the base itself, exactly. The fine-tune reads what the base read: its own tokenizer
        and chat template, if it has others, are not used.

        Raises:
            NonFiniteError: An activation is NaN or infinite.
        """
        return float((self._mean_of(tuned) - self._mean) @ self._unit)

    def _mean_of(self, subject: Subject) -> Float[Tensor, " hidden"]:
        reader = Reader(
            subject.model, subject.tokenizer, [self._layer], "prompt_last", self._batch_size
        )
        return reader.mean(self._chats)[self._layer]
