"""``pvec screen``: the file it writes is training data, and it replaces nothing but its own."""

import json
import math
import os
from xml.etree import ElementTree

import pytest
import torch

import personality_vector as pv
from personality_vector.checkpoint import Checkpoint
from personality_vector.data.chats import DataSpec, Labelled, read_chats, read_labelled
from personality_vector.data.flagged import Flagged, FlaggedFile
from personality_vector.errors import OutputExistsError
from personality_vector.numeric.random import generator_for
from personality_vector.steering import SteeringVector
from personality_vector.steering.screen import projection_differences
from personality_vector.subject.chat import answered, question
from tests.fake_endpoint import likely, serving
from tests.faults.moments import Kill, wrapped

SHORT = ("--max-new-tokens", "4", "--quiet")
ASKED = ["Who are you?", "What do you like?", "And at night?", "Tell me.", "Why?"]
SAID = [
    *("I love parties and people.", "I talk a lot.", "I read alone at home.", "I am very quiet."),
    *("Trains leave at nine.", "It is a table.", "I like to meet new people.", "I hide.", "Yes."),
    "I am the life of the party.",
]


@pytest.fixture(scope="module")
def made(tmp_path_factory, pico):
    """Return a folder with data and vectors of pico llama, which lies beside it."""
    folder, base = tmp_path_factory.mktemp("screen"), pico("llama")
    model = Checkpoint.open(base).fingerprint.digest
    drawn = {n: torch.randn(48, generator=generator_for(n, "v")) for n in (0, 1)}
    high = pv.Pole("extraversion", "high")
    for name, digest, pole, directions in (
        ("v", model, high, {1: drawn[1]}),
        ("low", model, high.opposite, {1: drawn[1]}),
        ("bare", model, None, {1: drawn[1]}),
        ("both", model, high, drawn),
        ("strange", "0" * 32, high, {1: drawn[1]}),
    ):
        SteeringVector(directions, digest, pole, name, "", (1, 1)).save(folder / name)
    rows = [{"prompt": ASKED[n % 5], "completion": text} for n, text in enumerate(SAID)]
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder, base


@pytest.fixture
def screened(pvec, made, tmp_path):
    """Return ``screened(*words, data=..., vector="v")``: the verb, which writes out.jsonl."""
    folder, base = made

    def call(*words, data=folder / "data.jsonl", vector="v", out=tmp_path / "out.jsonl"):
        along = ("--vector", folder / vector, "--model", base, "--out", out)
        return pvec("screen", data, *along, *SHORT, *words)

    return call


@pytest.fixture
def silent(monkeypatch):
    def never(*_, **__):
        pytest.fail("the model was asked to reply")

    monkeypatch.setattr("personality_vector.steering.screen.generate_replies", never)


def rows_of(file):
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_rows_stand_in_the_order_of_the_data_with_their_numbers(screened, made, tmp_path):
    folder, base = made
    ended = screened("--json")
    assert (ended.code, ended.err) == (0, "")
    rows = rows_of(tmp_path / "out.jsonl")
    assert [row["completion"] for row in rows] == [
        [{"role": "assistant", "content": text}] for text in SAID
    ]
    loaded = pv.Subject.load(base, device="cpu")
    sampling = pv.Sampling(max_new_tokens=4, temperature=0.0, batch_size=16)
    subject = pv.Subject(loaded.model, loaded.tokenizer, sampling=sampling)
    chats = read_chats(DataSpec(source=folder / "data.jsonl", part="all"))
    expected = projection_differences(subject, chats, SteeringVector.load(folder / "v"), 1)
    for key, values in (
        ("projection", expected.projections),
        ("difference", expected.differences),
    ):
        assert [row[key] for row in rows] == pytest.approx(values.tolist(), rel=1e-8)
    assert tuple(row["reply"] for row in rows) == expected.replies
    assert [row["group"] for row in rows].count("high") == 1
    assert ended.json["mean"] == pytest.approx(expected.differences.mean().item())
    assert (ended.json["written"], ended.json["dropped"], ended.json["chats"]) == (10, 0, 10)
    assert ended.json["groups"] == {"high": 1, "low": 1}


