"""Judges on servers rate what is finished while the next cell is measured."""

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import Event

import pandas as pd
import pytest

import personality_vector as pv
from personality_vector.errors import DataError, ModelError, RecipeError
from personality_vector.judges.endpoint import EndpointJudge
from personality_vector.judges.humans import HumansJudge
from personality_vector.judges.pairwise import PairwiseJudge
from personality_vector.study.design import BASE
from personality_vector.study.judging import judge_run
from personality_vector.study.run import Run
from personality_vector.study.scores import choices
from personality_vector.study.store import FILE, Store
from personality_vector.subject.subject import Subject
from tests.fake_endpoint import failed, likely, serving
from tests.study.fakes import Asked, Rates, Shifted, noted

ARM = Shifted("small", 0.5)


@pytest.fixture(autouse=True)
def hurried(monkeypatch):
    monkeypatch.setattr("personality_vector.subject.endpoint._FIRST_PAUSE", 0.001)


def reply_in(body):
    return body["messages"][0]["content"].split("<reply>\n")[1].split("\n</reply>")[0]


def rate(body):
    """Rate each reply, which is a number, by its first decimals."""
    number = int(abs(float(reply_in(body))) * 10) % 9
    return likely({str(number): 0.7, str(number + 1): 0.3})


def cells(log):
    return sum(line.startswith("asked") for line in noted(log))


@dataclass(frozen=True)
class Waiting(Asked):
    """After so many cells, asks the next only once the server works, and says that it does."""

    after: int = 1
    is_rating: Event = field(default_factory=Event, compare=False)
    is_collecting: Event = field(default_factory=Event, compare=False)

    def collect(self, subject, seed):
        if cells(self.log) >= self.after:
            assert self.is_rating.wait(60)
            self.is_collecting.set()
        return super().collect(subject, seed)


@pytest.mark.parametrize("is_pair", [False, True])
def test_a_server_rates_while_the_next_cell_is_measured(base, log, tmp_path, is_pair):
    """Each waits for the other, so that neither can come first: the server for the next cell."""
    # The base is equal to itself, which needs no server: the first arm is the first pair.
    measure = Waiting(log, after=2 if is_pair else 1)

    def slow(body):
        measure.is_rating.set()
        assert measure.is_collecting.wait(60)
        return likely({"A": 0.6, "B": 0.4}) if is_pair else rate(body)

    with serving(slow) as fake:
        judge = EndpointJudge(model="j", base_url=fake.base_url)
        given = replace(measure, judges=[PairwiseJudge(judge=judge) if is_pair else judge])
        frame = pv.study(base, [ARM], [1.0, 2.0, 3.0], [given]).run(tmp_path / "run").readings()
    assert measure.is_collecting.is_set()
    assert frame["n"].tolist() == [2] * 4
    assert not any(thread.name.endswith("(_rate)") for thread in threading.enumerate())


def test_scores_are_those_of_judging_afterwards(base, log, tmp_path):
    with serving(rate) as fake:
        judge = EndpointJudge(model="j", base_url=fake.base_url)
        run = pv.study(base, [ARM], [1.0, 2.0], [Asked(log, [judge])]).run(tmp_path / "run")
        asked = len(fake.requests)
        later = pv.study(base, [ARM], [1.0, 2.0], [Asked(log)]).run(tmp_path / "later")
        judge_run(later.folder, judge)
        assert len(fake.requests) == asked, "the responses are kept"
        several = pv.study(base, [ARM], [1.0, 2.0], [Asked(log, [judge])])
        shared = several.run(tmp_path / "shared", workers=2)
    pd.testing.assert_frame_equal(later.readings(), run.readings())
    pd.testing.assert_frame_equal(shared.readings(), run.readings())
    pd.testing.assert_frame_equal(later.answers(), run.answers())


