"""Whether measures agree, and the profiles that they draw; nothing is averaged over measures."""

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd
import pytest

from personality_vector.report.figures import inlined, save_figure
from personality_vector.report.matrices import agreement_figure, language_figure
from personality_vector.report.radar import radar_figure
from personality_vector.study.profiles import agreement_of_measures, language
from personality_vector.study.run import READINGS, Run
from personality_vector.study.tables import MEASURES_AGREE, tables_of
from personality_vector.subject.protocols import Findings, Reading
from tests.report.stores import STRENGTHS, Made

FIVE = ("openness", "conscientiousness", "extraversion", "agreeableness", "neuroticism")
NORMS = {"who": "all", "traits": {t: [3.0 + n / 10, 0.5] for n, t in enumerate(FIVE)}}


@dataclass(frozen=True)
class WithSelfReport(Made):
    """A run with a third measure, whose numbers are ``3 + slope * strength``, and a facet."""

    slope: float = -0.3
    traits: tuple[str, ...] = FIVE

    @property
    def measures(self):
        drawn = {"unit": "score", "scale": [1.0, 5.0], "better": "towards_pole", "norms": NORMS}
        words = {"unit": "per hundred words", "scale": None, "better": "none"}
        return {**super().measures, "self_report": drawn, "linguistic": words}

    def _findings(self, name, label, strength):
        if name == "linguistic":
            shares = {"we": 1.0, "negations": 2.0 * strength, "length": 9.0}
            units = {"length": "words"}
            return Findings(
                readings=[
                    Reading(f"linguistic.{one}", value, unit=units.get(one, ""))
                    for one, value in shares.items()
                ]
            )
        if name != "self_report":
            return super()._findings(name, label, strength)
        values = dict.fromkeys(self.traits, 3 + self.slope * strength)
        return Findings(
            readings=[
                *(Reading("self_report", value, trait) for trait, value in values.items()),
                Reading("self_report.anxiety", 1.0 + strength**2, "neuroticism"),
                Reading("self_report.acquiescence", 0.5),
            ]
        )


def pairs_of(table):
    return {(row.trait, row.measure, row.other): row for row in table.itertuples()}


def test_measures_that_order_the_points_alike_agree_and_others_oppose(tmp_path):
    found = pairs_of(agreement_of_measures(WithSelfReport(tmp_path / "a").write()))
    assert {key[1:] for key in found} == {
        ("likelihood", "interview by classifier"),
        ("likelihood", "self_report"),
        ("interview by classifier", "self_report"),
    }  # no facet, and no number of no trait
    for trait in FIVE:
        alike = found[trait, "likelihood", "interview by classifier"]
        against = found[trait, "interview by classifier", "self_report"]
        assert (alike.finding, against.finding) == ("together", "opposite")
        assert (alike.same_way, against.same_way) == (1.0, 0.0)
        assert against.pearson == pytest.approx(-1.0)
        assert against.n == 1 + 2 * len(STRENGTHS)


def test_a_measure_that_does_not_move_shows_no_agreement(tmp_path):
    found = pairs_of(agreement_of_measures(WithSelfReport(tmp_path / "a", slope=0.0).write()))
    row = found["openness", "likelihood", "self_report"]
    assert row.finding == "not shown"
    assert math.isnan(row.spearman)


def test_the_figure_of_agreement_writes_every_correlation(tmp_path):
    run = WithSelfReport(tmp_path / "a").write()
    table = tables_of(run)[MEASURES_AGREE]
    axes = agreement_figure(table).axes[0]
    assert [text.get_text() for text in axes.get_xticklabels()] == list(FIVE)
    drawn = sorted(text.get_text() for text in axes.texts)
    assert drawn == sorted(f"{value:.2f}" for value in table["spearman"])


def test_figures_on_cells_keep_their_colour_in_a_dark_page(tmp_path):
    table = tables_of(WithSelfReport(tmp_path / "a").write())[MEASURES_AGREE]
    figure = agreement_figure(table)
    colours = {text.get_color() for text in figure.axes[0].texts}
    save_figure(figure, tmp_path, "agreement", ".svg")
    page = inlined(tmp_path / "agreement.svg")
    assert colours
    assert all(f'"{colour}"' in page for colour in colours)


def test_an_evaluation_has_too_few_points_to_agree(tmp_path):
    assert agreement_of_measures(WithSelfReport(tmp_path / "a", labels=()).write()).empty


def test_a_radar_shows_base_ends_and_the_norm_of_each_measure_apart(tmp_path):
    run = WithSelfReport(tmp_path / "a").write()
    panels = [axes for axes in radar_figure(run).axes if "self_report" in axes.get_title()]
    assert len(panels) == 2  # one for each intervention; numbers without a scale have none
    heights = {line.get_label(): line.get_ydata() for line in panels[0].lines}
    assert np.allclose(heights["base"], 3.0)
    assert np.allclose(heights["lowest strength"], 3 - 0.3 * STRENGTHS[0])
    assert np.allclose(heights["highest strength"], 3 - 0.3 * STRENGTHS[-1])
    [band] = panels[0].collections
    low, high = band.get_paths()[0].vertices[:, 1].min(), band.get_paths()[0].vertices[:, 1].max()
    assert (low, high) == (pytest.approx(2.5), pytest.approx(3.9))


def test_the_language_is_drawn_by_point_as_a_difference_from_the_base(tmp_path, monkeypatch):
    frame = language(WithSelfReport(tmp_path / "a").write())
    assert list(frame.index) == ["negations", "we"]  # what moves most is first
    assert frame["weights", 2.0].to_dict() == {"negations": 4.0, "we": 0.0}
    axes = language_figure(frame).axes[0]
    assert axes.get_xticklabels()[0].get_text() == f"weights {STRENGTHS[0]:g}"
    assert "4.00" in [text.get_text() for text in axes.texts]
    assert language(Made(tmp_path / "b").write()).empty
    with monkeypatch.context() as patch:  # a run without any number of no trait
        patch.setattr(Run, "readings", lambda _: pd.DataFrame(columns=list(READINGS)))
        assert language(Run(tmp_path / "b")).empty


def test_a_run_of_two_traits_has_no_radar(tmp_path):
    assert radar_figure(Made(tmp_path / "a").write()).axes == []