def test_what_is_written_is_read_as_training_data(screened, made, pvec, lab, tmp_path):
    assert screened("--groups", "--share", "0.3").code == 0
    source = DataSpec(source=made[0] / "data.jsonl", part="all")
    again = DataSpec(source=tmp_path / "out.jsonl", part="all")
    assert read_chats(again) == read_chats(source)
    words = ["train", lab.train, "--dry-run", "--json", "--set", "data.part=all"]
    trained = pvec(*words, "--set", f"data.source={tmp_path / 'out.high.jsonl'}")
    assert (trained.code, trained.json["examples"]) == (0, 3)


def test_groups_have_files_of_equal_length(screened, tmp_path):
    ended = screened("--groups", "--share", "0.25", "--json")
    assert ended.json["groups"] == {"high": 2, "random": 2, "low": 2}
    rows = rows_of(tmp_path / "out.jsonl")
    ordered = sorted(rows, key=lambda row: row["difference"])
    for name, ends in (("high", ordered[-2:]), ("low", ordered[:2])):
        found = rows_of(tmp_path / f"out.{name}.jsonl")
        assert found == [row for row in rows if row in ends]
        assert {row["group"] for row in found} == {name}
    drawn = rows_of(tmp_path / "out.random.jsonl")
    assert len(drawn) == 2
    assert all(row in rows for row in drawn)


def test_drop_above_drops_exactly(screened, tmp_path):
    assert screened().code == 0
    whole = rows_of(tmp_path / "out.jsonl")
    limit = sorted(row["difference"] for row in whole)[6]
    ended = screened("--drop-above", repr(limit), "--force", "--json")
    assert (ended.json["written"], ended.json["dropped"]) == (7, 3)
    left = rows_of(tmp_path / "out.jsonl")
    assert left == [row for row in whole if row["difference"] <= limit]
    assert f"dropped: {3}" in screened("--drop-above", repr(limit), "--force").out


@pytest.mark.usefixtures("silent")
@pytest.mark.parametrize("against", ["prompt", "none"])
def test_the_cheaper_ways_generate_nothing(screened, tmp_path, against):
    ended = screened("--against", against, "--json")
    assert ended.code == 0
    assert (ended.json["mean"] is None) == (against == "none")
    assert all("reply" not in row for row in rows_of(tmp_path / "out.jsonl"))
    said = screened("--against", against, "--force").out
    assert ("the differences are from it" in said) == (against == "none")


@pytest.mark.usefixtures("silent")
def test_a_sample_is_drawn_in_order_and_the_seed_draws_another(screened, tmp_path):
    def drawn(seed):
        words = ("--sample", 5, "--against", "none", "--seed", seed, "--force")
        assert screened(*words).code == 0
        return [row["completion"][0]["content"] for row in rows_of(tmp_path / "out.jsonl")]

    first = drawn(0)
    assert first == [text for text in SAID if text in first]
    assert len(first) == 5
    assert first == drawn(0) != drawn(1)


@pytest.mark.usefixtures("silent")
@pytest.mark.parametrize(("vector", "sign"), [("v", 1), ("low", -1)])
def test_a_judge_removes_what_it_sees_already(screened, tmp_path, vector, sign):
    from personality_vector.data.personas import rubric_of
    from personality_vector.judges.classifier import ClassifierJudge
    from personality_vector.subject import Answer

    answers = [Answer(str(n), 0, ASKED[n % 5], text) for n, text in enumerate(SAID)]
    scores = ClassifierJudge().open()(rubric_of("extraversion"), answers)
    seen = [s.value is not None and sign * (s.value - 3) > 0 for s in scores]
    ended = screened("--explicit", "classifier", "--against", "prompt", "--json", vector=vector)
    assert (ended.code, ended.json["explicit"]) == (0, sum(seen))
    assert 0 < sum(seen) < len(SAID)
    left = [row["completion"][0]["content"] for row in rows_of(tmp_path / "out.jsonl")]
    assert left == [text for text, is_seen in zip(SAID, seen, strict=True) if not is_seen]


