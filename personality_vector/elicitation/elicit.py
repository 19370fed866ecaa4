"""From a persona to chats: a model's own answers as it and as its opposite, rated and filtered."""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from personality_vector.checkpoint import Checkpoint, revision_of
from personality_vector.data.chats import CHATS
from personality_vector.data.personas import COHERENCE, PERSONA, Persona, open_persona
from personality_vector.data.statements import normalised
from personality_vector.elicitation.filtering import FilterReport, filtered, require_kept
from personality_vector.elicitation.recipe import ElicitRecipe, PersonaRecipe
from personality_vector.elicitation.rollouts import (
    ROLLOUTS,
    SIDES,
    Plan,
    Rollout,
    Side,
    draw,
    require_drawn_by,
    reused,
    to_jsonl,
)
from personality_vector.errors import RecipeError
from personality_vector.files import AtomicDirectory
from personality_vector.judges.spec import JudgeSpec
from personality_vector.manifest import write_manifest
from personality_vector.subject import Answer, Chat, Judge, question, rated
from personality_vector.subject.models import chosen_for
from personality_vector.subject.subject import Subject
from personality_vector.traits import Pole


@dataclass(frozen=True, slots=True)
class Elicited:
    """What a model said as a persona, and what was kept of it.

    Attributes:
        persona: The persona, with the end that the recipe asked for as its positive side.
        rollouts: Every reply, kept or dropped.
        report: How many each rule dropped.
        judge: Name of the judge.
    """

    persona: Persona
    rollouts: tuple[Rollout, ...]
    report: FilterReport
    judge: str

    def kept(self, side: Side) -> list[Chat]:
        """Return the kept chats of a side, with their system prompts.

        Unless ``thresholds.paired`` is off, chats ``i`` of both sides are a pair.
        """
        return [row.chat for row in self.rollouts if row.kept and row.side == side]


def read_persona(recipe: PersonaRecipe) -> Persona:
    """Return the persona that ``recipe`` names, turned to the pole of the recipe.

    Raises:
        RecipeError: The recipe names no persona, the file is not a persona, or its pole differs.
    """
    if recipe.persona is None:
        raise RecipeError("the recipe names no persona; it has positive and negative data")
    given = recipe.persona
    pole = recipe.pole
    persona = given.at(pole) if isinstance(given, Persona) else open_persona(given, pole)
    return persona.graded(recipe.grade) if isinstance(recipe, ElicitRecipe) else persona


def open_judge(recipe: PersonaRecipe, persona: Persona) -> Judge | None:
    """Return the judge of ``recipe``, or ``None`` if it asks for none.

    Called before anything is generated, so that a missing key or file is found at once.

    Raises:
        RecipeError: What the judge needs is missing.
        DataError: Its statements cannot be read, or it cannot rate the persona.
        ModelError: Its checkpoint cannot write digits.
    """
    if not isinstance(recipe.judge, JudgeSpec):
        return None
    judge = recipe.judge.open()
    for rubric in (persona.as_rubric(), COHERENCE):
        rated(judge, rubric, ())
    return judge


def load_subject(recipe: PersonaRecipe) -> Subject:
    """Load the model of a recipe as the recipe says.

    Raises:
        CheckpointError: It is missing.
        ModelError: It cannot be loaded.
    """
    return Subject.load(
        recipe.model, dtype=recipe.dtype, device=recipe.device, template=recipe.template
    )


def elicit(
    recipe: PersonaRecipe,
    subject: Subject,
    judge: Judge | None = None,
    *,
    earlier: Sequence[Rollout] = (),
    record: Callable[[Sequence[Rollout]], object] = lambda _: None,
) -> Elicited:
    """Draw rollouts, have them judged, and keep the clear pairs.

    Args:
        recipe: A recipe with a persona.
        subject: The model that is asked; not changed.
        judge: Who rates, from :func:`open_judge`. Without a judge, the ratings of
            ``rollouts.reuse`` count if the recipe says ``recorded``; otherwise all pairs are kept.
        earlier: Replies of a run of the same recipe that ended early.
        record: Called with all rollouts as they are drawn, rated and filtered, so that they can be
            saved even if a later step fails.

    Raises:
        DataError: Nothing is left of a side (with how many each rule dropped), the judge cannot
            rate the persona, or the replies to reuse answer other questions.
        RecipeError: The persona, or what the judge needs, is missing or wrong.

    Source:
        Persona vectors, Chen et al. 2025, arXiv:2507.21509. Deviations: pairs are found by id,
        not by row; the judge sees question and reply, in our words.
    """
    persona = read_persona(recipe)
    if judge is not None:
        judge = judge.prepare(subject)
        rated(judge, persona.as_rubric(), ())  # refused now rather than after hours of rollouts
    is_recorded = judge is None and recipe.judge == "recorded"
    plan, reuse = plan_of(recipe, persona), recipe.rollouts.reuse
    drawn = (
        draw(subject, plan, earlier=earlier, record=record, drawn_by=drawn_by(recipe))
        if reuse is None
        else reused(reuse, plan)
    )
    if reuse is not None and isinstance(recipe, ElicitRecipe):
        require_drawn_by(drawn, drawn_by(recipe), reuse)
    if not is_recorded:
        drawn = [row.unrated() for row in drawn]
    record(drawn)
    judged = drawn if judge is None else _judged(judge, persona, drawn)
    record(judged)
    rollouts, report = filtered(
        judged,
        recipe.thresholds,
        judged=is_recorded or judge is not None,
        by_sentence=isinstance(recipe, ElicitRecipe),
    )
    record(rollouts)
    learned = [row for row in rollouts if row.is_extract]
    require_kept(report, learned, persona.label)
    return Elicited(
        persona, tuple(rollouts), report, str(recipe.judge) if judge is None else judge.name
    )


