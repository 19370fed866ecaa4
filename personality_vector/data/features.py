"""What a classifier sees of a text: its words, or the hidden states of a model that reads it."""

import re
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from personality_vector.data.texts import words
from personality_vector.files import write_file
from personality_vector.lab import cache_folder
from personality_vector.progress import progress
from personality_vector.subject import Subject, batched, digest_of

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

_CLAUSE = re.compile(r"[.,;:!?()\-\N{EN DASH}\N{EM DASH}]+(?=\s|$)|\n|\N{EM DASH}")
_NEGATIONS = {"not", "never", "no", "nobody", "nothing", "without", "hardly", "rarely", "seldom"}
_NEGATIONS |= {"neither", "nor", "cannot"}
_MARK = "not_"
_SHORTEST, _LONGEST = 3, 5  # characters of a part of a word
_MOST_TOKENS, _BATCH = 512, 32


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

    def learned(self, texts: Sequence[str]) -> Any:
        """Return the features of texts, a sparse row each, and keep what was found in them."""
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.pipeline import make_union

        options = {"lowercase": False, "sublinear_tf": True}
        self._whole = TfidfVectorizer(
            tokenizer=marked, token_pattern=None, ngram_range=(1, 2), **options
        )
        self._every = make_union(self._whole, TfidfVectorizer(analyzer=parts, min_df=2, **options))
        return self._every.fit_transform(texts)

    def __call__(self, texts: Sequence[str], *, keep: bool = False) -> Any:  # noqa: ARG002
        """Return the features of texts, a sparse row each."""
        return self._every.transform(texts)

    def known(self, text: str) -> float:
        """Return the share of a text's words that were among those learned."""
        found = words(text)
        vocabulary = self._whole.vocabulary_
        known = [word in vocabulary or _MARK + word in vocabulary for word in found]
        return sum(known) / len(known) if known else 0.0


class StateFeatures:
    """The mean hidden state of a text's tokens, half-way through an unedited model.

    A text stands alone, without a chat template, and is cut after 512 tokens. States of texts that
    were learned are kept in the cache on disk.

    Args:
        model: Directory or Hub id of a checkpoint; it is loaded when the first text is read.
    """

    strength = 1e-3
    """Inverse of the regularisation of a logistic regression on them."""

    def __init__(self, model: str) -> None:
        self._model = model

    def learned(self, texts: Sequence[str]) -> Any:
        """Return the states of texts, a standardised row each, and keep the scale."""
        from sklearn.preprocessing import StandardScaler

        states = self._kept(texts)
        self._scaler = StandardScaler().fit(states)
        return self._scaler.transform(states)

    def __call__(self, texts: Sequence[str], *, keep: bool = False) -> Any:
        """Return the states of texts, a standardised row each; kept in the cache if wanted."""
        states = self._kept(texts) if keep else self._states(texts).numpy()
        return self._scaler.transform(states)

    def _kept(self, texts: Sequence[str]) -> Any:
        from safetensors.torch import load_file, save_file

        name = digest_of(identity_of_model(self._model), texts)
        file = cache_folder("states") / f"{name}.safetensors"
        if not file.is_file():
            states = self._states(texts)
            write_file(file, lambda path: save_file({"states": states}, path))
        return load_file(file)["states"].numpy()

    def known(self, text: str) -> float:
        """Return 1: a model reads every text."""
        return 1.0 if words(text) else 0.0

    @cached_property
    def _subject(self) -> Subject:
        from personality_vector.subject import subject

        return subject.Subject.load(self._model)

    def _states(self, texts: Sequence[str]) -> "Float[Tensor, 'texts width']":
        """Return the mean states of texts, read in the order of their lengths."""
        import torch

        order = sorted(range(len(texts)), key=lambda index: len(texts[index]))
        batches = list(batched(order, _BATCH))
        found: dict[int, Tensor] = {}
        with torch.no_grad():
            for batch in progress(batches, "read"):
                found |= zip(batch, self._read([texts[index] for index in batch]), strict=True)
        return torch.stack([found[index] for index in range(len(texts))])

    def _read(self, texts: Sequence[str]) -> "list[Float[Tensor, ' width']]":
        from personality_vector.subject.encoding import right_padded
        from personality_vector.subject.models import device_of

        model, tokenizer = self._subject.model, self._subject.tokenizer
        rows = [tokenizer(text)["input_ids"][:_MOST_TOKENS] for text in texts]
        ids, mask = (tensor.to(device_of(model)) for tensor in right_padded(rows))
        states = model(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states
        # The first token's state is far larger than all others, whatever the text.
        halfway = states[len(states) // 2].float().cpu()
        return [
            row[min(1, len(tokens) - 1) : len(tokens)].mean(0)
            for row, tokens in zip(halfway, rows, strict=True)
        ]


def identity_of_model(model: str) -> str:
    """Return the digest of a checkpoint as it is read here."""
    from personality_vector.checkpoint import Checkpoint
    from personality_vector.subject.subject import base_identity

    return base_identity(Checkpoint.open(model), "float32", "auto")
