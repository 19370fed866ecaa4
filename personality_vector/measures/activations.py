"""Activations: how far replies lie along steering vectors, and how near the states of the base."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean
from typing import TYPE_CHECKING, ClassVar, NamedTuple

from pydantic import Field, model_validator

from personality_vector.errors import DataError, NonFiniteError, TensorMismatchError
from personality_vector.measures.spec import (
    Asked,
    Asking,
    AskingSpec,
    BaseMeasure,
    first_tokens,
    require_replies,
)
from personality_vector.recipes.schema import LocalPath, Whole
from personality_vector.subject import (
    Better,
    Chat,
    Findings,
    Observation,
    Reading,
    Subject,
    batched,
)

if TYPE_CHECKING:
    from jaxtyping import Float, Float64
    from torch import Tensor

    from personality_vector.steering import Pooling, SteeringVector


class ActivationsSpec(AskingSpec):
    """Projection of replies on ``vectors`` at ``layer``, and cosines with the base at all layers.

    The cosines are of up to ``max_tokens`` tokens of the base's replies.
    """

    vectors: tuple[LocalPath, ...] = ()
    layer: Whole | None = None
    max_tokens: Whole = Field(default=500, ge=1)
    batch_size: Whole = Field(default=8, ge=1)

    @model_validator(mode="after")
    def _somewhere(self) -> "ActivationsSpec":
        if bool(self.vectors) != (self.layer is not None):
            raise ValueError(
                "vectors and layer belong together: give the folders of steering vectors and the "
                "layer to read them at, or neither"
            )
        return self

    def open(self) -> "Activations":
        """Read the instrument and the vectors.

        Raises:
            RecipeError: The instrument is missing or not one.
            CheckpointError: A vector is missing or damaged.
            DataError: Two vectors are of one trait.
            TensorMismatchError: A vector has no direction for the layer.
        """
        return Activations(
            self.asking(),
            self._opened(),
            self.layer,
            self.max_tokens,
            0,
            self.batch_size,
            self.called,
        )

    def _opened(self) -> "dict[str, SteeringVector]":
        if not self.vectors:
            return {}
        from personality_vector.steering import SteeringVector

        found: dict[str, SteeringVector] = {}
        for folder in self.vectors:
            vector = SteeringVector.load(folder)
            if self.layer is not None and self.layer >= 0:
                vector.at(self.layer)
            name = vector.pole.trait if vector.pole else vector.label or folder.name
            if name in found:
                raise DataError(
                    f"{folder}: is the second vector of {name}; read it in another measure of "
                    "activations, with a name of its own"
                )
            found[name] = vector
        return found


class _State(NamedTuple):
    """One reply as a model reads it.

    Attributes:
        tokens: The first tokens of the reply.
        layers: For each layer the state after each of ``tokens``; float32, on the CPU.
    """

    tokens: Sequence[int]
    layers: "Mapping[int, Float[Tensor, 'seq hidden']]"


@dataclass(frozen=True, slots=True)
class Activations(BaseMeasure):
    """Where the residual stream is, at the outputs of decoder blocks, after any steering there.

    ``projection``: ``mean over replies of mean over tokens of a . v / |v|``, with ``a`` the state
    after each token of the edited model's own reply and ``v`` a steering vector at ``layer``, in
    the unit of the activation. A vector of a pole is of its trait, and points to the high end.
    Replies without text are unscored. ``prompt_projection`` is the same of the last token of each
    prompt, before anything is said, and the mean of an observation of each item.
    ``cosine_with_vector`` is the creativity score of
    :func:`~personality_vector.steering.monitor.creativity_scores`, whatever the vector is of: the
    mean over the states ``t = 0..T`` of a reply of ``a . v / |a| |v|``. It is the mean of an
    observation of each item, with the interval of drawing items again.

    On the base's replies, ``cos(a, b)`` of the state after each token in the edited model and in
    the base, as a mean over tokens: ``cosine`` is its mean over layers, ``cosine_lowest`` that of
    the layer where it is lowest, and ``cosine_by_layer`` observes each layer. All are exactly 1 for
    the unedited model.

    Attributes:
        asking: The questions.
        vectors: Steering vectors by trait, or by label where they have no pole.
        layer: Where they are read: 0-based decoder block, ``-1`` the last.
        max_tokens: Bound on the tokens of the base's replies. Memory: ``max_tokens * layers *
            hidden * 4`` bytes, 0.26 GB for 500 tokens of 32 layers of 4,096.
        seed: Seed of the base's replies: one reference for all seeds.
        batch_size: Chats per forward pass; it changes speed and memory only.
        references: The base's replies and its states there, made by :meth:`prepare`.

    Source:
        ``<a, v> / |v|`` is the monitoring of persona vectors, Chen et al. 2025, arXiv:2507.21509;
        the mean cosine is the creativity score of Olson et al. 2024, arXiv:2412.06060.
    """

    asking: Asking
    vectors: "Mapping[str, SteeringVector]" = field(default_factory=dict)
    layer: int | None = None
    max_tokens: int = 500
    seed: int = 0
    batch_size: int = field(default=8, compare=False)
    name: str = "activations"
    references: Sequence[tuple[Chat, _State]] = field(default=(), compare=False)

    version: ClassVar[int] = 3
    unit: ClassVar[str] = "activation"
    better: ClassVar[Better] = "none"

    def prepare(self, base: Subject) -> "Activations":
        """Let the base reply, and keep its states after the first ``max_tokens`` tokens.

        Raises:
            DataError: Every reply of the base is empty.
            ModelError: The base does not have the layer.
            BaseMismatchError: A vector has another width.
        """
        self._units(base)  # refused before anything is measured
        chats, _ = self.asking.chats(base, self.seed)
        require_replies(self.name, chats)
        chosen = first_tokens(base, chats, self.max_tokens)
        kept = zip(chosen, self._states(base, chosen), strict=True)
        return replace(self, references=tuple(kept))

    def collect(self, subject: Subject, seed: int) -> Findings:
        """Return the projections of prompts and replies, and the cosines on the base's.

        Raises:
            NonFiniteError: A state is NaN or infinite, or zero.
            TensorMismatchError: The edited model splits a reply into other tokens.
        """
        readings, observations = self._along(subject, seed)
        cosines = self._cosines(subject)
        values = [one.value for one in cosines]
        for name, value in (("cosine", fmean(values)), ("cosine_lowest", min(values))):
            readings.append(Reading(f"{self.name}.{name}", value, n=self._tokens, unit="cosine"))
        return Findings(readings=readings, observations=observations + cosines)

    def _units(self, subject: Subject) -> "tuple[int, dict[str, Float64[Tensor, ' hidden']]]":
        """Return the layer as 0-based, and the unit vectors there that point to the high end."""
        from personality_vector.steering.monitor import unit_at

        place, found = 0, {}
        for name, vector in self.vectors.items():
            place, unit = unit_at(subject.model, vector, self.layer or 0)
            found[name] = unit * (vector.pole.sign if vector.pole else 1)
        return place, found

    def _along(self, subject: Subject, seed: int) -> tuple[list[Reading], list[Observation]]:
        """Return where replies and prompts lie along each vector, replies unscored without text."""
        readings, seen = list[Reading](), list[Observation]()
        if not self.vectors:
            return readings, seen
        place, units = self._units(subject)
        asked = list(self.asking(subject, seed))
        first = [one for one in asked if one.sample == 0]
        replied = [one for one in asked if one.reply.text.strip()]
        unscored = len(asked) - len(replied)
        said = [subject.edited(one.answered) for one in replied]
        prompts = [subject.edit(one.chat) for one in first]
        before = self._pooled(subject, prompts, place, "prompt_last")
        after = self._pooled(subject, said, place, "response_mean")
        for name, unit in units.items():
            value = float((after @ unit).mean()) if replied else None
            along = _observed(
                f"{self.name}.prompt_projection", name, first, (before @ unit).tolist()
            )
            cosines = _observed(
                f"{self.name}.cosine_with_vector", name, replied, self._scores(subject, said, unit)
            )
            readings += [
                Reading(f"{self.name}.projection", value, name, n=len(replied), unscored=unscored),
                Reading(along[0].measure, fmean(o.value for o in along), name, n=len(along)),
                _score(f"{self.name}.cosine_with_vector", name, cosines, (len(replied), unscored)),
            ]
            seen += along + cosines
        return readings, seen

    def _pooled(
        self, subject: Subject, chats: Sequence[Chat], place: int, pooling: "Pooling"
    ) -> "Float64[Tensor, 'chats hidden']":
        """Return the pooled activation of each chat."""
        import torch

        from personality_vector.steering.activations import Reader

        if not chats:
            return torch.empty(0, dtype=torch.float64)
        reader = Reader(subject.model, subject.tokenizer, [place], pooling, self.batch_size)
        return reader.pooled(chats)[place].double()

    def _scores(self, subject: Subject, chats: Sequence[Chat], unit: "Tensor") -> list[float]:
        """Return the mean cosine of each reply with a vector."""
        from personality_vector.steering.monitor import creativity_scores

        model, tokenizer, layer = subject.model, subject.tokenizer, self.layer or 0
        found = creativity_scores(model, tokenizer, chats, unit, layer, self.batch_size)
        return [float(one.mean()) for one in found]

    def _cosines(self, subject: Subject) -> list[Observation]:
        """Return, for each layer, the mean over tokens of the cosine with the base's state."""
        chats = [chat for chat, _ in self.references]
        sums: dict[int, float] = {}
        states = self._states(subject, chats)
        for (chat, base), edited in zip(self.references, states, strict=True):
            if list(base.tokens) != list(edited.tokens):
                raise TensorMismatchError(
                    f"the response {chat[-1]['content'][:60]!r} is split into other tokens "
                    "after the edit"
                )
            for layer, rows in edited.layers.items():
                total = _cosine_sum(layer, rows, base.layers[layer])
                sums[layer] = sums.get(layer, 0.0) + total
        return [
            Observation(f"{self.name}.cosine_by_layer", "", f"layer {layer}", total / self._tokens)
            for layer, total in sums.items()
        ]

    @property
    def _tokens(self) -> int:
        return sum(len(state.tokens) for _, state in self.references)

    def _states(self, subject: Subject, chats: Sequence[Chat]) -> Iterator[_State]:
        """Yield the states of the first ``max_tokens`` tokens of replies at every layer."""
        from personality_vector.steering.activations import read_blocks, row_of
        from personality_vector.subject.models import decoder_blocks

        layers, left = range(len(decoder_blocks(subject.model))), self.max_tokens
        for batch in batched(chats, self.batch_size):
            rows = [row_of(subject.tokenizer, subject.edited(c), "response_mean") for c in batch]
            found = read_blocks(subject.model, rows, layers, lambda states: states.float().cpu())
            for index, row in enumerate(rows):
                kept = [row.ids[column] for column in row.pooled][:left]
                # Cloned, or a slice would keep the whole response in memory.
                cut = {layer: every[index][: len(kept)].clone() for layer, every in found.items()}
                left -= len(kept)
                yield _State(kept, cut)