def plan_of(recipe: PersonaRecipe, persona: Persona) -> Plan:
    """Return what the model of a recipe is asked; for chats, also the questions for evaluation."""
    return Plan(persona, recipe.rollouts, recipe.seed, isinstance(recipe, ElicitRecipe))


def drawn_by(recipe: PersonaRecipe) -> str:
    """Return the digest of all that decides a reply beside the prompt and the number of samples.

    The place in a batch decides, too, and with it how many pairs and questions there are.
    """
    model, spec = Checkpoint.open(recipe.model).fingerprint.digest, recipe.rollouts
    decisive = spec.model_dump(exclude={"reuse", "samples"})
    known = [model, recipe.dtype, recipe.seed, decisive]
    known += [recipe.chat_template, recipe.template_options]
    return hashlib.blake2b(json.dumps(known, default=str).encode(), digest_size=8).hexdigest()


def _judged(judge: Judge, persona: Persona, rollouts: Sequence[Rollout]) -> list[Rollout]:
    """Return the rollouts with their ratings, from 0 to 100 on any scale of the judge."""
    # A judge does not read the system prompt.
    answers = [Answer(row.id, 0, row.question, row.reply) for row in rollouts]
    traits, coherences = (
        rated(judge, rubric, answers) for rubric in (persona.as_rubric(), COHERENCE)
    )
    return [
        row.rated(trait, coherence, judge.scale)
        for row, trait, coherence in zip(rollouts, traits, coherences, strict=True)
    ]


def save_chats(
    elicited: Elicited, recipe: ElicitRecipe, out: Path, *, force: bool = False
) -> dict[str, Any]:
    """Write a folder that training, steering and prompts all learn from; return its manifest.

    ``chats.jsonl`` has the kept chats, without system prompts: ``{trait, level, part, prompt,
    completion}``. A reply that reached ``rollouts.max_new_tokens`` ends with its last whole
    sentence. ``rollouts.jsonl`` has every reply with its system prompt and rating, and
    ``persona.yaml`` the persona.

    Raises:
        OutputExistsError: ``out`` exists.
        StorageError: It cannot be written.
    """
    checkpoint, rows = Checkpoint.open(recipe.model), _lines(elicited, recipe.held_out)
    with AtomicDirectory(out, kind="elicited", force=force, inputs=[checkpoint.path]) as partial:
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (partial / CHATS).write_text(text, encoding="utf-8")
        (partial / ROLLOUTS).write_text(to_jsonl(elicited.rollouts), encoding="utf-8")
        content = elicited.persona.model_dump(mode="json", exclude_none=True)
        shown = yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=98)
        (partial / PERSONA).write_text(shown, encoding="utf-8")
        return write_manifest(
            partial,
            "elicited",
            {
                "recipe": recipe.model_dump(mode="json"),
                "model": checkpoint.fingerprint.digest,
                **revision_of(checkpoint.path),
                "judge": elicited.judge,
                "rules": _rules(elicited.rollouts),
                "chats": dict(sorted(Counter(f"{r['level']} {r['part']}" for r in rows).items())),
                **chosen_for(checkpoint.path, recipe.template),
            },
        )


def _rules(rollouts: Sequence[Rollout]) -> dict[str, dict[str, int]]:
    """Return how many replies of each side were kept, and how many each rule dropped."""
    return {
        side: dict(Counter(row.rule or "kept" for row in rollouts if row.side == side))
        for side in SIDES
    }


def _lines(elicited: Elicited, held_out: float) -> list[dict[str, Any]]:
    """Return the rows of ``chats.jsonl``, in the order of the rollouts."""
    high = elicited.persona.pole or Pole(elicited.persona.name, "high")
    poles = {"positive": high, "negative": high.opposite}
    apart = _held_out([row.question for row in elicited.rollouts if row.is_extract], held_out)
    return [
        {
            "trait": poles[row.side].trait,
            "level": poles[row.side].level,
            "part": _part(row, apart),
            "id": row.id,
            "prompt": question(row.question),
            "completion": [{"role": "assistant", "content": row.sentences}],
        }
        for row in elicited.rollouts
        if row.kept
    ]


def _part(row: Rollout, apart: set[str]) -> str:
    if not row.is_extract:
        return "evaluate"
    return "held_out" if row.question in apart else "train"


def _held_out(questions: Sequence[str], share: float) -> set[str]:
    """Return this share of the questions, by their hashes: at least one, and never all of them."""
    distinct = sorted(
        set(questions), key=lambda text: hashlib.blake2b(normalised(text).encode()).digest()
    )
    count = min(max(round(share * len(distinct)), 1), len(distinct) - 1) if share else 0
    return set(distinct[:count])