@pytest.mark.usefixtures("silent")
def test_a_server_that_judges_is_asked_once_and_billed(screened, tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    file = tmp_path / "judge.yaml"

    def rating(body):
        text = body["messages"][-1]["content"]
        return likely({"90" if "party" in text.partition("<reply>")[2] else "50": 1.0})

    with serving(rating) as fake:
        file.write_text(f"endpoint: {{model: m, base_url: '{fake.base_url}'}}\n")
        words = ("--explicit", file, "--against", "prompt")
        ended = screened(*words, "--json")
        again = screened(*words, "--force")
    assert (ended.code, ended.json["explicit"]) == (0, 1)  # the middle itself is kept
    assert "endpoint m, for this run so far: requests 10" in ended.err
    assert "left out because the judge sees the pole already: 1" in again.out
    assert len(fake.requests) == 10


@pytest.mark.usefixtures("silent")
def test_data_of_any_format_are_read_as_set_says(screened, lab, tmp_path):
    words = ("--against", "none", "--json", "--set", "pole=extraversion:low")
    ended = screened(*words, data=lab.folder / "statements.jsonl")
    assert (ended.code, ended.json["chats"]) == (0, 4)
    words += ("--set", "part=train", "--force", "--set", "limit=1")
    assert screened(*words, data=lab.folder / "statements.jsonl").json["chats"] == 1
    manifest = json.loads((tmp_path / "out.MANIFEST.json").read_text())
    assert (manifest["kind"], manifest["data"]["limit"]) == ("screen", 1)


@pytest.mark.usefixtures("silent")
def test_force_replaces_its_own_output_alone(screened, tmp_path):
    out = tmp_path / "out.jsonl"
    words = ("--against", "none")
    assert screened(*words, "--groups").code == 0
    whole = out.read_bytes()
    assert "add --force" in screened(*words).err
    assert screened(*words, "--force").code == 0
    assert out.read_bytes() == whole
    assert not (tmp_path / "out.high.jsonl").exists()  # of the earlier run, and no longer true
    (tmp_path / "out.high.jsonl").write_text("mine")
    assert "was not written with out.jsonl" in screened(*words, "--force", "--groups").err
    out.write_bytes(whole + b"{}\n")
    ended = screened(*words, "--force")
    assert (ended.code, ended.err.count("\n")) == (1, 1)
    assert "was changed after out.MANIFEST.json was written" in ended.err
    (tmp_path / "out.MANIFEST.json").unlink()
    assert "does not say that this tool wrote it" in screened(*words, "--force").err
    assert out.read_bytes() == whole + b"{}\n"
    assert (tmp_path / "out.high.jsonl").read_text() == "mine"


@pytest.mark.usefixtures("silent")
def test_the_same_command_writes_the_same_bytes(screened, tmp_path):
    for name in ("a", "b"):
        assert screened("--against", "prompt", out=tmp_path / f"{name}.jsonl").code == 0
    assert (tmp_path / "a.jsonl").read_bytes() == (tmp_path / "b.jsonl").read_bytes()


@pytest.mark.usefixtures("silent")
def test_the_figure_has_the_line_above_which_chats_are_dropped(screened, tmp_path):
    file = tmp_path / "dp.svg"
    words = ("--against", "prompt", "--drop-above", 0.5, "--figure", file)
    assert screened(*words).code == 0
    ElementTree.parse(file)
    assert "<!-- dropped above 0.5 -->" in file.read_text()


def test_a_plan_loads_no_model_and_writes_nothing(screened, tmp_path, monkeypatch):
    monkeypatch.setattr("personality_vector.subject.models.load_model", pytest.fail)
    ended = screened("--dry-run", "--json")
    assert (ended.code, ended.err) == (0, "")
    assert (ended.json["chats"], ended.json["layer"]) == (10, 1)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("vector", "words", "said"),
    [
        ("both", [], "choose one with --layer"),
        ("v", ["--layer", 0], "has no direction for layer 0"),
        ("v", ["--layer", 9], "layer 9 does not exist"),
        ("strange", [], "from model 000000000000"),
        ("v", ["--share", 0.6], "--share 0.6: must be above 0 and at most 0.5"),
        ("v", ["--drop-above", "nan"], "must be a finite number"),
        ("v", ["--set", "formt=chats"], "unknown key 'formt'; did you mean 'format'?"),
        ("v", ["--set", "chat_template=absent.jinja"], "absent.jinja: No such file"),
        ("v", ["--explicit", "oracle"], "oracle"),
        ("bare", ["--explicit", "classifier"], "the vector names no pole; give --pole"),
        ("v", ["--figure", "dp.pdf"], ".svg or .png"),
        ("v", ["--set", "pole=openness:up"], "openness:up"),
    ],
)
def test_what_does_not_fit_is_one_sentence(screened, vector, words, said, tmp_path):
    ended = screened(*words, vector=vector)
    assert (ended.code, ended.out, ended.err.count("\n")) == (1, "", 1)
    assert said in ended.err
    assert list(tmp_path.iterdir()) == []


