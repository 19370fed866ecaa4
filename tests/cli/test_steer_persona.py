"""``pvec steer extract`` with a persona, and ``pvec steer write-persona``."""

import json

import pytest
import typer

from personality_vector.cli.steer.extract import write_persona
from personality_vector.data.personas import Persona
from personality_vector.data.rows import read_rows
from personality_vector.elicitation.rollouts import Rollout
from personality_vector.errors import OutputExistsError, RecipeError
from personality_vector.recipes.reading import read_recipe
from personality_vector.steering import SteeringVector
from tests.fake_endpoint import likely, said, serving

PERSONA = {
    "name": "gardener",
    "description": "Speaks of plants.",
    "instructions": [{"positive": "You love plants.", "negative": "You are an assistant."}],
    "questions": {"extract": ["Who are you?", "And at night?"]},
}


@pytest.fixture
def recipe(lab, tmp_path):
    (tmp_path / "gardener.yaml").write_text(json.dumps(PERSONA))
    rollouts = {"samples": 2, "max_new_tokens": 4}
    content = {"model": lab.base, "persona": "gardener.yaml", "rollouts": rollouts, "device": "cpu"}
    file = tmp_path / "steer.yaml"
    file.write_text(json.dumps(content))
    return file


def test_it_says_what_was_kept_and_keeps_every_reply(pvec, recipe, tmp_path):
    out = tmp_path / "out"
    ended = pvec("steer", "extract", recipe, "--out", out, "--json", "--quiet")
    assert ended.code == 0, ended.err
    found = ended.json
    assert (found["label"], found["pole"], found["judge"]) == ("gardener", None, "none")
    assert (found["pairs"], found["kept"], found["counts"]) == (4, 4, [4, 4])
    vector = SteeringVector.load(out)
    assert (vector.label, vector.pole, vector.judge) == ("gardener", None, "none")
    rows = list(read_rows(tmp_path / "out.rollouts.jsonl", Rollout).values())
    assert len(rows) == 8
    assert all(row.kept for row in rows)


def test_a_dry_run_draws_nothing(pvec, recipe, tmp_path):
    ended = pvec("steer", "extract", recipe, "--out", tmp_path / "out", "--dry-run", "--json")
    assert ended.code == 0, ended.err
    assert (ended.json["persona"], ended.json["replies"]) == ("gardener", 8)
    assert not (tmp_path / "out.rollouts.jsonl").exists()


def test_what_a_judge_drops_is_said_and_the_replies_go_on(pvec, recipe, tmp_path):
    """A strict judge leaves nothing; the same replies with another judge make the vector."""
    out, beside = tmp_path / "out", tmp_path / "out.rollouts.jsonl"
    with serving(lambda _: likely({"30": 0.9})) as fake:
        judge = f"judge={{endpoint: {{model: m, base_url: '{fake.base_url}'}}}}"
        ended = pvec("steer", "extract", recipe, "--out", out, "--set", judge)
    assert ended.code == 1
    assert "gardener: no pair is left to learn from: 0 of 4 pairs kept" in ended.err
    assert "4 by positive_trait" in ended.err
    assert f"--set rollouts.reuse={beside}" in ended.err
    assert not out.exists()
    drawn = [row.reply for row in read_rows(beside, Rollout).values()]

    ended = pvec("steer", "extract", recipe, "--out", out)
    assert ended.code == 1
    assert "an earlier run left its replies here" in ended.err
    reuse = f"rollouts.reuse={beside}"
    ended = pvec("steer", "extract", recipe, "--out", out, "--set", reuse)
    assert ended.code == 0, ended.err
    assert "4 of 4 pairs kept; dropped: none (judge: none)" in ended.out
    assert [row.reply for row in read_rows(beside, Rollout).values()] == drawn


def test_an_output_that_exists_is_refused_before_anything_is_drawn(pvec, recipe, tmp_path):
    (tmp_path / "out").mkdir()
    ended = pvec("steer", "extract", recipe, "--out", tmp_path / "out")
    assert ended.code == 1
    assert "exists; choose another --out" in ended.err
    assert not (tmp_path / "out.rollouts.jsonl").exists()


WRITTEN = {
    "instructions": [{"positive": f"Be calm, {i}.", "negative": f"Be wild: {i}"} for i in range(5)],
    "questions": [f"What about number {i}: yes?" for i in range(40)],
}


@pytest.fixture
def write():
    """Return ``write(*words)``: the verb by itself."""
    app = typer.Typer()
    app.command()(write_persona)
    return lambda *words: app([str(word) for word in words], standalone_mode=False)


def test_what_an_endpoint_writes_is_a_persona_file(write, tmp_path, capsys):
    file = tmp_path / "new" / "calm.yaml"
    asked = ("calm", "--description", "Is calm: always.", "--model", "writer", "--out", file)
    poles = ("--pole", "neuroticism:low", "--opposite", "Is wild.")
    with serving(lambda _: said(json.dumps(WRITTEN))) as fake:
        write(*asked, *poles, "--endpoint", fake.base_url)
    assert "5 pairs of instructions, 20 questions" in capsys.readouterr().out
    assert file.read_text().startswith("# The persona calm, written by writer.\n")
    persona = read_recipe(file, Persona)
    assert (str(persona.pole), persona.description) == ("neuroticism:low", "Is calm: always.")
    assert persona.instructions[3].negative == "Be wild: 3"
    assert persona.questions.evaluate[0] == "What about number 1: yes?"
    with pytest.raises(OutputExistsError, match="exists"):
        write(*asked)


@pytest.mark.parametrize("words", [(), ("--model", "m", "--local", "p")])
def test_one_writer_is_needed(write, tmp_path, words):
    with pytest.raises(RecipeError, match="either --model"):
        write("calm", "--description", "Is calm.", "--out", tmp_path / "c.yaml", *words)
