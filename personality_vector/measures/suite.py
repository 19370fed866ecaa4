"""Everything that is measured on one model: probe, judged answers, side effects."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from personality_vector.data.instruments import Instrument, Item, read_instrument
from personality_vector.data.statements import Part, Statement, normalised, read_statements
from personality_vector.errors import DataError, some
from personality_vector.judges.classifier import StatementJudge
from personality_vector.judges.scores import Score, summarise
from personality_vector.measures.administer import Response, administer
from personality_vector.measures.probe import LikelihoodProbe
from personality_vector.measures.retention import Retention, distinct_n, mean_words
from personality_vector.numeric.random import key_for
from personality_vector.recipes.schema import MeasureSpec
from personality_vector.study.results import Answer, Measure
from personality_vector.subject.chat import Chat, ChatEdit, answered
from personality_vector.traits import Level, Pole, Trait

_PARTS: tuple[Part, ...] = ("train", "held_out")


@dataclass(frozen=True, slots=True)
class Findings:
    """What was measured on one model: every answer, and every number."""

    answers: list[Answer]
    measures: list[Measure]


@dataclass(frozen=True, slots=True)
class Suite:
    """The measurements of a recipe, ready to be made on one model after another.

    Made by :meth:`prepare`; call it inside an intervention.
    """

    spec: MeasureSpec
    seed: int
    probe: LikelihoodProbe
    judge: StatementJudge
    instrument: Instrument
    retention: Retention | None
    learned: frozenset[str]
    """The statements that vectors and judge may have learned from, normalised."""

    @classmethod
    def prepare(cls, spec: MeasureSpec, seed: int, model: Any, tokenizer: Any) -> "Suite":
        """Train the judge, and let the unedited ``model`` write the reference chats.

        Side effects are measured on the base's own replies: what it would have said anyway.

        Raises:
            DataError: The statements lack a trait or a pole.
        """
        train, held_out = _of_traits(spec, "train"), _of_traits(spec, "held_out")
        probed = [
            statement for pole in _poles(spec) for statement in _of(held_out, pole)[: spec.limit]
        ]
        # All traits of the file: a judge of one trait learns the others as neutral, so its scores
        # must not depend on which traits are measured.
        judge = StatementJudge.fit(_all(spec, "train"), _all(spec, "held_out"), seed)
        probe = LikelihoodProbe(probed, spec.question)
        learned = frozenset(_bare(statement.text) for statement in train)
        suite = cls(spec, seed, probe, judge, _instrument(spec), None, learned)
        if not spec.side_effects:
            return suite
        replies = [response for response in suite.ask(model, tokenizer) if response.text.strip()]
        # In random order: the reference is cut at a number of tokens, not after some of the items.
        replies.sort(key=lambda r: key_for(seed, f"{r.item.id} {r.sample}"))
        references: list[Chat] = [answered(reply.chat, reply.text) for reply in replies]
        retention = Retention.measure_base(model, tokenizer, references)
        return replace(suite, retention=retention)

    def ask(self, model: Any, tokenizer: Any, edit: ChatEdit = identity) -> list[Response]:
        """Return the model's answers to the instrument."""
        drawn = self.spec.generation
        generation = Generation(
            drawn.max_new_tokens, drawn.temperature, drawn.top_p, drawn.batch_size
        )
        return administer(
            model,
            tokenizer,
            self.instrument,
            edit=edit,
            generation=generation,
            samples=drawn.samples,
            seed=self.seed,
        )

    def __call__(self, model: Any, tokenizer: Any, edit: ChatEdit = identity) -> Findings:
        """Measure ``model`` as it is now."""
        responses = self.ask(model, tokenizer, edit)
        judged = [
            (response, trait, self.judge(response, trait))
            for response in responses
            for trait in self._traits_of(response.item)
        ]
        measures = [
            *self._probed(model, tokenizer, edit),
            *self._judged(judged),
            *self._side_effects(model, tokenizer, edit, [r.text for r in responses]),
        ]
        return Findings([_answer(*row) for row in judged], measures)

    def probe_of(self, trait: Trait) -> LikelihoodProbe:
        """Return the probe of one trait alone: no generation, so it is cheap and has no noise."""
        chosen = [statement for statement in self.probe.statements if statement.trait == trait]
        return LikelihoodProbe(chosen, self.probe.question)

    def _probed(self, model: Any, tokenizer: Any, edit: ChatEdit) -> list[Measure]:
        return [
            Measure(trait, "probe", s.value, s.standard_error, s.n_high + s.n_low)
            for trait, s in self.probe(model, tokenizer, edit).items()
        ]

    def quality(self) -> list[Measure]:
        """Return how good the judge is on held-out statements, and what length alone would do."""
        return [
            Measure(report.trait, name, value, None, report.n_held_out)
            for report in self.judge.report()
            if report.trait in self.spec.traits
            for name, value in (
                ("judge_accuracy", report.accuracy),
                ("judge_auc", report.auc),
                ("judge_accuracy_length_only", report.accuracy_length_only),
            )
        ]

    def _traits_of(self, item: Item) -> Sequence[Trait]:
        if item.trait is None:
            return self.spec.traits
        return [item.trait] if item.trait in self.spec.traits else []

    def _judged(self, judged: Sequence[tuple[Response, Trait, Score]]) -> list[Measure]:
        measures = []
        for trait in self.spec.traits:
            summary = summarise([score for _, of, score in judged if of == trait])
            measures.append(
                Measure(
                    trait,
                    "judge",
                    summary.mean,
                    summary.standard_error,
                    summary.n,
                    summary.unscored,
                )
            )
        return measures

    def _side_effects(
        self, model: Any, tokenizer: Any, edit: ChatEdit, texts: Sequence[str]
    ) -> list[Measure]:
        n = len(texts)
        measures = [
            Measure("", "words", mean_words(texts), None, n),
            Measure("", "distinct_2", distinct_n(texts, 2), None, n),
            Measure("", "verbatim", self._verbatim(texts), None, n),
        ]
        if self.retention is not None:
            score = self.retention(model, tokenizer, edit)
            measures += [
                Measure("", "kl_to_base", score.kl_to_base, None, score.tokens),
                Measure("", "perplexity", score.perplexity, None, score.tokens),
            ]
        return measures

    def _verbatim(self, texts: Sequence[str]) -> float:
        """Return the share of answers that are statements of the training part, word for word."""
        return sum(_bare(text) in self.learned for text in texts) / len(texts)


