"""What a classifier sees of a text: its words, or the hidden states of a model that reads it."""

import re
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from personality_vector.data.texts import sentences, words
from personality_vector.files import write_file
from personality_vector.lab import cache_folder
from personality_vector.progress import progress
from personality_vector.subject import Subject, batched, digest_of

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from torch import Tensor

_CLAUSE = re.compile(r"[.,;:!?()\-\N{EN DASH}\N{EM DASH}]+(?=\s|$)|\n|\N{EM DASH}")
_NEGATIONS = {"not", "never", "no", "nobody", "nothing", "without", "hardly", "rarely", "seldom"}
_NEGATIONS |= {"neither", "nor", "cannot"}
_MARK = "not_"
_SHORTEST, _LONGEST = 3, 5  # characters of a part of a word
_MANY = 10  # texts from which on a part of a word counts only if two of them have it
_MOST_TOKENS, _BATCH, _MOST_RECENT = 512, 32, 4096


def marked(text: str) -> list[str]:
    """Return the words of a text; those that a negation precedes in their clause are marked.

    Source:
        Pang, Lee and Vaithyanathan 2002, arXiv:cs/0205070.

    >>> marked("I don't enjoy parties, I love them")
    ['i', "don't", 'not_enjoy', 'not_parties', 'i', 'love', 'them']
    """
    found = []
    for clause in _CLAUSE.split(text):
        is_negated = False
        for word in words(clause):
            found.append(_MARK + word if is_negated else word)
            is_negated = is_negated or word in _NEGATIONS or word.endswith("n't")
    return found


def parts(text: str) -> list[str]:
    """Return every run of three to five characters of each marked word and its ends.

    They relate words of one stem, and words that were never seen in this form.

    >>> parts("I do")
    [' i ', ' do', 'do ', ' do ']
    """
    return [part for word in marked(text) for part in _parts_of(word)]


def _parts_of(word: str) -> Iterator[str]:
    sign = "!" if word.startswith(_MARK) else ""
    whole = f" {word.removeprefix(_MARK)} "
    for length in range(_SHORTEST, _LONGEST + 1):
        for start in range(len(whole) - length + 1):
            yield sign + whole[start : start + length]


class WordFeatures:
    """TF-IDF of the marked words, of pairs of them, and of their parts."""

    strength = 1.5
    """Inverse of the regularisation of a logistic regression on them."""

    def read(self, texts: Sequence[str], *, keep: bool = False) -> list[list[str]]:  # noqa: ARG002
        """Return each text and its sentences."""
        return [[text, *sentences(text)] for text in texts]

    def learned(self, passages: Sequence[Sequence[str]]) -> Any:
        """Return the features of whole texts, a sparse row each, and keep what was found there."""
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.pipeline import make_union

        options = {"lowercase": False, "sublinear_tf": True}
        self._whole = TfidfVectorizer(
            tokenizer=marked, token_pattern=None, ngram_range=(1, 2), **options
        )
        fewest = 2 if len(passages) >= _MANY else 1
        every_part = TfidfVectorizer(analyzer=parts, min_df=fewest, **options)
        self._every = make_union(self._whole, every_part)
        return self._every.fit_transform([text for text, *_ in passages])

    def __call__(self, passages: Sequence[Sequence[str]]) -> Any:
        """Return the features of every text and sentence, a sparse row each."""
        return self._every.transform([passage for text in passages for passage in text])

    def known(self, text: str) -> float:
        """Return the share of a text's words that were among those learned."""
        found = words(text)
        vocabulary = self._whole.vocabulary_
        known = [word in vocabulary or _MARK + word in vocabulary for word in found]
        return sum(known) / len(known) if known else 0.0


