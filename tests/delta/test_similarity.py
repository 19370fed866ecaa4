"""The matrix of cosines is that of the flat vectors."""

import pytest
import torch

from personality_vector.delta import Delta
from personality_vector.delta.similarity import cosine_matrix
from personality_vector.errors import BaseMismatchError, NonFiniteError


def test_it_equals_the_dense_one(pair, dense):
    one, two = pair
    deltas = [one, two, one - two, -one]
    rows = torch.stack([dense(delta) for delta in deltas])
    unit = rows / rows.norm(dim=1, keepdim=True)
    found = torch.tensor(cosine_matrix(deltas), dtype=torch.float64)
    torch.testing.assert_close(found, unit @ unit.T, rtol=0, atol=1e-12)


def test_it_agrees_with_cosine_where_one_has_fewer_tensors(pair, pico, adapter):
    deltas = [pair[0], Delta.from_lora(adapter(), pico("llama"))]
    matrix = cosine_matrix(deltas)
    assert matrix[0][1] == matrix[1][0] == pytest.approx(deltas[0].cosine(deltas[1]), rel=1e-9)
    assert [matrix[0][0], matrix[1][1]] == pytest.approx([1.0, 1.0])


def test_a_zero_delta_is_refused_by_label(pair):
    with pytest.raises(NonFiniteError, match=r"0 \* \(b\): a delta of norm 0"):
        cosine_matrix([pair[0], 0.0 * pair[1]])


def test_deltas_of_other_bases_are_refused(pair, pico, pico_tuned):
    other = Delta.between(pico_tuned("llama", seed=1), pico("llama"), label="other")
    with pytest.raises(BaseMismatchError, match="other is of base"):
        cosine_matrix([*pair, other])
