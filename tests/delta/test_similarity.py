"""Cosines, whole and by layer, centred or not, are those of the flat vectors."""

import pytest
import torch

from personality_vector.delta import Delta
from personality_vector.delta.layers import layer_of
from personality_vector.delta.similarity import Similarity, inner_products, similarity
from personality_vector.delta.sources import whole
from personality_vector.errors import (
    BaseMismatchError,
    NonFiniteError,
    RecipeError,
)


@pytest.fixture
def deltas(pico, pico_tuned):
    """Four deltas of one base, of very different lengths."""
    one, two, three = (
        Delta.between(pico("llama"), pico_tuned("llama", seed=seed), label=str(seed))
        for seed in range(3)
    )
    return [one, 10.0 * two, one - 0.3 * three, -two]


def rows_of(deltas, layer=None):
    """Return the deltas as float64 rows, of one layer or of all."""
    names = [name for name in deltas[0].names if layer in (None, layer_of(name))]
    return torch.stack(
        [torch.cat([d.source.part(name, whole(d.source, name)) for name in names]) for d in deltas]
    )


def cosines(rows, *, centred):
    unit = rows / rows.norm(dim=1, keepdim=True)
    if centred:
        unit = unit - unit.mean(0)
        unit = unit / unit.norm(dim=1, keepdim=True)
    return unit @ unit.T


@pytest.mark.parametrize("centred", [False, True])
def test_it_equals_the_dense_one_whole_and_by_layer(deltas, centred):
    found = similarity(deltas)
    assert tuple(found.grams) == (
        "embedding",
        *(f"layer {i}" for i in range(3)),
        "final norm",
        "head",
    )
    for layer in (None, *found.grams):
        expected = cosines(rows_of(deltas, layer), centred=centred)
        cosine = found.cosine(layer, centred=centred)
        torch.testing.assert_close(cosine, expected, rtol=0, atol=1e-12)
        assert torch.equal(cosine, cosine.T)


def test_parts_and_order_do_not_matter(deltas, monkeypatch):
    whole_ones = similarity(deltas)
    monkeypatch.setattr("personality_vector.delta.similarity._PART", 1000)
    in_parts, turned = similarity(deltas), similarity(deltas[::-1])
    for centred in (False, True):
        expected = whole_ones.cosine(centred=centred)
        torch.testing.assert_close(in_parts.cosine(centred=centred), expected, rtol=0, atol=1e-13)
        back = turned.cosine(centred=centred).flip(0, 1)
        torch.testing.assert_close(back, expected, rtol=0, atol=1e-13)


def test_layers_add_up_to_the_whole(deltas):
    found = similarity(deltas)
    total = sum(found.gram(layer) for layer in found.grams)
    torch.testing.assert_close(total, found.gram(), rtol=1e-14, atol=0)
    assert float(found.gram()[0, 0]) == pytest.approx(deltas[0].norm() ** 2, rel=1e-12)


@pytest.mark.parametrize("centred", [False, True])
def test_lengths_do_not_matter(deltas, centred):
    longer = [deltas[0], 7.0 * deltas[1], 0.01 * deltas[2], deltas[3]]
    torch.testing.assert_close(
        similarity(longer).cosine(centred=centred),
        similarity(deltas).cosine(centred=centred),
        rtol=0,
        atol=1e-12,
    )


def test_centring_removes_what_all_have_in_common():
    """Three directions at right angles, behind one that they share and that hides them."""
    shared, *own = torch.eye(4).double()
    rows = torch.stack([10.0 * shared + one for one in own])
    found = Similarity(("a", "b", "c"), {"layer 0": inner_products(rows)})
    apart = ~torch.eye(3, dtype=torch.bool)
    assert bool((found.cosine()[apart] > 0.98).all())
    torch.testing.assert_close(
        found.cosine(centred=True)[apart], torch.full((6,), -0.5).double(), rtol=0, atol=1e-9
    )


def test_centring_two_says_nothing_and_is_refused(deltas):
    with pytest.raises(RecipeError, match="at least three"):
        similarity(deltas[:2]).cosine(centred=True)


def test_a_vector_that_is_the_mean_has_no_centred_direction():
    rows = torch.ones(3, 5).double()
    found = Similarity(("a", "b", "c"), {"layer 0": inner_products(rows)})
    assert bool(found.cosine(centred=True).isnan().all())
    torch.testing.assert_close(found.cosine(), torch.ones(3, 3).double())


def test_where_a_delta_is_zero_it_has_no_cosine_and_leaves_the_others_theirs(deltas, pico, adapter):
    """An adapter changes no embedding and no norm."""
    factored = Delta.from_lora(adapter(), pico("llama"))
    found, without = similarity([factored, *deltas[:3]]), similarity(deltas[:3])
    for layer in ("embedding", "final norm"):
        for centred in (False, True):
            cosine = found.cosine(layer, centred=centred)
            assert bool(cosine[0].isnan().all() and cosine[:, 0].isnan().all())
            expected = without.cosine(layer, centred=centred)
            torch.testing.assert_close(cosine[1:, 1:], expected, rtol=0, atol=1e-12)
    assert not bool(found.cosine("layer 0").isnan().any())


def test_it_agrees_with_cosine_where_one_has_fewer_tensors(pair, pico, adapter):
    deltas = [pair[0], Delta.from_lora(adapter(), pico("llama"))]
    matrix = similarity(deltas).cosine().tolist()
    assert matrix[0][1] == matrix[1][0] == pytest.approx(deltas[0].cosine(deltas[1]), rel=1e-9)
    assert [matrix[0][0], matrix[1][1]] == pytest.approx([1.0, 1.0])


def test_a_zero_delta_is_refused_by_label(pair):
    with pytest.raises(NonFiniteError, match=r"0 \* \(b\): a vector of norm 0"):
        similarity([pair[0], 0.0 * pair[1]])


def test_deltas_of_other_bases_are_refused(pair, pico, pico_tuned):
    other = Delta.between(pico_tuned("llama", seed=1), pico("llama"), label="other")
    with pytest.raises(BaseMismatchError, match="other is of base"):
        similarity([*pair, other])