def _bare(text: str) -> str:
    """Return a text as it is compared: without case, white space and final punctuation."""
    return normalised(text).rstrip(".!")


def _answer(response: Response, trait: Trait, score: Score) -> Answer:
    asked = response.item.text
    return Answer(
        response.item.id, trait, response.sample, asked, response.text, score.value, score.reason
    )


def require_statements(spec: MeasureSpec) -> None:
    """Check that there are statements of every trait in both parts.

    Raises:
        DataError: A file is missing or a line unreadable, or a trait or pole has none.
    """
    for part in _PARTS:
        found = {statement.pole for statement in _of_traits(spec, part)}
        lacking = set(_poles(spec)) - found
        if lacking:
            raise DataError(
                f"{spec.statements}: has no {part} statements of {some(map(str, lacking))}"
            )


def _poles(spec: MeasureSpec) -> list[Pole]:
    levels: tuple[Level, ...] = ("high", "low")
    return [Pole(trait, level) for trait in spec.traits for level in levels]


def _of(statements: Sequence[Statement], pole: Pole) -> list[Statement]:
    return [statement for statement in statements if statement.pole == pole]


def _all(spec: MeasureSpec, part: Part) -> list[Statement]:
    return read_statements(spec.statements, part=part, held_out=spec.held_out)


def _of_traits(spec: MeasureSpec, part: Part) -> list[Statement]:
    found = _all(spec, part)
    lacking = set(spec.traits) - {statement.trait for statement in found}
    if lacking:
        raise DataError(f"{spec.statements}: has no {part} statements of {some(lacking)}")
    return [statement for statement in found if statement.trait in spec.traits]


def _instrument(spec: MeasureSpec) -> Instrument:
    if spec.instrument is not None:
        return read_instrument(spec.instrument)
    return Instrument(
        name="question", version="1", items=(Item(id="question", text=spec.question),)
    )
