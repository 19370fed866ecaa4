"""An intervention on top of others: what acts at strength 0, and what is known of the edit."""

from contextlib import contextmanager
from dataclasses import dataclass, replace

import pytest

from personality_vector.errors import RecipeError
from personality_vector.interventions.spec import BaseIntervention
from personality_vector.interventions.stacked import Stacked
from personality_vector.subject.subject import Subject


@dataclass(frozen=True)
class Noted(BaseIntervention):
    """Notes its strength in the decoding of a subject; of an edit a share survives."""

    label: str
    share: float | None = None

    @contextmanager
    def applied(self, subject, strength):
        noted = {**subject.decoding, self.label: strength}
        yield replace(subject, decoding=noted, realised=self.share)


WEIGHTS, PROMPT = Noted("weights", 0.75), Noted("prompt")


@pytest.mark.parametrize(
    ("below", "acts"),
    [
        ([(PROMPT, 0.0)], False),
        ([(PROMPT, 0.5)], True),
        ([(Stacked(PROMPT, [(WEIGHTS, 0.0)]), 0.0)], False),
        ([(Stacked(PROMPT, [(WEIGHTS, 1.0)]), 0.0)], True),
    ],
)
def test_strength_0_is_the_base_only_if_nothing_below_acts(below, acts):
    assert Stacked(WEIGHTS, below).acts_at_zero == acts


@pytest.mark.parametrize(
    ("below", "realised"), [([PROMPT], 0.75), ([WEIGHTS, PROMPT], None), ([WEIGHTS, WEIGHTS], None)]
)
def test_the_share_of_an_edit_is_known_only_of_one_edit(below, realised):
    stacked = Stacked(WEIGHTS, [(one, 0.5) for one in below])
    with stacked.applied(Subject(None, None), 2.0) as subject:
        assert subject.realised == realised
        assert subject.decoding["weights"] == 2.0
    prompted = Stacked(PROMPT, [(WEIGHTS, 0.5)])
    with prompted.applied(Subject(None, None), 2.0) as subject:
        assert (subject.realised, subject.decoding) == (0.75, {"weights": 0.5, "prompt": 2.0})


def test_a_strength_below_has_to_be_one():
    class Graded(Noted):
        steps = (1.0, 2.0)

    with pytest.raises(RecipeError, match="has the strengths 1 and 2, got"):
        Stacked(WEIGHTS, [(Graded("graded"), 0.5)])