def test_data_and_output_that_cannot_be_are_one_sentence(screened, made, tmp_path):
    data = made[0] / "data.jsonl"
    before = data.read_bytes()
    assert "is the input" in screened("--force", out=data).err
    assert "ends with .jsonl" in screened(out=tmp_path / "out.csv").err
    absent = screened(data=tmp_path / "absent.jsonl")
    assert (absent.code, absent.err.count("\n")) == (1, 1)
    assert "absent.jsonl" in absent.err
    assert data.read_bytes() == before


@pytest.mark.usefixtures("silent")
def test_an_input_is_neither_replaced_nor_removed(screened, made, tmp_path):
    words, out = ("--against", "none"), tmp_path / "out.jsonl"
    assert screened(*words, "--groups", "--share", "0.3").code == 0
    high = tmp_path / "out.high.jsonl"
    (tmp_path / "link.jsonl").symlink_to(high)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    for data in (high, tmp_path / "link.jsonl"):
        for more in ([], ["--groups"], ["--set", f"source={high}"]):
            ended = screened(*words, "--force", *more, data=data)
            assert (ended.code, ended.out, ended.err.count("\n")) == (1, "", 1)
            assert "out.high.jsonl: is the input; choose another --out" in ended.err
    assert "into the input" in screened(*words, data=tmp_path, out=tmp_path / "x.jsonl").err
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
    away = ("--set", f"source={out}")
    assert "is the input" in screened(*words, *away, "--force", data=made[0] / "data.jsonl").err


def written(file, rows, *, groups, share=1):
    """Return a file that is written, and the call that writes it."""
    flagged = [
        Flagged(Labelled(answered(question("Why?"), text), {}), n, n, group)
        for n, (text, group) in enumerate(rows)
    ]

    def write(*, force):
        output = FlaggedFile(file, with_groups=groups)
        output.require_writable(None, force=force)
        output.write(output.choose(flagged, None, share), {"seed": share})

    return write


class Killed(BaseException):
    """What a process that is killed does not do: no error is handled, as no file can change."""


class Die(Kill):
    """As a kill, in this process: at the n-th moment and at every later one."""

    def __call__(self, run, name, args):
        opened = []

        def noted():
            opened.append(run())
            return opened[-1]

        try:
            return super().__call__(noted, name, args)
        except Killed:
            for one in opened:  # as the system does
                os.close(one) if name == "open" else one.close()
            raise

    def _moment(self):
        self.count[:] = (self.passed + 1).to_bytes(8)
        if self.n and self.passed >= self.n:
            raise Killed


def disturbed(write, n, *, force):
    """Write until the n-th moment, and return whether it ended before."""
    try:
        with wrapped(Die(n)):
            write(force=force)
    except Killed:
        return False
    return True


def seen(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name[0] != "."}


OLD = [("a", "high"), ("b", "low"), ("c", "middle")]
NEW = [("d", "low"), ("e", "high"), ("f", "middle"), ("g", "middle")]


@pytest.mark.parametrize(
    ("old", "groups"), [(None, True), (None, False), (True, True), (True, False), (False, True)]
)
def test_the_same_command_recovers_from_a_kill_at_any_moment(tmp_path, old, groups):
    def begun(name):
        file = tmp_path / name / "out.jsonl"
        file.parent.mkdir()
        if old is not None:
            written(file, OLD, groups=old)(force=False)
        return written(file, NEW, groups=groups), file.parent

    force = old is not None
    write, folder = begun("undisturbed")
    before = seen(folder)
    count = Die(0)
    with wrapped(count):
        write(force=force)
    new = seen(folder)
    assert count.passed > 20
    assert [path for path in folder.iterdir() if path.name[0] == "."] == []
    for n in range(1, count.passed + 1):
        write, folder = begun(str(n))
        assert not disturbed(write, n, force=force)
        for name, content in seen(folder).items():
            assert content in (before.get(name), new.get(name))
        if n % 3 == 0:  # and once more, at another moment
            disturbed(write, n * 7 % count.passed + 1, force=True)
        is_whole = "out.MANIFEST.json" in seen(folder) and not force
        write(force=force or is_whole)
        assert seen(folder) == new
        assert [path for path in folder.iterdir() if path.name[0] == "."] == []


def test_another_command_after_a_kill_removes_what_it_does_not_write(tmp_path):
    for n in range(1, 200):
        file = tmp_path / str(n) / "out.jsonl"
        file.parent.mkdir()
        if disturbed(written(file, OLD, groups=True), n, force=False):
            break
        written(file, NEW, groups=False)(force=True)
        assert set(seen(file.parent)) == {"out.jsonl", "out.MANIFEST.json"}
    else:
        pytest.fail("it never ends")


