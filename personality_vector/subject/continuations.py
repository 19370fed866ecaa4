"""How likely replies begin or continue in which way; what prompts have in common is read once."""

import copy
from collections.abc import Collection, Mapping, Sequence
from itertools import takewhile
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from personality_vector.subject.chat import Chat, answered, batched
from personality_vector.subject.encoding import (
    MOST_LOGITS,
    encode_chats,
    last_logits,
    prompt_cache,
    remembers,
    right_padded,
    vocabulary_of,
)
from personality_vector.subject.models import device_of

_SPACES = " \N{LOWER ONE EIGHTH BLOCK}\u0120"  # as text, in SentencePiece and in byte-level BPE
_BATCH = 8  # of one length nearly, since padding costs as much as words


@torch.no_grad()
def continuation_likelihoods(
    model: Any, tokenizer: Any, chat: Chat, begun: str, continuations: Sequence[str]
) -> Float[Tensor, " continuations"]:
    """Return the mean log-probability per token of each continuation of a reply, in nats.

    The tokens that all of them begin with are read once, and each continuation follows from that
    cache. What all of them share is not part of the mean. float32, on the CPU.

    Args:
        model: A causal language model that nothing steers.
        tokenizer: Its own.
        chat: What precedes the reply.
        begun: How the assistant's reply begins.
        continuations: Two or more texts that may follow it, after a space.

    Raises:
        DataError: A chat cannot be rendered.
        LengthError: One is longer than the model reads.
    """
    encoded = [encode_chats(tokenizer, [answered(chat, f"{begun} {c}")]) for c in continuations]
    rows = [one.input_ids[0].tolist() for one in encoded]
    ends = [int(one.response_mask[0].nonzero().max()) + 1 for one in encoded]
    agree = takewhile(lambda tokens: len(set(tokens)) == 1, zip(*rows, strict=False))
    begin = min(sum(1 for _ in agree), *(end - 1 for end in ends))
    # The last token that is shared predicts the first that is not, so it is read with it.
    shared = begin - 1
    read = torch.tensor([rows[0][:shared]], device=device_of(model))
    cache = prompt_cache(model, read) if shared else None
    shared = shared if cache is not None else 0
    most = max(1, MOST_LOGITS // (len(max(rows, key=len)) * (vocabulary_of(model) or 1)))
    order = sorted(range(len(rows)), key=lambda place: ends[place])
    found: dict[int, Tensor] = {}
    for places in batched(order, min(most, _BATCH)):
        batch = [(rows[place], ends[place]) for place in places]
        ids, mask = right_padded([row[shared:end] for row, end in batch])
        given = {}
        if cache is not None:
            given["past_key_values"] = copy.deepcopy(cache)
            given["past_key_values"].batch_repeat_interleave(len(batch))
            mask = torch.cat([mask.new_ones(len(batch), shared), mask], dim=1)
        device = device_of(model)
        logits = model(input_ids=ids.to(device), attention_mask=mask.to(device), **given).logits
        for place, row, tokens, (_, end) in zip(places, logits.cpu(), ids, batch, strict=True):
            log_probs = torch.log_softmax(row[begin - shared - 1 : end - shared - 1].float(), -1)
            said = tokens[begin - shared : end - shared, None]
            found[place] = log_probs.gather(1, said).mean()
    return torch.stack([found[place] for place in range(len(rows))])


def words_as_tokens(vocabulary: Mapping[str, int], words: Collection[str]) -> dict[int, str]:
    """Return the id of every token that is one of ``words``, perhaps after a space."""
    bare = ((index, token.lstrip(_SPACES)) for token, index in vocabulary.items())
    return {index: token for index, token in bare if token in words}


def logits_after(
    model: Any, ids: Int[Tensor, "rows seq"], mask: Int[Tensor, "rows seq"]
) -> Float[Tensor, "rows vocab"] | None:
    """Return the logits after each prompt; the tokens that all of them begin with are read once.

    ``None`` if less than half of what is read would be saved, if the model cannot continue from a
    cache, or if it has hooks, which may steer by what a whole prompt says.

    Args:
        model: A causal language model.
        ids: Prompts, padded on the left.
        mask: 1 on tokens, 0 on padding.
    """
    rows = [row[is_token.bool()].tolist() for row, is_token in zip(ids, mask, strict=True)]
    agree = takewhile(lambda tokens: len(set(tokens)) == 1, zip(*rows, strict=False))
    shared = min(sum(1 for _ in agree), *(len(row) - 1 for row in rows))
    saved = shared * (len(rows) - 1)
    if 2 * saved < sum(map(len, rows)) or _has_hooks(model) or not remembers(model):
        return None
    cache = prompt_cache(model, torch.tensor([rows[0][:shared]], device=ids.device))
    if cache is None:
        return None
    cache.batch_repeat_interleave(len(rows))
    rest, own = right_padded([row[shared:] for row in rows])
    ends = own.sum(1)
    kept = int(ends.max() - ends.min()) + 1
    logits = model(
        input_ids=rest.to(ids.device),
        attention_mask=torch.cat([own.new_ones(len(rows), shared), own], dim=1).to(ids.device),
        past_key_values=cache,
        **last_logits(model, kept),
    ).logits[:, -kept:]
    found: Tensor = logits[torch.arange(len(rows)), (ends - ends.min()).to(logits.device)]
    return found


def _has_hooks(model: Any) -> bool:
    return any(each._forward_hooks or each._forward_pre_hooks for each in model.modules())
