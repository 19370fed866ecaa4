"""The layer of a direction of creativity, which has no poles and so no statements."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from personality_vector.data.creativity import CreativityPair, Split
from personality_vector.errors import DataError
from personality_vector.steering import Positions, SteeringVector
from personality_vector.steering.monitor import creativity_by_layer
from personality_vector.study.choose.layers import Evidence, Separation, examine, separation
from personality_vector.subject import Chat, answered, question
from personality_vector.subject.subject import Subject


@dataclass(frozen=True, slots=True)
class LayerChoice:
    """How well the creativity score tells two sides apart at each layer.

    Attributes:
        layers: Evidence of replies to the validation part. Its separation is that of their scores,
            and its slope leads from the replies to uncreative prompts to those to creative ones.
        layer: The layer with the largest d' among those whose slope is above 0.
        test: The separation there of replies to the test part, which decided nothing.
    """

    layers: Sequence[Evidence]
    layer: int
    test: Separation


def choose_layer(
    subject: Subject,
    vector: SteeringVector,
    pairs: Mapping[Split, Sequence[CreativityPair]],
    layers: Sequence[int],
    seed: int = 0,
    batch_size: int = 16,
) -> LayerChoice:
    """Return the layer whose score best tells replies to creative prompts from the others.

    A layer may separate well where adding the vector does nothing or the opposite, so it is chosen
    among layers where the vector makes the replies to creative prompts likelier than the others, to
    first order. The model replies to both prompts of each pair, without steering. Empty replies are
    left out.

    Args:
        subject: The model, and how it replies.
        vector: A vector with a direction for each of ``layers``.
        pairs: Those of the parts ``validation`` and ``test``.
        layers: 0-based decoder blocks, each once.
        seed: Seed of the replies.
        batch_size: Chats per pass.

    Raises:
        DataError: A side has fewer than two replies, or there is no layer to choose.
        TensorMismatchError: The vector has no direction for a layer.
        NonFiniteError: The model predicts NaN or infinity.
    """
    sides = _replied(subject, pairs["validation"], seed)
    found = examine(subject, vector, layers, *sides, Positions.parse("all"), batch_size)
    apart = _separations(subject, vector, sides, layers, batch_size)
    evidence = [replace(one, separation=apart[one.layer]) for one in found]
    able = [one for one in evidence if one.slope > 0 and one.separation.d_prime > 0]
    if not able:
        raise DataError(
            f"{vector.label}: at none of the layers {[one.layer for one in evidence]} does it both "
            "score replies to creative prompts higher and make them likelier"
        )
    best = max(able, key=lambda one: one.separation.d_prime).layer
    held = _replied(subject, pairs["test"], seed)
    return LayerChoice(
        evidence, best, _separations(subject, vector, held, [best], batch_size)[best]
    )


def _replied(
    subject: Subject, pairs: Sequence[CreativityPair], seed: int
) -> tuple[list[Chat], list[Chat]]:
    """Return the creative prompts with the replies to them, and the uncreative ones."""

    def of(prompts: Sequence[str]) -> list[Chat]:
        chats = [question(prompt) for prompt in prompts]
        said = zip(chats, subject.replies(chats, seed), strict=True)
        return [answered(chat, reply.text) for chat, reply in said if reply.text.strip()]

    return of([pair.creative for pair in pairs]), of([pair.uncreative for pair in pairs])


def _separations(
    subject: Subject,
    vector: SteeringVector,
    sides: tuple[list[Chat], list[Chat]],
    layers: Sequence[int],
    batch_size: int,
) -> dict[int, Separation]:
    """Return how far the scores of one side lie above those of the other, for each layer."""
    model, tokenizer = subject.model, subject.tokenizer
    more, less = (
        creativity_by_layer(model, tokenizer, side, vector, layers, batch_size) for side in sides
    )
    return {layer: separation(more[layer].tolist(), less[layer].tolist()) for layer in more}