def test_an_error_of_the_server_stops_the_worker_at_the_next_cell(base, log, tmp_path):
    both = Waiting(log)

    def refuse(_):
        both.is_rating.set()
        raise failed(401, "bad key")

    with serving(refuse) as fake:
        judge = EndpointJudge(model="j", base_url=fake.base_url)
        measure = Waiting(log, [judge], is_rating=both.is_rating)
        study = pv.study(base, [ARM], [float(n) for n in range(1, 400)], [measure])
        with pytest.raises(ModelError, match=r"answered 401: .*bad key"):
            study.run(tmp_path / "run")
    assert len(fake.requests) == 1
    assert 2 <= len(noted(log)) < 400
    finished = Run(tmp_path / "run").cells()["finished"].sum()
    assert finished == len(noted(log)), "what was measured stays"
    with serving(rate) as fake:
        judge = EndpointJudge(model="j", base_url=fake.base_url)
        again = pv.study(base, [ARM], [1.0], [Asked(log, [judge])]).run(tmp_path / "run")
    assert again.readings()["n"].tolist() == [2, 2]


def test_ctrl_c_ends_both(base, log, tmp_path):
    both = Waiting(log)
    gate = Event()

    def hang(body):
        both.is_rating.set()
        gate.wait(60)
        return rate(body)

    @dataclass(frozen=True)
    class Interrupted(Waiting):
        def collect(self, subject, seed):
            if cells(self.log):
                assert self.is_rating.wait(60)
                raise KeyboardInterrupt
            return super().collect(subject, seed)

    with serving(hang) as fake:
        judge = EndpointJudge(model="j", base_url=fake.base_url, timeout=60.0)
        measure = Interrupted(log, [judge], is_rating=both.is_rating)
        with pytest.raises(KeyboardInterrupt):
            pv.study(base, [ARM], [1.0], [measure]).run(tmp_path / "run")
        assert not gate.is_set(), "nobody waited for the server"
        begun = len(fake.requests)
        gate.set()
    assert begun == len(fake.requests) == 1


def test_a_local_judge_rates_in_the_thread_of_the_worker(base, log, tmp_path):
    seen = []

    class Local(Rates):
        def __call__(self, rubric, answers):
            seen.append(threading.current_thread())
            return super().__call__(rubric, answers)

    pv.study(base, [ARM], [1.0], [Asked(log, [Local(tmp_path / "s.txt")])]).run(tmp_path / "run")
    assert set(seen) == {threading.current_thread()}


def test_a_pair_is_an_answer_and_that_of_the_base(base, log, tmp_path):
    """Also of stored answers, and how much the place matters is kept with each score."""
    with serving(lambda _: likely({"A": 0.75, "B": 0.25})) as fake:
        judge = PairwiseJudge(judge=EndpointJudge(model="j", base_url=fake.base_url))
        run = pv.study(base, [ARM], [1.0, 0.0], [Asked(log, [judge])]).run(tmp_path / "run")
        stored = pv.study(base, [ARM], [1.0, 0.0], [Asked(log)]).run(tmp_path / "stored")
        judge_run(stored.folder, PairwiseJudge(judge=judge.judge))
        judge_run(stored.folder, PairwiseJudge(judge=judge.judge))
    frame = run.readings()
    assert frame["judge"].unique().tolist() == ["pairwise endpoint j"]
    assert frame.query("intervention == 'small' and strength == 1")["value"].tolist() == [0.0]
    assert frame["n"].tolist() == [2, 2, 2]
    assert len(fake.requests) == 2 * 2
    pd.testing.assert_frame_equal(stored.readings(), frame)
    for one in (run, stored):
        (chosen,) = choices(one.answers(), one["judges"]).query("strength == 1").to_dict("records")
        assert chosen["position_bias"] == pytest.approx(1.0)


def test_a_used_up_budget_leaves_what_is_done_and_the_rest_resumes(base, log, tmp_path):
    with serving(rate) as fake:

        def run(budget):
            judge = EndpointJudge(
                model="j", base_url=fake.base_url, price_in=1000.0, price_out=0.0, budget=budget
            )
            study = pv.study(base, [ARM], [1.0, 2.0, 3.0], [Asked(log, [judge])])
            return study.run(tmp_path / "run")

        for _ in range(2):
            with pytest.raises(ModelError, match=r"the budget of 1.5 is used up: .*; raise budget"):
                run(1.5)
            assert 0 < len(fake.requests) <= 15
        first = len(fake.requests)
        assert run(100.0).readings()["n"].tolist() == [2] * 4
        assert first < len(fake.requests) == 8