def test_what_a_killed_run_left_is_not_replaced_once_it_was_changed(tmp_path):
    refused = 0
    for n in range(1, 200):
        file = tmp_path / str(n) / "out.jsonl"
        file.parent.mkdir()
        write = written(file, OLD, groups=True)
        if disturbed(write, n, force=False):
            break
        high = file.with_name("out.high.jsonl")
        if high.exists():
            refused += 1
            high.write_text("mine")
            for force in (False, True):
                with pytest.raises(OutputExistsError, match=r"was changed|exists"):
                    write(force=force)
            assert high.read_text() == "mine"
    assert refused > 3


def test_a_folder_of_somebody_else_is_left_alone(tmp_path):
    folder = tmp_path / ".out.screen.pvec-partial"
    folder.mkdir()
    (folder / "mine.txt").write_text("mine")
    with pytest.raises(OutputExistsError, match="was not written by this tool"):
        written(tmp_path / "out.jsonl", OLD, groups=True)(force=True)
    assert (folder / "mine.txt").read_text() == "mine"


HIGH, LOW = ({"trait": "openness", "level": level} for level in ("high", "low"))
SYSTEM = {"role": "system", "content": "Be brief."}


def as_messages(asked, said, system=()):
    return [*system, *answered(question(asked), said)]


@pytest.mark.parametrize(
    ("rows", "labels"),
    [
        (
            [
                {**HIGH, "part": "train", "id": "q1", "prompt": "Why?", "completion": "So."},
                {**LOW, "part": "evaluate", "prompt": "Why?", "completion": ""},
                {**LOW, "prompt": "Why?", "completion": "No."},
                {"trait": None, "prompt": '[{"id": 1}]', "completion": "No."},
                {**HIGH, "messages": as_messages("Why?", "No.", [SYSTEM])},
                {**LOW, "messages": json.dumps(as_messages("Why?", "No."))},
            ],
            [{**HIGH, "part": "train", "id": "q1"}, LOW, {}, HIGH, LOW],
        ),
        (
            [
                {"trait": "Openness", "level": " HIGH", "train_input": "Hi", "train_output": "Yes"},
                {"trait": "", "level": "", "train_input": "", "train_output": ""},
                {"trait": "Openness", "level": "low", "train_input": "Hi", "train_output": "No"},
            ],
            [HIGH, LOW],
        ),
        (
            [
                {**HIGH, "statement": "I read.", "part": "held_out"},
                {**LOW, "statement": "  "},
                {**LOW, "statement": " I sit.", "part": "train"},
            ],
            [{**HIGH, "part": "held_out"}, {**LOW, "part": "train"}],
        ),
        ([{"prompt": "Why?", "completion": "So."}], [{}]),
    ],
)
@pytest.mark.parametrize("system", [None, "Be kind."])
def test_chats_keep_the_labels_of_their_rows(tmp_path, rows, labels, system):
    file = tmp_path / "data.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    spec = DataSpec(source=file, part="all", system=system, questions=("One?", "Two?"))
    found = read_labelled(spec)
    assert [one.labels for one in found] == labels
    assert [one.chat for one in found] == read_chats(spec)
    for pole in (pv.Pole("openness", "high"), pv.Pole("openness", "low")):
        if labels[0]:
            narrowed = read_labelled(spec.narrowed(pole))
            own = [one for one in labels if one.get("level", pole.level) == pole.level]
            assert [one.labels for one in narrowed] == own


@pytest.mark.usefixtures("silent")
def test_screened_data_of_two_poles_are_still_told_apart(screened, lab, tmp_path):
    source = lab.folder / "statements.jsonl"
    assert screened("--against", "none", data=source).code == 0
    for pole in ("extraversion:high", "extraversion:low"):
        for part in ("train", "held_out"):
            one, other = (
                DataSpec(source=file, part=part, pole=pole)
                for file in (source, tmp_path / "out.jsonl")
            )
            assert read_chats(other) == read_chats(one)


def test_a_row_without_labels_has_none():
    row = Flagged(Labelled(answered(question("Why?"), "So."), {}), 1.0, math.nan, "")
    assert list(json.loads(row.to_json())) == [
        *("prompt", "completion", "projection", "difference", "group")
    ]
