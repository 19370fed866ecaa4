"""A model card holds what the manifest says, and nothing that a label smuggles in."""

import pytest
import yaml

from personality_vector.merging.card import model_card

MERGE = {
    "base": {"reference": "models/base"},
    "terms": [{"label": "extraversion:high", "alpha": 0.8}, {"label": "b", "alpha": -1.0}],
    "method": "ties",
    "source": "Yadav et al. 2023",
    "options": {"density": 0.2},
    "seed": 3,
    "realised": 0.98765,
}


def test_it_says_what_was_merged():
    card = model_card(MERGE)
    metadata = yaml.safe_load(card.split("---")[1])
    assert metadata["base_model"] == "models/base"
    assert metadata["base_model_relation"] == "merge"
    for text in ("| extraversion:high | 0.8 |", "| b | -1 |", "density = 0.2; seed 3", "0.9877"):
        assert text in card


def test_nothing_realised_is_a_dash():
    assert "rounding: -." in model_card({**MERGE, "realised": None})


@pytest.mark.parametrize(
    "label", ["a\n# b", "<script>", "a|b", "[x](y)", "`rm`", "\x1b[2J", "&lt;"]
)
def test_a_label_stays_one_harmless_cell(label):
    plain = model_card({**MERGE, "terms": [{"label": "a", "alpha": 1.0}]})
    card = model_card({**MERGE, "terms": [{"label": label, "alpha": 1.0}]})
    assert len(card.splitlines()) == len(plain.splitlines())
    (row,) = set(card.splitlines()) - set(plain.splitlines())
    assert row.isprintable()
    unescaped = [c for i, c in enumerate(row) if c in "<>[]`|" and row[i - 1 : i] != "\\"]
    assert unescaped == ["|", "|", "|"]
