"""Steering vectors: directions in activation space, their algebra and their storage."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from jaxtyping import Float
from torch import Tensor, nn

from personality_vector.delta import Delta
from personality_vector.errors import CheckpointError, NonFiniteError, TensorMismatchError, some
from personality_vector.steering.activations import (
    Pooling,
    Reader,
    options_of,
    require_prompts_differ,
    template_hash,
)
from personality_vector.steering.estimators import EstimatorName, contrast, shift
from personality_vector.steering.fit import (
    Directions,
    checked,
    outside,
    require_one_space,
    require_same_shape,
)
from personality_vector.steering.storage import VectorRecord
from personality_vector.subject import Chat
from personality_vector.traits import Pole

if TYPE_CHECKING:
    from personality_vector.steering.hybrid import Hybrid


@dataclass(frozen=True, slots=True, eq=False)
class SteeringVector:
    """A direction in the residual stream for each of some layers; not normalised.

    Attributes:
        directions: 0-based decoder block to a float32 direction ``(hidden,)`` on the CPU, in the
            unit of that block's output.
        model: Hex digest of the fingerprint of the model it came from; "" where that is unknown.
            Only vectors of the same model can be combined.
        pole: The pole that it points to, if any.
        label: Name in messages and reports.
        pooling: Which tokens' activations were averaged, such as ``response_mean``; of a sum,
            that of its terms.
        counts: Number of positive and of negative inputs that it was made from.
        estimator: How the direction was found from the activations, such as ``mean_difference``.
        template: Digest of the chat template that the inputs were rendered with
            (:func:`template_hash`); "" for plain texts, or where it is unknown.
        judge: Who selected the inputs; "" if nobody did.
        made_with: What else its manifest says (:class:`Record`); of a sum, what its terms share.

    Raises:
        DataError: There is no layer, a layer is negative, or a direction is zero.
        NonFiniteError: A direction holds NaN or infinity.
        TensorMismatchError: A direction is not one float32 vector, or widths differ.

    Source:
        Persona vectors, Chen et al. 2025, arXiv:2507.21509.
    """

    directions: Directions
    model: str
    pole: Pole | None
    label: str
    pooling: str
    counts: tuple[int, int]
    estimator: str = "mean_difference"
    template: str = ""
    judge: str = ""
    made_with: Mapping[str, Any] = field(default_factory=dict, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "directions", checked(self.directions, self.label))

    @classmethod
    def extract(  # noqa: PLR0913  (two sides, how to read them, and what they mean)
        cls,
        model: nn.Module,
        tokenizer: Any,
        positive: Sequence[Chat],
        negative: Sequence[Chat],
        *,
        layers: Sequence[int] | None = None,
        pooling: Pooling = "response_mean",
        estimator: EstimatorName = "mean_difference",
        batch_size: int = 16,
        pole: Pole | None = None,
        label: str = "",
    ) -> "SteeringVector":
        """Return the direction from the negative to the positive chats.

        Args:
            model: A causal language model; not changed. Its fingerprint is unknown to this
                function: set it with ``dataclasses.replace(vector, model=digest)``.
            tokenizer: The tokenizer of the model; it needs a chat template.
            positive: Chats that show the pole: for ``response_mean`` each ends with an assistant
                message that does; for a pooling of the prompt no response is read.
            negative: Chats that do not, or show the opposite.
            layers: Decoder blocks, ``-1`` the last; by default all of them, in the same pass.
            pooling: Which tokens' activations are averaged.
            estimator: ``mean_difference``; ``pca``, for which chat ``i`` of the two sides is a
                pair; or ``logistic``.
            batch_size: Chats per forward pass; it changes speed and memory only.
            pole: What the positive chats show.
            label: Defaults to the pole.

        Raises:
            DataError: A side is empty, a chat lacks what is pooled, the two sides are equal
                (for a pooling of the prompt, their prompts), or the estimator needs pairs.
            NonFiniteError: The model's activations are NaN or infinite.
            ModelError: The model does not have this layer.

        Source:
            Persona vectors, Chen et al. 2025, arXiv:2507.21509:
            ``v_l = mean_pos a_l - mean_neg a_l``, ``a_l(x)`` the mean over the response's tokens.
            Deviations: our layer ``l`` is their ``l + 1`` (they count the embeddings); the last
            layer is taken before the final norm, which is where steering acts; the end mark of
            the turn is not part of the response; a side is averaged as given, without a judge.
        """
        require_prompts_differ(positive, negative, pooling)
        reader = Reader(model, tokenizer, layers, pooling, batch_size)
        return cls(
            contrast(reader, positive, negative, estimator),
            "",
            pole,
            label or str(pole or ""),
            pooling,
            (len(positive), len(negative)),
            estimator,
            template_hash(tokenizer),
            made_with=options_of(tokenizer),
        )

    @classmethod
    def between(  # noqa: PLR0913  (two models, what they read, and how)
        cls,
        base: nn.Module,
        tuned: nn.Module,
        tokenizer: Any,
        chats: Sequence[Chat],
        *,
        layers: Sequence[int] | None = None,
        pooling: Pooling = "response_mean",
        batch_size: int = 16,
    ) -> "SteeringVector":
        """Return how fine-tuning moved the mean activation over the same chats.

        It is to activations what a delta is to weights. For one model in memory read it twice
        with :func:`Reader`, plain and inside ``intervention.applied(subject, strength)``,
        and take :func:`shift` of the two means.

        Args:
            base: The model that was fine-tuned; the vector belongs to its residual stream.
            tuned: What it became.
            tokenizer: The tokenizer of both models; it needs a chat template.
            chats: What both read. At least one.
            layers: Decoder blocks, ``-1`` the last; by default all of them.
            pooling: Which tokens' activations are averaged.
            batch_size: Chats per forward pass.

        Raises:
            TensorMismatchError: The two differ in depth, width or vocabulary.
            DataError: There are no chats, one lacks the text that is pooled, or nothing moved.
            NonFiniteError: Activations are NaN or infinite.

        Source:
            Finetuning shift of persona vectors, Chen et al. 2025, arXiv:2507.21509:
            ``mean a_tuned - mean a_base``, of which they take the projection on a direction.
        """
        require_same_shape(base.config, tuned.config)
        before, after = (
            Reader(model, tokenizer, layers, pooling, batch_size).mean(chats)
            for model in (base, tuned)
        )
        return cls(
            shift(after, before),
            "",
            None,
            "tuned - base",
            pooling,
            (len(chats), len(chats)),
            "finetuning_shift",
            template_hash(tokenizer),
            made_with=options_of(tokenizer),
        )

    @property
    def layers(self) -> tuple[int, ...]:
        """0-based decoder blocks, ascending."""
        return tuple(self.directions)

    @property
    def hidden(self) -> int:
        """Width of the residual stream."""
        return next(iter(self.directions.values())).numel()

    def norm(self, layer: int) -> float:
        """Return the Euclidean norm at ``layer``, in the unit of the activation.

        Raises:
            TensorMismatchError: There is no direction for this layer.
        """
        return float(self[layer].double().norm())

    def cosine(self, other: "SteeringVector", layer: int) -> float:
        """Return the cosine of the angle to another vector of the same model, at ``layer``.

        Raises:
            BaseMismatchError: The two are of different models.
            TensorMismatchError: One has no direction for this layer, or the widths differ.
        """
        require_one_space(self, other)
        one, another = self[layer].double(), other[layer].double()
        return float(one @ another / (one.norm() * another.norm()))

    def unit(self) -> "SteeringVector":
        """Return the directions at length 1; a coefficient is then in the unit of activations."""
        exact = {layer: direction.double() for layer, direction in self.directions.items()}
        return replace(
            self,
            directions={layer: (1.0 / v.norm() * v).float() for layer, v in exact.items()},
            label=f"unit({self.label})",
        )

    def at(self, *layers: int) -> "SteeringVector":
        """Return the directions of some 0-based layers alone.

        Raises:
            TensorMismatchError: There is no direction for one of them.
            DataError: No layer is given.
        """
        return replace(self, directions={layer: self[layer] for layer in layers})

    def incremental(self) -> "SteeringVector":
        """Return ``v'_l = v_l - v_k``, ``k`` the layer of this vector before ``l``.

        For steering at all layers at once: the additions up to layer ``l`` sum to ``v_l``, while
        ``v`` itself would be added again at every layer. The first layer is kept.

        Raises:
            DataError: Two consecutive layers have the same direction.

        Source:
            Fierro and Roger 2025, arXiv:2511.05408: ``v'_l = v_l - v_{l-1}`` at all layers.
            Deviations: also the last layer; layers may be missing between two.
        """
        gains = {layer: self[layer] - self[k] for k, layer in pairwise(self.layers)}
        return replace(
            self, directions={**self.directions, **gains}, label=f"incremental({self.label})"
        )

    def without(self, *others: "SteeringVector") -> "SteeringVector":
        """Return what is left of each direction once the span of ``others`` is taken out.

        Raises:
            BaseMismatchError: One is of another model.
            TensorMismatchError: One has no direction for a layer of this vector.
            DataError: Nothing is left.
        """
        for other in others:
            require_one_space(self, other)
        left = {k: outside(v, [other[k] for other in others]) for k, v in self.directions.items()}
        return replace(self, directions=left)

    def __getitem__(self, layer: int) -> Float[Tensor, " hidden"]:
        """Return the direction at a 0-based ``layer``."""
        if layer not in self.directions:
            raise TensorMismatchError(
                f"{self.label}: has no direction for layer {layer}, only for {list(self.layers)}"
            )
        return self.directions[layer]

    @overload
    def __add__(self, other: "SteeringVector") -> "SteeringVector": ...
    @overload
    def __add__(self, other: Delta) -> "Hybrid": ...
    def __add__(self, other: Any) -> Any:
        if not isinstance(other, SteeringVector):
            return self.__radd__(other)
        return self._combined(other, 1.0, f"{self.label} + {other.label}")

    @overload
    def __sub__(self, other: "SteeringVector") -> "SteeringVector": ...
    @overload
    def __sub__(self, other: Delta) -> "Hybrid": ...
    def __sub__(self, other: Any) -> Any:
        if isinstance(other, SteeringVector):
            return self._combined(other, -1.0, f"{self.label} - {other.label}")
        return self.__radd__(-other) if isinstance(other, Delta) else NotImplemented

    def __radd__(self, delta: Any) -> Any:
        from personality_vector.steering.hybrid import Hybrid

        return Hybrid(delta, self) if isinstance(delta, Delta) else NotImplemented

    def __rsub__(self, delta: Any) -> Any:
        return (-self).__radd__(delta)

    def __mul__(self, factor: float) -> "SteeringVector":
        if not math.isfinite(factor):
            raise NonFiniteError(f"{self.label}: cannot be scaled by {factor}")
        return replace(
            self,
            directions={layer: factor * vector for layer, vector in self.directions.items()},
            label=f"{factor:g} * ({self.label})",
            pole=self.pole if factor > 0 else None,
        )

    __rmul__ = __mul__

    def __truediv__(self, divisor: float) -> "SteeringVector":
        if divisor == 0:
            raise NonFiniteError(f"{self.label}: cannot be divided by 0")
        return self * (1.0 / divisor)

    def __neg__(self) -> "SteeringVector":
        return replace(self * -1.0, label=f"-({self.label})")

    def combined(
        self, others: Sequence["SteeringVector"], directions: Directions, label: str
    ) -> "SteeringVector":
        """Return directions that were made of this vector and others, with the origins of all."""
        terms = [self, *others]
        ours, rest = self.made_with.items(), [term.made_with for term in others]
        return replace(
            self,
            directions=directions,
            pole=None,
            label=label,
            made_with={k: v for k, v in ours if all(term.get(k) == v for term in rest)},
            counts=(sum(term.counts[0] for term in terms), sum(term.counts[1] for term in terms)),
            **{
                name: " + ".join(dict.fromkeys(filter(None, (getattr(t, name) for t in terms))))
                for name in _ORIGINS
            },
        )

    def save(self, directory: str | Path, *, force: bool = False) -> Path:
        """Write ``vector.safetensors``, ``vector.json`` and a manifest; it appears whole.

        Args:
            directory: Must not exist, unless ``force``.
            force: Replace a result that this tool wrote.

        Raises:
            OutputExistsError: The directory exists.
        """
        record = VectorRecord(
            **{name: getattr(self, name) for name in _METADATA},
            norms={layer: self.norm(layer) for layer in self.layers},
        )
        tensors = {f"layer.{layer}": vector for layer, vector in self.directions.items()}
        return record.write(Path(directory), tensors, force=force)

    @classmethod
    def load(cls, directory: str | Path) -> "SteeringVector":
        """Read a saved steering vector.

        Raises:
            CheckpointError: A file is missing or damaged, or the two disagree.
        """
        record, stored = VectorRecord.read(Path(directory))
        names = {layer: f"layer.{layer}" for layer in record.norms}
        unshared = set(stored.names) ^ set(names.values())
        if unshared:
            raise CheckpointError(
                f"{directory}: vector.safetensors and vector.json disagree on {some(unshared)}"
            )
        directions = {layer: stored[name] for layer, name in names.items()}
        for layer, norm in record.norms.items():
            found = float(directions[layer].double().norm())
            if not math.isclose(found, norm, rel_tol=1e-9):
                raise CheckpointError(
                    f"{directory}: layer {layer} has norm {found:.9g}, vector.json says "
                    f"{norm:.9g}; the two files do not belong together"
                )
        return cls(directions, **{name: getattr(record, name) for name in _METADATA})

    def _combined(self, other: "SteeringVector", sign: float, label: str) -> "SteeringVector":
        require_one_space(self, other)
        unshared = set(self.directions) ^ set(other.directions)
        if unshared:
            raise TensorMismatchError(
                f"{self.label} and {other.label} do not cover the same layers: "
                f"only one of them has {sorted(unshared)}"
            )
        return self.combined(
            [other], {layer: self[layer] + sign * other[layer] for layer in self.layers}, label
        )


_METADATA = tuple(field.name for field in fields(SteeringVector) if field.name != "directions")
# Fields that name where a vector comes from; a sum lists those of its terms, each once.
_ORIGINS = ("pooling", "estimator", "template", "judge")
