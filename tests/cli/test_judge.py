"""``pvec judge``: one more judge of stored answers, and nothing is asked again."""

import json

import pandas as pd
import pytest

from personality_vector.study.run import Run
from personality_vector.traits import BIG_FIVE
from tests.fake_endpoint import likely, serving


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Return the folder of an evaluation, which the first test that needs it writes."""
    return tmp_path_factory.mktemp("judged") / "run"


@pytest.fixture
def run(finished, pvec, lab):
    """Return the folder of an evaluation whose answers nobody has rated."""
    if not finished.exists():
        asked = "{traits: [extraversion, openness], question: Who, generation: {max_new_tokens: 4}}"
        change = f"measures=[{{interview: {asked}}}]"
        assert pvec("eval", lab.eval, "--set", change, "--out", finished).code == 0
        assert Run(finished).readings().empty
    return finished


@pytest.fixture
def asleep(run, monkeypatch):  # noqa: ARG001
    """Let nothing generate once there is a run."""

    def never(*_, **__):
        pytest.fail("the model was asked again")

    monkeypatch.setattr("personality_vector.subject.subject.generate_replies", never)


@pytest.mark.usefixtures("asleep")
def test_a_judge_by_name_rates_what_was_said(run, pvec):
    ended = pvec("judge", run, "--judge", "classifier", "--json")
    assert (ended.code, ended.err) == (0, "")
    assert (ended.json["judge"], ended.json["cells"]) == ("classifier", 1)
    rows = ended.json["readings"]
    assert {row["trait"] for row in rows} == {"extraversion", "openness"}
    assert {row["n"] + row["unscored"] for row in rows} == {1}
    assert "classifier" in (run / "report.html").read_text()
    assert pvec("judge", run, "--judge", "classifier", "--json") == ended
    told = pvec("judge", run, "--judge", "classifier")
    assert told.out == f"{run}: classifier rated 1 cells; report: {run / 'report.html'}\n"


@pytest.mark.usefixtures("asleep")
def test_a_judge_of_a_file_has_its_options_and_paths_count_from_it(run, pvec, lab):
    file = lab.folder / "ours.yaml"
    file.write_text("classifier: {statements: statements.jsonl, name: ours}\n")
    ended = pvec("judge", run, "--judge", file, "--json")
    assert (ended.code, ended.json["judge"]) == (0, "ours")
    assert "ours" in set(Run(run).readings()["judge"])


def test_another_judge_of_a_name_that_is_taken_is_refused(run, pvec, lab):
    assert pvec("judge", run, "--judge", "classifier").code == 0
    file = lab.folder / "taken.yaml"
    file.write_text("classifier: {statements: statements.jsonl}\n")
    ended = pvec("judge", run, "--judge", file)
    assert ended.code == 1
    assert "the recipe has another judge called classifier; give this one a name" in ended.err


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (
            "oracle",
            "known are classifier, embedding, endpoint, humans, infrequency, local, pairwise or",
        ),
        ("clasifier", "unknown key 'clasifier'; did you mean 'classifier'?"),
        ("local", "the key 'checkpoint' is missing"),
        ("nowhere.yaml", "nowhere.yaml: no such file"),
    ],
)
def test_a_judge_that_is_none_is_refused_in_one_sentence(run, pvec, given, says):
    ended = pvec("judge", run, "--judge", given)
    assert (ended.code, ended.out) == (1, "")
    assert says in ended.err
    assert ended.err.count("\n") == 1


def test_a_file_that_holds_no_judge_is_refused(run, pvec, tmp_path):
    (tmp_path / "j.yaml").write_text("classifier: {}\nlocal: {checkpoint: c}\n")
    ended = pvec("judge", run, "--judge", tmp_path / "j.yaml")
    assert ended.code == 1
    assert "has 2 keys" in ended.err


def test_a_run_without_answers_is_refused(pvec, lab, tmp_path):
    change = "measures=[{likelihood: {traits: [openness], statements: statements.jsonl}}]"
    words = ["--set", change.replace("statements.jsonl", str(lab.folder / "statements.jsonl"))]
    assert pvec("eval", lab.eval, *words, "--out", tmp_path / "run").code == 0
    ended = pvec("judge", tmp_path / "run", "--judge", "classifier")
    assert ended.code == 1
    assert "has no answers to judge; only an interview gives answers" in ended.err


def test_a_folder_without_a_run_is_refused(pvec, tmp_path):
    ended = pvec("judge", tmp_path, "--judge", "classifier")
    assert ended.code == 1
    assert "there is no results file" in ended.err


# --- plain texts ---


@pytest.fixture
def texts(tmp_path):
    file = tmp_path / "texts.jsonl"
    said = ["I love big parties and meeting new people.", "The capital of France is Paris.", ""]
    file.write_text("".join(json.dumps({"text": text, "id": 1}) + "\n" for text in said))
    return file


def test_texts_are_rated_for_every_trait_and_unscored_with_the_reason(pvec, texts):
    ended = pvec("judge", texts, "--judge", "classifier", "--json")
    assert (ended.code, ended.err) == (0, "")
    rows = ended.json
    assert len(rows) == 15
    assert all(set(row) == {"text", "trait", "score", "reason"} for row in rows)
    assert {row["trait"] for row in rows} == set(BIG_FIVE)
    by_text = {(row["text"][:3], row["trait"]): row for row in rows}
    assert by_text["I l", "extraversion"]["score"] > 4
    unscored = [row for row in rows if row["text"][:3] != "I l"]
    assert {row["score"] for row in unscored} == {None}
    assert all(row["reason"] for row in unscored)
    told = pvec("judge", texts, "--judge", "classifier").out
    assert "The capital of France" in told
    assert "of 15 are unscored" in told


def test_a_reader_needs_a_model_and_takes_one(pvec, texts, lab):
    ended = pvec("judge", texts, "--judge", "reader")
    assert (ended.code, ended.out) == (1, "")
    assert "needs a model that reads; name one with --model" in ended.err
    file = lab.folder / "reader.yaml"
    file.write_text("reader: {per_pole: 2, limit: 10}\n")
    ended = pvec("judge", texts, "--judge", file, "--model", "builtin:demo", "--json")
    assert ended.code == 0
    assert len(ended.json) == 15


def test_the_reader_of_a_run_is_its_base(run, pvec):
    ended = pvec("judge", run, "--judge", "reader", "--model", "builtin:demo")
    assert ended.code == 1
    assert "the reader of a run is its base; leave --model out" in ended.err


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (
            '{"reply": "I love it"}\n',
            "needs a text under the key text; this row has the keys reply",
        ),
        ('{"text": 3}\n', "line 1: needs a text under the key text"),
        ("", "has no rows"),
    ],
)
def test_a_file_of_other_rows_is_refused_by_line(pvec, tmp_path, content, says):
    (tmp_path / "other.jsonl").write_text(content)
    ended = pvec("judge", tmp_path / "other.jsonl", "--judge", "classifier")
    assert (ended.code, ended.out) == (1, "")
    assert says in ended.err


def endpoint_of(fake, folder, **options):
    """Return the file of an endpoint judge."""
    file = folder / "endpoint.yaml"
    given = {"model": "m", "base_url": fake.base_url, **options}
    file.write_text(json.dumps({"endpoint": given}))
    return file


@pytest.mark.usefixtures("asleep")
def test_what_a_server_was_asked_is_billed_at_the_end(run, pvec, tmp_path):
    with serving(lambda _: likely({"60": 1.0})) as fake:
        file = endpoint_of(fake, tmp_path, price_in=10.0, price_out=20.0)
        ended = pvec("judge", run, "--judge", file, "--json")
        again = pvec("judge", run, "--judge", file)
    assert (ended.code, again.code) == (0, 0)
    spent = {"requests": 2, "tokens_in": 200, "tokens_out": 2, "price": pytest.approx(0.00204)}
    assert ended.json["bills"] == [{"judge": "endpoint m", **spent}]
    assert {row["value"] for row in ended.json["readings"]} == {60.0}
    told = "endpoint m, for this run so far: requests 2, tokens in 200, tokens out 2, price 0.00204"
    assert again.err == f"{told}\n"
    assert len(fake.requests) == 2


def test_a_used_up_budget_is_one_sentence_and_the_rest_resumes(pvec, lab, tmp_path):
    asked = "{traits: [extraversion, openness], question: Who, judges: [%s]}"
    options = "model: m, base_url: '%s', requests: 1, price_in: 1000, price_out: 0, budget: %g"
    with serving(lambda _: likely({"60": 1.0})) as fake:

        def run(budget):
            judge = f"{{endpoint: {{{options % (fake.base_url, budget)}}}}}"
            change = f"measures=[{{interview: {asked % judge}}}]"
            return pvec("eval", lab.eval, "--set", change, "--out", tmp_path / "run")

        for _ in range(2):
            ended = run(1.2)
            assert ended.code == 1
            bill, error = ended.err.splitlines()[-2:]
            assert bill.startswith("endpoint m, for this run so far: requests 1, tokens in 100")
            assert "the budget of 1.2 is used up: 0.1 is spent (requests: 1)" in error
            assert len(fake.requests) == 1
        assert run(10.0).code == 0
        assert len(fake.requests) == 2


def test_people_fill_in_the_table_of_the_answers(run, pvec, tmp_path):
    table = pd.DataFrame(Run(run).answers()).astype(str)
    table = table[table["judge"].isin(["", table["judge"].iloc[0]])]
    table["rating"] = "4"
    table.to_csv(tmp_path / "filled.csv", index=False)
    (tmp_path / "us.yaml").write_text("humans: {ratings: filled.csv, scale: [1, 5]}\n")
    ended = pvec("judge", run, "--judge", tmp_path / "us.yaml", "--json")
    assert (ended.code, ended.err) == (0, "")
    assert {row["value"] for row in ended.json["readings"]} == {4.0}
    table["item"] = "q99"
    table.to_csv(tmp_path / "filled.csv", index=False)
    ended = pvec("judge", run, "--judge", tmp_path / "us.yaml")
    assert ended.code == 1
    assert "filled.csv line 2: there is no answer with item q99; known are question" in ended.err
