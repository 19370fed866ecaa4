"""Choosing the layer and the strength of a steering vector, with the curve that it rests on."""

from personality_vector.study.choose.choice import Choice
from personality_vector.study.choose.layers import Evidence, Reading, examine, ranked
from personality_vector.study.choose.run import Inputs, choose
from personality_vector.study.choose.separation import Separation, separation
from personality_vector.study.choose.strength import Point, Yardstick, scan, swing, usable

__all__ = [
    "Choice",
    "Evidence",
    "Inputs",
    "Point",
    "Reading",
    "Separation",
    "Yardstick",
    "choose",
    "examine",
    "ranked",
    "scan",
    "separation",
    "swing",
    "usable",
]