def _observed(
    measure: str, trait: str, asked: Sequence[Asked], values: Sequence[float]
) -> list[Observation]:
    """Return an observation of each item: the mean over its samples."""
    by_item: dict[str, list[float]] = {}
    for one, value in zip(asked, values, strict=True):
        by_item.setdefault(one.id, []).append(value)
    return [Observation(measure, trait, item, fmean(own)) for item, own in by_item.items()]


def _score(
    measure: str, trait: str, seen: Sequence[Observation], counts: tuple[int, int]
) -> Reading:
    """Return the mean over items, with its 95 % interval; counts of replies, and unscored ones."""
    from personality_vector.numeric.statistics import mean_and_interval

    mean, low, high = mean_and_interval([one.value for one in seen])
    return Reading(measure, mean, trait, low, high, *counts, "cosine")


def _cosine_sum(
    layer: int, edited: "Float[Tensor, 'seq hidden']", base: "Float[Tensor, 'seq hidden']"
) -> float:
    """Return the sum over tokens of the cosines of two states; equal states give exactly 1."""
    a, b = edited.double(), base.double()
    norms = ((a * a).sum(-1) * (b * b).sum(-1)).sqrt()
    total = float(((a * b).sum(-1) / norms).sum())
    if total != total or abs(total) == float("inf"):
        raise NonFiniteError(f"layer {layer}: a state is zero, NaN or infinite, so has no cosine")
    return total
