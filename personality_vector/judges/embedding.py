"""A judge of originality by meaning: how far the ideas of an answer are from what was asked."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from personality_vector.data.ideas import TASKS, CreativityItem, distinct_ideas, read_tasks
from personality_vector.errors import ModelError, foreign
from personality_vector.judges.spec import BaseJudge, JudgeSpec
from personality_vector.lab import builtin
from personality_vector.recipes.schema import LocalPath, ModelRef, Words
from personality_vector.subject import Answer, Rubric, Score, Subject, batched, digest_of, said

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

_BATCH = 32
_MOST_TOKENS = 512
_LIBRARY = "sentence_transformers"


class EmbeddingJudge(JudgeSpec):
    """Rates originality by semantic distance: ``1 - cos(item, idea)``, a mean over ideas.

    ``model`` is one of sentence-transformers, a folder or a Hub id; without it, the unedited base
    reads the texts. The items are those of ``tasks``, by default of the tasks that ship.
    """

    model: ModelRef | None = None
    tasks: tuple[LocalPath, ...] = Field(default_factory=lambda: tuple(map(builtin, TASKS)))
    name: Words = "embedding"

    def open(self) -> "SemanticDistance":
        """Read the tasks.

        Raises:
            RecipeError: A file is not a task.
            ModelError: A model is named, and sentence-transformers is not installed.
        """
        if self.model is not None and find_spec(_LIBRARY) is None:
            raise ModelError(
                f"{self.name}: its model needs the package sentence-transformers: pip install "
                "'personality-vector[creativity]'; or leave the model out, for the base to read"
            )
        asked = read_tasks(self.tasks).items
        items = {one.text: one.about for one in asked if isinstance(one, CreativityItem)}
        return SemanticDistance(items, self.model, self.name)


@dataclass(frozen=True)
class SemanticDistance(BaseJudge):
    """``1 - cos`` of the embeddings of an item and of an idea, a mean over the ideas of an answer.

    An idea without sense is far from everything, so read it beside the quality of the ideas. The
    base's own embedding is the mean of the last hidden states of a text's tokens without its first,
    which is far larger than all others. All of these are close to each other, so that its distances
    are small, and say something only about answers that the same base reads.

    Attributes:
        items: What was asked, as a whole, to the item in it.
        model: A model of sentence-transformers, or ``None`` for the base.
        name: Name in tables.

    Source:
        Beaty and Johnson 2021, Behavior Research Methods 53. Deviations: each idea is embedded as a
        whole, where they compose the vectors of its words, and one model is used, not five.
    """

    items: Mapping[str, str]
    model: str | None = None
    name: str = field(default="embedding", compare=False)
    base: Subject | None = field(default=None, compare=False, repr=False)

    scale: ClassVar[tuple[float, float]] = (0.0, 2.0)
    rates: ClassVar[tuple[str, ...]] = ("originality",)
    version: ClassVar[int] = 1

    def identity(self) -> str:
        """Return the digest of the items and of the model; a study knows its base."""
        return self._identity

    @cached_property
    def _identity(self) -> str:
        local = self.model is not None and Path(self.model).exists()
        model = Path(self.model or "") if local else self.model
        return digest_of(type(self).__name__, self.version, self.items, model)

    def prepare(self, base: Subject, /) -> "SemanticDistance":
        """Return it with the base, which reads the texts unless there is another model."""
        return replace(self, base=base)

    def __call__(self, _rubric: Rubric, answers: Sequence[Answer], /) -> list[Score]:
        """Return one score for each answer, in order.

        Raises:
            ModelError: The model cannot be loaded.
        """
        found = [[*distinct_ideas(said(answer.reply).answer).values()] for answer in answers]
        about = [self.items.get(answer.question) for answer in answers]
        texts = dict.fromkeys(text for ideas in found for text in ideas)
        texts |= dict.fromkeys(item for item in about if item is not None)
        places = dict(zip(texts, range(len(texts)), strict=True))
        units = self._embed([*texts]) if texts else None
        return [
            _score(units, None if item is None else places[item], [places[idea] for idea in ideas])
            for item, ideas in zip(about, found, strict=True)
        ]

    @cached_property
    def _embed(self) -> "Callable[[Sequence[str]], Float[Tensor, 'texts width']]":
        """Returns a unit vector for each text."""
        if self.model is None:
            return self._read_by_base
        with foreign(ModelError, f"{self.name}: {self.model} cannot be loaded"):
            model = import_module(_LIBRARY).SentenceTransformer(self.model)

        def embed(texts: Sequence[str]) -> "Float[Tensor, 'texts width']":
            import torch

            found = model.encode([*texts], show_progress_bar=False, convert_to_tensor=True)
            # Not by the library, which rounds unit vectors to the dtype of the model.
            return torch.nn.functional.normalize(found.float().cpu(), dim=-1)

        return embed

    def _read_by_base(self, texts: Sequence[str]) -> "Float[Tensor, 'texts width']":
        import torch

        from personality_vector.subject.encoding import last_logits, right_padded
        from personality_vector.subject.models import device_of

        assert self.base is not None
        model, tokenizer, found = self.base.model, self.base.tokenizer, []
        most = min(_MOST_TOKENS, tokenizer.most_tokens or _MOST_TOKENS)
        for batch in batched(texts, _BATCH):
            rows = [tokenizer(text)["input_ids"][:most] for text in batch]
            ids, mask = (one.to(device_of(model)) for one in right_padded(rows))
            with torch.no_grad():
                read = model(
                    input_ids=ids,
                    attention_mask=mask,
                    output_hidden_states=True,
                    use_cache=False,
                    **last_logits(model, 1),
                )
            for row, states in zip(rows, read.hidden_states[-1].float().cpu(), strict=True):
                found.append(states[min(1, len(row) - 1) : len(row)].mean(0))
        return torch.nn.functional.normalize(torch.stack(found), dim=-1)


def _score(units: "Tensor | None", item: int | None, ideas: Sequence[int]) -> Score:
    """Return the mean distance of rows of unit vectors from that of the item."""
    if item is None:
        return Score(None, "its question is not one of the tasks that the judge knows")
    if units is None or not ideas:
        return Score(None, "it holds no idea")
    cosines = (float(units[item] @ units[idea]) for idea in ideas)
    return Score(fmean(min(2.0, max(0.0, 1.0 - cosine)) for cosine in cosines))
