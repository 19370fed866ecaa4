import pytest
import torch
from beartype.roar import BeartypeCallHintViolation
from jaxtyping import TypeCheckError

from personality_vector.files.ranges import Stamp
from personality_vector.numeric import kernels
from personality_vector.numeric.parallel import in_parallel

_THREE = torch.zeros(3, dtype=torch.float64)


@pytest.mark.parametrize(
    ("call", "of"),
    [
        (lambda: Stamp.of("a file"), "descriptor"),
        (lambda: kernels.is_finite(torch.zeros(2, 3)), "entries"),
        (lambda: kernels.difference(_THREE, torch.zeros(4, dtype=torch.float64)), "base"),
        (lambda: kernels.trimmed(_THREE, "much"), "threshold"),
        (lambda: kernels.trimmed(_THREE.float(), 0.5), "delta"),
        (lambda: list(in_parallel(len, 3)), "items"),
    ],
)
def test_annotations_are_checked(call, of):
    with pytest.raises((BeartypeCallHintViolation, TypeCheckError), match=of):
        call()


def test_axes_of_one_call_do_not_bind_those_of_another():
    for length in (3, 4):
        entries = torch.zeros(length, dtype=torch.float64)
        assert kernels.difference(entries, entries).shape == (length,)