class StateFeatures:
    """The mean hidden state of a text's tokens, half-way through an unedited model.

    A text stands alone, without a chat template, and is read once; a sentence has the mean of its
    own tokens. What comes after 512 tokens, or after what the model reads, is not read.

    Args:
        model: Directory or Hub id of a checkpoint; it is loaded when the first text is read.
    """

    strength = 1e-3
    """Inverse of the regularisation of a logistic regression on them."""

    def __init__(self, model: str) -> None:
        self._model = model
        self._recent: dict[str, Tensor] = {}  # a judge rates the same texts for every trait

    def read(
        self, texts: Sequence[str], *, keep: bool = False
    ) -> "list[Float[Tensor, 'passages width']]":
        """Return the states of each text and of its sentences; float32.

        Args:
            texts: Any texts.
            keep: Whether they are taken from the cache on disk, or put there.
        """
        import torch
        from safetensors.torch import load_file, save_file

        if not keep:
            new = [text for text in dict.fromkeys(texts) if text not in self._recent]
            if len(self._recent) + len(new) > _MOST_RECENT:
                self._recent.clear()
                new = list(dict.fromkeys(texts))
            self._recent |= zip(new, self._states(new), strict=True)
            return [self._recent[text] for text in texts]
        passages = [[text, *sentences(text)] for text in texts]
        name = digest_of(identity_of_model(self._model), passages, _MOST_TOKENS)
        file = cache_folder("states") / f"{name}.safetensors"
        if not file.is_file():
            states = self._states(texts)
            counts = torch.tensor([len(one) for one in states])
            held = {"states": torch.cat(states), "counts": counts}
            write_file(file, lambda path: save_file(held, path))
        found = load_file(file)
        return list(torch.split(found["states"], found["counts"].tolist()))

    def learned(self, passages: "Sequence[Float[Tensor, 'passages width']]") -> Any:
        """Return the states of whole texts, a standardised row each, and keep the scale."""
        import torch
        from sklearn.preprocessing import StandardScaler

        states = torch.stack([one[0] for one in passages]).numpy()
        self._scaler = StandardScaler().fit(states)
        return self._scaler.transform(states)

    def __call__(self, passages: "Sequence[Float[Tensor, 'passages width']]") -> Any:
        """Return the states of every text and sentence, a standardised row each."""
        import torch

        return self._scaler.transform(torch.cat(list(passages)).numpy())

    def known(self, text: str) -> float:
        """Return 1: a model reads every text."""
        return 1.0 if words(text) else 0.0

    @cached_property
    def _subject(self) -> Subject:
        from personality_vector.subject import subject

        return subject.Subject.load(self._model)

    def _states(self, texts: Sequence[str]) -> "list[Float[Tensor, 'passages width']]":
        """Read texts in the order of their lengths."""
        import torch

        order = sorted(range(len(texts)), key=lambda index: len(texts[index]))
        batches = list(batched(order, _BATCH))
        found: dict[int, Tensor] = {}
        with torch.no_grad():
            for batch in progress(batches, "read"):
                found |= zip(batch, self._read([texts[index] for index in batch]), strict=True)
        return [found[index] for index in range(len(texts))]

    def _read(self, texts: Sequence[str]) -> "Iterator[Float[Tensor, 'passages width']]":
        import torch

        from personality_vector.subject.encoding import right_padded

        tokenizer = self._subject.tokenizer
        most = min(_MOST_TOKENS, tokenizer.most_tokens or _MOST_TOKENS)
        encoded = [tokenizer(text, return_offsets_mapping=True) for text in texts]
        rows = [one["input_ids"][:most] for one in encoded]
        for text, row, one, states in zip(
            texts, rows, encoded, self._halfway(*right_padded(rows)), strict=True
        ):
            # The first token's state is far larger than all others, whatever the text.
            first = min(1, len(row) - 1)
            ends = torch.tensor([end for _, end in one["offset_mapping"][first:most]])
            own = states[first : len(row)]
            lies = [(ends > begin) & (ends <= end) for begin, end in _places(text)]
            parts = [own[inside].mean(0) for inside in lies if inside.any()]
            yield torch.stack([own.mean(0), *(parts or [own.mean(0)])])

    def _halfway(
        self, ids: "Int[Tensor, 'batch seq']", mask: "Int[Tensor, 'batch seq']"
    ) -> "Float[Tensor, 'batch seq width']":
        """Return what the block half-way puts out; those above it do not run."""
        from personality_vector.subject.models import decoder_blocks, device_of

        model = self._subject.model
        blocks, device = decoder_blocks(model), device_of(model)

        def keep(_: object, __: object, output: Any) -> None:
            raise _Halfway(output if hasattr(output, "shape") else output[0])

        hook = blocks[(len(blocks) + 1) // 2 - 1].register_forward_hook(keep)
        try:
            model(input_ids=ids.to(device), attention_mask=mask.to(device), use_cache=False)
        except _Halfway as reached:
            states: Tensor = reached.args[0]
            return states.float().cpu()
        finally:
            hook.remove()
        raise AssertionError("a model ran without its blocks")


class _Halfway(Exception):  # noqa: N818  (it is no error)
    """Holds the states that the upper half of a model would have read."""


def _places(text: str) -> Iterator[tuple[int, int]]:
    """Yield where each sentence of a text begins and ends, in characters."""
    end = 0
    for sentence in sentences(text):
        begin = text.index(sentence, end)
        end = begin + len(sentence)
        yield begin, end


def identity_of_model(model: str) -> str:
    """Return the digest of a checkpoint as it is read here."""
    from personality_vector.checkpoint import Checkpoint
    from personality_vector.subject.identity import base_identity

    return base_identity(Checkpoint.open(model), "float32", "auto")