def test_judges_that_need_no_model_load_none(base, log, tmp_path, monkeypatch):
    run = pv.study(base, [ARM], [1.0], [Asked(log)]).run(tmp_path / "run")
    monkeypatch.setattr(Subject, "load", lambda *_, **__: pytest.fail("a model was loaded"))
    with serving(rate) as fake:
        judge = EndpointJudge(model="j", base_url=fake.base_url)
        assert judge_run(run.folder, judge) == 2
        again = pv.study(base, [ARM], [1.0], [Asked(log, [judge])]).run(tmp_path / "run")
    assert again.readings()["n"].tolist() == [2, 2]


def filled(run: Run, scores: Sequence[object], file: Path, column: str = "score") -> Path:
    """Do what somebody does who opens answers.csv in a spreadsheet and fills in a column."""
    run.export()
    table = pd.read_csv(run.folder / "answers.csv", keep_default_na=False, dtype=str)
    table[column] = list(map(str, scores))
    table.to_csv(file, index=False, lineterminator="\r\n", encoding="utf-8-sig")
    return file


def test_what_people_wrote_beside_the_answers_is_their_score(base, log, tmp_path):
    run = pv.study(base, [ARM], [1.0, 2.0], [Asked(log)]).run(tmp_path / "run")
    assert len(run.answers()) == 6
    file = filled(run, [1, 2, 3, 4, "", 5], tmp_path / "filled.csv")
    judge_run(run.folder, HumansJudge(ratings=file).open())
    frame = run.readings().set_index(["intervention", "strength"])
    assert frame.loc[(BASE, 0.0), "value"] == 1.5
    assert frame.loc[("small", 1.0), "value"] == 3.5
    assert frame.loc[("small", 2.0), ["value", "n", "unscored"]].tolist() == [5.0, 1, 1]
    more = filled(run, [1, 2, 3, 4, 3, 5], tmp_path / "filled.csv")
    judge_run(run.folder, HumansJudge(ratings=more).open())
    frame = run.readings()
    assert frame["unscored"].tolist() == [0, 0, 0], "later ratings take the place of earlier ones"
    assert frame["judge"].unique().tolist() == ["humans"]


def test_people_rate_beside_a_judge_in_a_column_of_their_own(base, log, tmp_path):
    scored = Asked(log, [Rates(tmp_path / "scores.txt")])
    run = pv.study(base, [ARM], [1.0], [scored]).run(tmp_path / "run")
    untouched = filled(run, [1, 2, 3, 4], tmp_path / "a.csv")
    with pytest.raises(DataError, match=r"a.csv line 2: this is the score of reads; write those"):
        HumansJudge(ratings=untouched).open()
    judge = HumansJudge(ratings=filled(run, [1, 2, 3, 4], tmp_path / "b.csv", "rating")).open()
    judge_run(run.folder, judge)
    found = run.readings().query("judge == 'humans'")
    assert found["value"].tolist() == [1.5, 3.5]
    both = Asked(log, [Rates(tmp_path / "scores.txt"), judge])
    pv.study(base, [ARM], [1.0], [both]).run(tmp_path / "run")


def test_ratings_of_another_run_are_refused_and_nothing_is_written(base, log, tmp_path):
    run = pv.study(base, [ARM], [1.0], [Asked(log)]).run(tmp_path / "run")
    other = pv.study(base, [ARM], [2.0], [Asked(log)]).run(tmp_path / "other")
    judge = HumansJudge(ratings=filled(other, [1, 2, 3, 4], tmp_path / "a.csv")).open()
    with pytest.raises(DataError, match="line 4: there is no answer with strength 2; known are 1"):
        judge_run(run.folder, judge)
    with Store.open(run.folder / FILE) as store:
        assert store.rows("SELECT COUNT(*) FROM scores") == [(0,)]
    with pytest.raises(DataError, match="there is no answer with strength 2"):
        pv.study(base, [ARM], [1.0], [Asked(log, [judge])]).run(tmp_path / "run")


def test_another_judge_of_one_name_is_still_refused(base, log, tmp_path):
    run = pv.study(base, [ARM], [1.0], [Asked(log)]).run(tmp_path / "run")
    with serving(rate) as fake:
        judge = EndpointJudge(model="j", base_url=fake.base_url)
        judge_run(run.folder, judge)
        with pytest.raises(RecipeError, match="has another judge called endpoint j"):
            judge_run(run.folder, judge.model_copy(update={"rubric": "1-5"}))
