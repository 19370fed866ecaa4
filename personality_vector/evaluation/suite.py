"""Everything that is measured on one model: probe, judged answers, side effects."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from personality_vector.chat import Chat, ChatEdit, Generation, answered, identity
from personality_vector.errors import DataError, some
from personality_vector.evaluation.administer import Response, administer
from personality_vector.evaluation.instruments import Instrument, Item, read_instrument
from personality_vector.evaluation.judges.classifier import StatementJudge
from personality_vector.evaluation.probe import LikelihoodProbe
from personality_vector.evaluation.retention import Retention, distinct_n, mean_words
from personality_vector.evaluation.scores import Score, summarise
from personality_vector.recipes import MeasureSpec
from personality_vector.results import Answer, Measure
from personality_vector.statements import Part, Statement, read_statements
from personality_vector.traits import Trait


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

    @classmethod
    def prepare(cls, spec: MeasureSpec, seed: int, model: Any, tokenizer: Any) -> "Suite":
        """Train the judge, and let the unedited ``model`` write the reference chats.

        Side effects are measured on the base's own replies: what it would have said anyway.

        Raises:
            DataError: The statements lack a trait or a pole.
        """
        held_out = [
            statement
            for trait in spec.traits
            for level in ("high", "low")
            for statement in _of_pole(spec, "held_out", trait, level)[: spec.limit]
        ]
        train = _of_traits(spec, "train")
        judge = StatementJudge.fit(train, _of_traits(spec, "held_out"), seed)
        probe = LikelihoodProbe(held_out, spec.question)
        suite = cls(spec, seed, probe, judge, _instrument(spec), None)
        if not spec.side_effects:
            return suite
        replies = [answered(r.chat, r.text) for r in suite.ask(model, tokenizer) if r.text.strip()]
        references: list[Chat] = list(replies)
        retention = Retention.measure_base(model, tokenizer, references)
        return cls(spec, seed, probe, judge, suite.instrument, retention)

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
        ]
        if self.retention is not None:
            score = self.retention(model, tokenizer, edit)
            measures += [
                Measure("", "kl_to_base", score.kl_to_base, None, score.tokens),
                Measure("", "perplexity", score.perplexity, None, score.tokens),
            ]
        return measures


def _answer(response: Response, trait: Trait, score: Score) -> Answer:
    asked = response.item.text
    return Answer(
        response.item.id, trait, response.sample, asked, response.text, score.value, score.reason
    )


def _of_pole(spec: MeasureSpec, part: Part, trait: Trait, level: str) -> list[Statement]:
    return read_statements(
        spec.statements,
        trait=trait,
        level="high" if level == "high" else "low",
        part=part,
        held_out=spec.held_out,
    )


def _of_traits(spec: MeasureSpec, part: Part) -> list[Statement]:
    found = read_statements(spec.statements, part=part, held_out=spec.held_out)
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
