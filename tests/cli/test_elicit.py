"""``pvec elicit``: a folder of chats that training, steering and prompts learn from."""

import json
from collections import Counter

import pytest

from personality_vector.data.chats import DataSpec, read_chats
from personality_vector.data.personas import open_persona
from personality_vector.data.rows import read_rows
from personality_vector.elicitation.rollouts import Rollout
from personality_vector.interventions.prompts import PersonaSpec
from personality_vector.subject.subject import Subject
from personality_vector.traits import Pole

FEW = [
    *("--set", "rollouts.samples=1", "--set", "rollouts.questions=5", "--set", "rollouts.pairs=2"),
    *("--set", "rollouts.max_new_tokens=24", "--set", "thresholds.paired=false"),
    *("--set", "device=cpu"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    from personality_vector.cli.main import run

    out = tmp_path_factory.mktemp("elicited") / "extraversion"
    words = ["elicit", "extraversion", "--model", "builtin:demo", "--out", str(out), "--quiet"]
    assert run([*words, "--judge", "none", *FEW]) == 0
    return out


def chats(folder):
    return [json.loads(line) for line in (folder / "chats.jsonl").read_text().splitlines()]


def test_chats_have_no_system_prompt_and_are_split_by_question(folder):
    rows = chats(folder)
    assert {message["role"] for row in rows for message in row["prompt"]} == {"user"}
    assert {row["level"] for row in rows} == {"high", "low"}
    parts = {}
    for row in rows:
        parts.setdefault(row["prompt"][0]["content"], set()).add(row["part"])
    assert all(len(found) == 1 for found in parts.values())
    counts = Counter(part for found in parts.values() for part in found)
    assert counts == {"train": 4, "held_out": 1, "evaluate": 5}
    asked = open_persona(folder).questions
    assert {q for q, part in parts.items() if part == {"evaluate"}} == set(asked.evaluate[:5])


def test_the_manifest_counts_what_every_rule_dropped(folder):
    manifest = json.loads((folder / "MANIFEST.json").read_text())
    rows = list(read_rows(folder / "rollouts.jsonl", Rollout).values())
    for side, rules in manifest["rules"].items():
        assert rules == Counter(row.rule or "kept" for row in rows if row.side == side)
    assert sum(manifest["chats"].values()) == sum(row.kept for row in rows) == len(chats(folder))
    assert (manifest["kind"], manifest["judge"]) == ("elicited", "none")


def test_it_is_the_data_of_a_fine_tune_and_of_a_steering_vector(pvec, folder, tmp_path):
    for level in ("high", "low"):
        spec = DataSpec(source=folder).narrowed(Pole("extraversion", level))
        found = read_chats(spec)
        said = [c["completion"][0]["content"] for c in chats(folder)
                if c["level"] == level and c["part"] == "train"]  # fmt: skip
        assert [chat[-1]["content"] for chat in found] == said
    steer = {"model": "builtin:demo", "pole": "extraversion:high", "device": "cpu"}
    steer |= {side: {"source": str(folder)} for side in ("positive", "negative")}
    (tmp_path / "steer.yaml").write_text(json.dumps(steer))
    ended = pvec("steer", "extract", tmp_path / "steer.yaml", "--out", tmp_path / "v", "--json")
    assert ended.code == 0, ended.err
    counts = Counter(row["level"] for row in chats(folder) if row["part"] == "train")
    assert ended.json["counts"] == [counts["high"], counts["low"]]
    train = {"base": "builtin:demo", "poles": ["extraversion"], "device": "cpu"}
    train |= {"data": {"source": str(folder.parent / "{trait}")}}
    (tmp_path / "train.yaml").write_text(json.dumps(train))
    ended = pvec("train", tmp_path / "train.yaml", "--out", tmp_path / "t", "--dry-run", "--json")
    assert ended.code == 0, ended.err
    for level in ("high", "low"):
        assert ended.json[f"extraversion:{level}"]["examples"] == counts[level]


def test_its_prompts_are_a_baseline_with_both_sides(folder):
    prompt = PersonaSpec(label="prompt", persona=folder, pair=1).open(None)
    pair = open_persona(folder).instructions[1]
    assert (prompt.sentence(1.0), prompt.sentence(-1.0)) == (pair.positive, pair.negative)
    assert prompt.sentence(0.0) == ""
    subject = Subject(None, None)
    with prompt.applied(subject, -1.0) as edited:
        (system, _) = edited.edit([{"role": "user", "content": "Hi"}])
    assert system == {"role": "system", "content": pair.negative}


def test_an_interrupted_run_goes_on_and_ends_with_the_same_bytes(
    pvec, folder, tmp_path, monkeypatch
):
    words = ["elicit", "extraversion", "--model", "builtin:demo", "--judge", "none", *FEW]
    out, beside = tmp_path / "extraversion", tmp_path / "extraversion.rollouts.jsonl"
    real, calls = Subject.replies, []

    def stopping(self, *given):
        calls.append(given)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(self, *given)

    monkeypatch.setattr(Subject, "replies", stopping)
    ended = pvec(*words, "--out", out)
    assert ended.code == 130
    assert "the same command resumes" in ended.err
    assert beside.is_file()
    assert not out.exists()
    other = pvec(*words, "--out", out, "--set", "seed=5")
    assert other.code == 1
    assert "replies of a run with another model, seed or sampling" in other.err
    assert pvec(*words, "--out", out).code == 0
    assert len(calls) == 5  # two were there
    assert (out / "chats.jsonl").read_bytes() == (folder / "chats.jsonl").read_bytes()
    assert not beside.exists()


def test_a_trait_that_is_only_described_becomes_chats(pvec, tmp_path):
    words = ["elicit", "stoic", "--model", "builtin:demo", "--out", tmp_path / "stoic", *FEW]
    ended = pvec(*words, "--description", "Stays calm whatever happens", "--json")
    assert ended.code == 0, ended.err
    assert (ended.json["persona"], ended.json["judge"]) == ("stoic", "none")
    persona = open_persona(tmp_path / "stoic")
    assert len(persona.instructions) == 5
    assert all("Stays calm whatever happens." in p.positive for p in persona.instructions)
    assert not any("calm" in p.negative for p in persona.instructions)
    assert {(row["trait"], row["level"]) for row in chats(tmp_path / "stoic")} == {
        ("stoic", "high"),
        ("stoic", "low"),
    }
    strong = pvec(*words, "--description", "Stays calm", "--grade", "strong", "--dry-run")
    assert strong.code == 1  # the folder is there
    words[words.index(tmp_path / "stoic")] = tmp_path / "other"
    strong = pvec(*words, "--description", "Stays calm", "--grade", "strong", "--dry-run", "--json")
    assert strong.json["recipe"]["grade"] == "strong"


def test_a_mild_and_a_strong_form_ask_for_more_or_less(folder):
    persona = open_persona(folder)
    mild, strong = persona.graded("mild"), persona.graded("strong")
    assert persona.graded("normal") == persona
    for plain, weak, great in zip(
        persona.instructions, mild.instructions, strong.instructions, strict=True
    ):
        for side in ("positive", "negative"):
            assert getattr(weak, side).startswith(getattr(plain, side))
            assert len({getattr(each, side) for each in (plain, weak, great)}) == 3


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nobody"], "nobody: is neither a file nor a shipped persona, which are agreeableness, "),
        (["stoic", "--opposite", "Frets."], "--opposite goes with --description"),
        (["Stoic", "--description", "Calm."], "name: a name is lower-case letters"),
        (["extraversion", "--grade", "huge"], "grade: Input should be 'mild', 'normal' or 'str"),
        (["extraversion", "--judge", "none", "--set", "thresholds.trait=60"], "need a judge"),
        (["extraversion", "--set", "rollout.samples=1"], "unknown key 'rollout'; did you mean"),
        (
            ["extraversion", "--set", "thresholds.trait=100", "--set", "rollouts.pairs=1"],
            "extraversion:high: no ",
        ),
    ],
)
def test_bad_input_is_one_sentence_and_leaves_nothing(pvec, tmp_path, words, said):
    ended = pvec("elicit", *words, "--model", "builtin:demo", "--out", tmp_path / "out", *FEW[:8])
    assert ended.code == 1
    assert said in ended.err
    assert ended.err.count("\n") == ended.err.count("left, until") + 1 or "no " in said
    assert not (tmp_path / "out").exists()
