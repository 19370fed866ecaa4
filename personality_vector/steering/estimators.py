"""Estimators: they turn the pooled activations of two sides into a direction for each layer."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from personality_vector.errors import DataError, TensorMismatchError
from personality_vector.steering.activations import Reader
from personality_vector.subject import Chat

EstimatorName = Literal["mean_difference", "pca", "logistic"]

Positive = Float[Tensor, "positive hidden"]
Negative = Float[Tensor, "negative hidden"]
Estimator = Callable[[Positive, Negative], Float[Tensor, " hidden"]]
"""From the activations of the positive and of the negative side to a direction.

Float64 on the CPU. Its unit is that of the activation: coefficient 1 moves by the difference of
the two means, as far as that lies along the direction.
"""


def mean_difference(positive: Positive, negative: Negative) -> Float[Tensor, " hidden"]:
    """Return ``mean(h+) - mean(h-)``."""
    return positive.mean(0) - negative.mean(0)


def pca(positive: Positive, negative: Negative) -> Float[Tensor, " hidden"]:
    """Return the mean difference along the first principal direction of the paired differences.

    With ``d_i = h+_i - h-_i``, each pair is centred on its own middle, which leaves ``+d_i/2`` and
    ``-d_i/2``. Their mean is 0, and ``q``, their first principal direction, is the eigenvector of
    ``sum_i d_i d_i^T`` with the largest eigenvalue. The result is ``(q . mean(d)) q``, so that its
    sign is that of the mean difference.

    Raises:
        DataError: The sides are not pairs.

    Source:
        ``pca_center`` of repeng. Deviations: scaled as above, not to unit length; the sign is by
        the mean, not by a vote of the pairs. We have no ``pca_diff``: it takes ``d_i - mean(d)``,
        which removes the very signal.
    """
    if len(positive) != len(negative):
        raise DataError(
            f"pca needs pairs, but there are {len(positive)} positive and {len(negative)} negative "
            "inputs; give the same number in the same order, or use mean_difference"
        )
    differences = positive - negative
    is_tall = len(differences) > differences.shape[1]
    # The smaller of two matrices with the same eigenvalues: pairs are often few, coordinates many.
    gram = differences.T @ differences if is_tall else differences @ differences.T
    top = torch.linalg.eigh(gram).eigenvectors[:, -1]
    axis = torch.nn.functional.normalize(top if is_tall else differences.T @ top, dim=0)
    return _along(axis, differences.mean(0))


def logistic(positive: Positive, negative: Negative) -> Float[Tensor, " hidden"]:
    """Return the mean difference along the weight ``w`` of a logistic regression.

    It tells the sides apart by ``sigmoid(w . h + b)``, with L2 penalty at scikit-learn's ``C = 1``,
    on activations that are centred and divided by one number: their root mean square over all
    rows and coordinates. So the direction does not depend on the basis of the residual stream, and
    a stronger penalty turns it to the mean difference. The result is ``(q . mean difference) q``
    with ``q = w / |w|``.

    Raises:
        DataError: The activations are all the same, or the regression does not converge.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    rows = torch.cat([positive, negative])
    centred = rows - rows.mean(0)
    size = centred.square().mean().sqrt()
    if size == 0:
        raise DataError("a logistic probe cannot tell the sides apart: all activations are equal")
    is_positive = torch.arange(len(rows)) < len(positive)
    with warnings.catch_warnings():
        warnings.simplefilter("error", ConvergenceWarning)
        try:
            probe = LogisticRegression(C=1.0, tol=1e-6, max_iter=10_000).fit(
                (centred / size).numpy(), is_positive.numpy()
            )
        except ConvergenceWarning as error:
            raise DataError(f"the logistic probe does not converge: {error}") from error
    weight = torch.from_numpy(probe.coef_[0])
    if not weight.any():
        raise DataError("a logistic probe cannot tell the sides apart: their means are equal")
    return _along(weight / weight.norm(), mean_difference(positive, negative))


ESTIMATORS: dict[EstimatorName, Estimator] = {
    "mean_difference": mean_difference,
    "pca": pca,
    "logistic": logistic,
}


def contrast(
    reader: Reader,
    positive: Sequence[Chat],
    negative: Sequence[Chat],
    estimator: EstimatorName = "mean_difference",
) -> dict[int, Float[Tensor, " hidden"]]:
    """Return a direction for each layer of ``reader``, from the negative side to the positive.

    float32, on the CPU, in the unit of the activation. The mean difference streams; the others
    keep the pooled activation of every input: inputs x layers x hidden, in float32.

    Raises:
        DataError: A side is empty or cannot be read, or the estimator refuses it.
        NonFiniteError: The model's activations are NaN or infinite.
    """
    for side, inputs in (("positive", positive), ("negative", negative)):
        if not inputs:
            raise DataError(f"no {side} inputs: both sides of a steering vector need at least 1")
    if estimator == "mean_difference":
        return shift(reader.mean(positive), reader.mean(negative))
    plus, minus = reader.pooled(positive), reader.pooled(negative)
    return {
        layer: ESTIMATORS[estimator](plus[layer].double(), minus[layer].double()).float()
        for layer in reader.layers
    }


def shift(
    after: Mapping[int, Float[Tensor, "..."]], before: Mapping[int, Float[Tensor, "..."]]
) -> dict[int, Float[Tensor, "..."]]:
    """Return ``after - before`` at each layer: of mean activations, of two sides or two models.

    float32, rounded once.

    Raises:
        TensorMismatchError: They do not have the same layers, or not the same width.
    """
    missing = sorted(set(after) ^ set(before))
    if missing:
        raise TensorMismatchError(
            f"only one of two sets of mean activations has the layers {missing}"
        )
    for layer in after:
        if after[layer].shape != before[layer].shape:
            raise TensorMismatchError(
                f"layer {layer}: mean activations of shape {list(after[layer].shape)} and "
                f"{list(before[layer].shape)} do not come from one residual stream"
            )
    return {layer: (after[layer].double() - before[layer].double()).float() for layer in after}


def _along(
    axis: Float[Tensor, " hidden"], vector: Float[Tensor, " hidden"]
) -> Float[Tensor, " hidden"]:
    """Return the part of ``vector`` along the unit vector ``axis``."""
    return (axis @ vector) * axis
