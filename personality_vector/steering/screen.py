"""Projection differences: which chats would move a model along a direction if it learned them."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from personality_vector.progress import progress
from personality_vector.steering.monitor import projections
from personality_vector.steering.vector import SteeringVector
from personality_vector.subject import Chat, answered, batched
from personality_vector.subject.draws import sample_seed
from personality_vector.subject.subject import Subject, generate_replies

Against = Literal["reply", "prompt", "none"]
"""What the projection of a reply is compared with.

``reply``: that of the base's own reply to the same prompt, which has to be generated.
``prompt``: that of the last token of the prompt, which stands for it.
``none``: the mean over all replies of the data.
"""
Group = Literal["high", "middle", "low", ""]
"""Where a chat is among all by its difference; "" if it has none."""
_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


@dataclass(frozen=True, slots=True)
class Screened:
    """What screening found, chat by chat; in the unit of the activation.

    Attributes:
        projections: ``a_l(x, y) . v / |v|``.
        differences: ``dP``; NaN where the base's reply has no words to read.
        replies: What the base replied, if it was asked.
        is_centred: Whether the mean difference is 0 by construction.
    """

    projections: Float64[Tensor, " chats"]
    differences: Float64[Tensor, " chats"]
    replies: tuple[str, ...] | None = None
    is_centred: bool = False

    def summary(self) -> dict[str, Any]:
        """Return the difference of the data as a whole, as JSON-like data.

        ``mean`` of the differences, and the ends of its 95 % interval over chats (normal);
        ``quantiles`` of the differences; ``projection_mean``; and how many chats are ``unscored``,
        without a difference, of which nothing is imputed. ``None`` where there are too few chats,
        and for a mean that is 0 by construction.
        """
        known = self.differences[~self.differences.isnan()]
        count = len(known)
        mean = float(known.mean()) if count and not self.is_centred else None
        ends: tuple[float | None, float | None] = (None, None)
        if mean is not None and count > 1:
            half = NormalDist().inv_cdf(0.975) * float(known.std()) / math.sqrt(count)
            ends = (mean - half, mean + half)
        return {
            "mean": mean,
            "mean_low": ends[0],
            "mean_high": ends[1],
            "quantiles": {
                f"{100 * q:g} %": float(np.quantile(known.numpy(), q)) if count else None
                for q in _QUANTILES
            },
            "projection_mean": float(self.projections.mean()),
            "unscored": len(self.differences) - count,
        }


def projection_differences(
    subject: Subject,
    chats: Sequence[Chat],
    vector: SteeringVector,
    layer: int,
    *,
    against: Against = "reply",
    seed: int = 0,
) -> Screened:
    """Return the projection difference of every chat.

    ``dP_i = (a_l(x_i, y_i) - a_l(x_i, y'_i)) . v_l / |v_l|``: ``a_l`` is the mean activation over
    the tokens of a response, ``y_i`` the response of the chat, and ``y'_i`` the model's own. Its
    mean over a data set says how far training on that will move the model along ``v``.

    ``against`` chooses what stands for the second term. ``prompt`` takes the activation at the last
    token of the prompt and generates nothing. The mean over a response and one token before it
    differ by more than their content, so that these differences are shifted by an amount common to
    all chats: read their order, not their level. ``none`` takes the mean of the first term over
    ``chats``, so that the mean difference is 0 by construction and what a prompt alone does is not
    taken out.

    Args:
        subject: The model that would be trained; not changed. Its ``sampling`` says how it replies,
            how long, and how many chats are read at once.
        chats: Each ends with a message of the assistant.
        vector: A vector with a direction for ``layer``; its length does not matter, its sign does.
        layer: 0-based decoder block, ``-1`` the last.
        against: What the projection of a response is compared with.
        seed: Of the model's replies, unless they are greedy.

    Raises:
        ModelError: The model does not have this layer.
        TensorMismatchError: The vector has no direction for it.
        BaseMismatchError: The vector has another width than the model.
        DataError: There is no chat, one does not end with a response or cannot be rendered, or is
            longer than the model reads.
        NonFiniteError: An activation is NaN or infinite.

    Source:
        Persona vectors, Chen et al. 2025, arXiv:2507.21509, the projection difference.
        Deviations: our layer ``l`` is their ``l + 1`` (they count the embeddings); the end mark of
        a turn is not part of the response; ``prompt`` and ``none`` are approximations of ours.
    """
    size = subject.sampling.batch_size
    model, tokenizer = subject.model, subject.tokenizer
    found = projections(model, tokenizer, chats, vector, layer, "response_mean", size)
    if against == "none":
        return Screened(found, found - found.mean(), is_centred=True)
    if against == "prompt":
        before = projections(model, tokenizer, chats, vector, layer, "prompt_last", size)
        return Screened(found, found - before)
    prompts = [chat[:-1] for chat in chats]
    replies = _replies(subject, prompts, seed)
    said = [number for number, reply in enumerate(replies) if reply]
    own = torch.full_like(found, math.nan)
    if said:
        replied = [answered(prompts[number], replies[number]) for number in said]
        own[said] = projections(model, tokenizer, replied, vector, layer, "response_mean", size)
    return Screened(found, found - own, tuple(replies))


def _replies(subject: Subject, prompts: Sequence[Chat], seed: int) -> list[str]:
    """Return the model's own reply to each prompt, "" where it says nothing.

    A greedy model is asked the same only once.
    """
    model, tokenizer, sampling = subject.model, subject.tokenizer, subject.sampling
    names = [
        (json.dumps(list(prompt)), number if sampling.temperature > 0 else 0)
        for number, prompt in enumerate(prompts)
    ]
    asked = dict(zip(names, prompts, strict=True))
    batches = enumerate(progress(list(batched(list(asked.values()), sampling.batch_size)), "reply"))
    found = [
        reply.text
        for number, batch in batches
        for reply in generate_replies(
            model, tokenizer, batch, sampling, seed=sample_seed(seed, number)
        )
    ]
    said = dict(zip(asked, found, strict=True))
    return [said[name] for name in names]


def grouped(differences: Float64[Tensor, " chats"], share: float) -> list[Group]:
    """Return the group of each chat: those with the highest differences, the lowest, the others.

    The first two have ``max(1, floor(share * n))`` of the ``n`` chats with a difference, at most
    half of them; among equal differences the earlier chat counts as the higher one.

    Args:
        differences: NaN for a chat without a difference.
        share: Of the chats in each of the two, in (0, 0.5].

    >>> grouped(torch.tensor([3.0, 1.0, 2.0, math.nan], dtype=torch.float64), 0.34)
    ['high', 'low', 'middle', '']
    """
    known = [n for n, value in enumerate(differences.tolist()) if not math.isnan(value)]
    order = sorted(known, key=lambda n: -float(differences[n]))
    size = min(max(1, math.floor(share * len(known))), len(known) // 2)
    groups: list[Group] = [""] * len(differences)
    for place, number in enumerate(order):
        is_low = place >= len(order) - size
        groups[number] = "high" if place < size else "low" if is_low else "middle"
    return groups
