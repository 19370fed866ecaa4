"""The folder of a run: what is checked before anything is measured."""

import pytest
from personality_vector.recipes.schema import InterventionSpec, MeasureSpec
from personality_vector.study.runs import require_held_out

from personality_vector.errors import DataError
from personality_vector.manifest import write_manifest


@pytest.fixture
def trained(tmp_path):
    """Return ``trained(part, held_out)``: a fine-tune of ours on ``statements/e.jsonl``."""

    def make(part, held_out):
        source = str(tmp_path / "statements" / "e.jsonl")
        data = {"format": "statements", "source": source, "part": part, "held_out": held_out}
        folder = tmp_path / f"{part}-{held_out}"
        folder.mkdir()
        write_manifest(folder, "train", {"recipe": {"data": data}})
        return InterventionSpec(label="x", tuned=str(folder))

    return make


@pytest.mark.parametrize("where", ["statements", "statements/e.jsonl"])
@pytest.mark.parametrize(("part", "held_out"), [("all", 0.2), ("held_out", 0.2), ("train", 0.1)])
def test_what_was_trained_on_is_not_measured(trained, tmp_path, where, part, held_out):
    measure = MeasureSpec(traits=("extraversion",), statements=tmp_path / where, held_out=0.2)
    with pytest.raises(DataError, match="would measure it on its own training text"):
        require_held_out(trained(part, held_out), measure)
    require_held_out(trained("train", 0.2), measure)


def test_other_statements_may_measure_anything(trained, tmp_path):
    measure = MeasureSpec(traits=("extraversion",), statements=tmp_path / "others", held_out=0.2)
    require_held_out(trained("all", 0.5), measure)
