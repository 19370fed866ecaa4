"""Of all deltas of that rank it is the nearest, and it says how near."""

import pytest
import torch

from personality_vector.delta import Delta
from personality_vector.delta.layers import layer_of
from personality_vector.delta.lora import LowRank, is_smaller_factored
from personality_vector.delta.record import read_record
from personality_vector.delta.sources import whole
from personality_vector.numeric.random import generator_for

RANK = 5


def matrix(delta, name):
    return delta.source.part(name, whole(delta.source, name)).reshape(delta.shape(name))


def spectrum(rows, columns, decay, seed="m"):
    """Return a random matrix with singular values ``k ** -decay``."""
    generator = generator_for(0, seed)
    left, right = (
        torch.linalg.qr(torch.randn(n, min(rows, columns), generator=generator).double())[0]
        for n in (rows, columns)
    )
    values = torch.arange(1, min(rows, columns) + 1).double() ** -decay
    return (left * values) @ right.T


def cut(pair, tmp_path, rank=RANK):
    saved = pair[0].save(tmp_path / "saved", storage="low-rank", rank=rank)
    return Delta.load(saved), read_record(saved)


def test_every_matrix_is_the_nearest_of_its_rank_and_the_rest_is_whole(pair, tmp_path):
    loaded, record = cut(pair, tmp_path)
    assert isinstance(loaded.source, LowRank)
    for name in pair[0].names:
        wanted, found = matrix(pair[0], name), matrix(loaded, name)
        if wanted.ndim != 2:
            assert torch.equal(found, wanted.float().double())
            continue
        values = torch.linalg.svdvals(wanted)
        assert int(torch.linalg.matrix_rank(found, rtol=1e-5)) == RANK
        best = float(values[:RANK].square().sum() / values.square().sum())
        kept = 1.0 - float((wanted - found).norm() / wanted.norm()) ** 2
        # Eckart and Young; the factors are float32.
        assert kept == pytest.approx(best, rel=1e-9)
        assert 1.0 - record.tensors[name].loss ** 2 == pytest.approx(best, rel=1e-8)


def test_kept_energy_is_one_minus_the_squared_loss_in_all_and_by_layer(pair, tmp_path):
    delta = pair[0]
    loaded, record = cut(pair, tmp_path)
    lost = (loaded - delta).norm() / delta.norm()
    assert record.total.kept == pytest.approx(1.0 - lost**2, rel=1e-8)
    for layer, total in record.totals(layer_of).items():
        names = [name for name in delta.names if layer_of(name) == layer]
        energy = sum(float(matrix(delta, name).square().sum()) for name in names)
        gone = sum(
            float((matrix(delta, name) - matrix(loaded, name)).square().sum()) for name in names
        )
        assert total.kept == pytest.approx(1.0 - gone / energy, rel=1e-8)


def test_more_rank_keeps_more_and_the_full_rank_everything(pair, tmp_path):
    kept = []
    for rank in (1, 4, 16, 48):
        saved = pair[0].save(tmp_path / str(rank), storage="low-rank", rank=rank)
        kept.append(read_record(saved).total.kept)
    assert kept == sorted(kept)
    assert kept[0] < 0.5
    assert kept[-1] == pytest.approx(1.0, abs=1e-12)


def test_a_rank_is_an_identity_of_its_own_and_belongs_to_the_same_base(pair, tmp_path):
    delta = pair[0]
    loaded = [
        Delta.load(delta.save(tmp_path / f"{number}", storage="low-rank", rank=rank))
        for number, rank in enumerate((4, 5, 4))
    ]
    assert loaded[0].identity == loaded[2].identity
    assert len({delta.identity, *(other.identity for other in loaded)}) == 3
    assert {other.base for other in loaded} == {delta.base}
    assert loaded[0].source.tuned_part(delta.names[0], slice(0, 1), torch.zeros(1)) is None


def test_an_adapter_of_that_rank_is_kept_whole(pico, adapter, tmp_path):
    delta = Delta.from_lora(adapter(r=4), pico("llama"))
    saved = delta.save(tmp_path / "saved", storage="low-rank", rank=4)
    assert read_record(saved).total.loss < 1e-6
    assert Delta.load(saved).cosine(delta) == pytest.approx(1.0, abs=1e-12)


def test_the_same_delta_is_the_same_bytes(pair, tmp_path):
    files = [
        pair[0].save(tmp_path / name, storage="low-rank", rank=3) / "delta.safetensors"
        for name in ("one", "two")
    ]
    assert files[0].read_bytes() == files[1].read_bytes()


@pytest.mark.parametrize(
    ("shape", "rank", "smaller"),
    [((8, 8), 3, True), ((8, 8), 4, False), ((100,), 1, False), ((4, 5, 6), 1, False)],
)
def test_factors_are_kept_only_where_they_are_smaller(shape, rank, smaller):
    assert is_smaller_factored(shape, rank) is smaller


@pytest.fixture
def large(monkeypatch):
    """Take every matrix for a large one, and read it in several blocks."""
    monkeypatch.setattr("personality_vector.delta.low_rank._MOST_EXACT", 0)
    monkeypatch.setattr("personality_vector.delta.low_rank._BLOCK", 1000)


@pytest.mark.usefixtures("large")
@pytest.mark.parametrize("shape", [(90, 70), (70, 90), (400, 30)])
def test_of_a_large_matrix_of_that_rank_nothing_is_lost(toy, tmp_path, shape):
    product = spectrum(shape[0], RANK, 0.5) @ spectrum(RANK, shape[1], 0.5, "other")
    delta = Delta.between(toy("base", a=torch.zeros(shape)), toy("tuned", a=product.float()))
    saved = delta.save(tmp_path / "saved", storage="low-rank", rank=RANK)
    assert read_record(saved).total.loss < 1e-6


@pytest.mark.usefixtures("large")
@pytest.mark.parametrize("decay", [0.1, 0.5, 1.0])
def test_of_a_large_matrix_almost_the_best_is_kept(toy, tmp_path, decay):
    """Even where singular values hardly decay, which is the hard case."""
    wanted = spectrum(160, 120, decay)
    delta = Delta.between(toy("base", a=torch.zeros(160, 120)), toy("tuned", a=wanted.float()))
    saved = delta.save(tmp_path / "saved", storage="low-rank", rank=RANK)
    values = torch.arange(1, 121).double() ** -decay
    best = float(values[:RANK].square().sum() / values.square().sum())
    kept = read_record(saved).total.kept
    assert 0.9995 * best < kept < best * (1 + 1e-6)
