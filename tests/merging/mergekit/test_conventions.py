"""Laws of mergekit's conventions, from the definition: signs, factors, ties, exact numbers kept."""

from itertools import count

import pytest
import torch

from personality_vector.errors import RecipeError
from personality_vector.merging import terms
from personality_vector.numeric.random import generator_for

ONE = torch.tensor([4.0, -1.0, 2.0, 0.0, 1.0, -8.0])
OTHER = torch.tensor([-2.0, -2.0, -2.0, 0.0, 1.0, 4.0])
THIRD = torch.tensor([1.0, 4.0, 0.0, 0.0, 1.0, 2.0])
RANDOM = ["dare_linear", "dare_ties", "della", "della_linear"]


@pytest.fixture
def change(toy, merged):
    """Return ``change(method, deltas, weights, **parameters)``: what is added to zeros."""
    runs = count()

    def run(method, deltas, weights, seed=0, **parameters):
        number, models = next(runs), []
        toy(f"base-{number}", **{"a.weight": torch.zeros_like(deltas[0])})
        for place, (delta, weight) in enumerate(zip(deltas, weights, strict=True)):
            name = f"tuned-{number}-{place}"
            toy(name, **{"a.weight": delta})
            models.append({"model": name, "parameters": {"weight": weight}})
        given = {"merge_method": method, "base_model": f"base-{number}", "models": models}
        return merged(given | {"parameters": parameters}, seed)["a.weight"]

    return run


def random(*shape, seed=0):
    return torch.randn(shape, generator=generator_for(seed, "delta"))


@pytest.mark.parametrize("weights", [[1.0, 1.0], [0.5, -2.0], [0.0, 0.25]])
def test_task_arithmetic_is_the_weighted_sum_times_lambda(change, weights):
    expected = 0.5 * (weights[0] * ONE + weights[1] * OTHER)
    found = change("task_arithmetic", [ONE, OTHER], weights, **{"lambda": 0.5})
    assert torch.equal(found, expected)


def test_normalize_divides_by_the_sum_of_weights(change):
    found = change("task_arithmetic", [ONE, OTHER], [3.0, 1.0], normalize=True)
    assert torch.equal(found, (3 * ONE + OTHER) / 4)


def test_weights_that_sum_to_zero_do_not_divide(change):
    found = change("task_arithmetic", [ONE, OTHER], [1.0, -1.0], normalize=True)
    assert torch.equal(found, ONE - OTHER)
    found = change("task_arithmetic", [ONE], [1e-9], normalize=True)
    assert torch.equal(found, torch.tensor(1e-9) * ONE)


def test_ties_adds_those_that_have_the_elected_sign_and_a_sum_of_zero_elects_plus(change):
    found = change("ties", [ONE, OTHER, THIRD], [1.0, 1.0, 1.0], normalize=False)
    assert torch.equal(found, torch.tensor([5.0, 4.0, 2.0, 0.0, 3.0, -8.0]))


def test_ties_normalized_is_the_weighted_mean_of_those_that_agree(change):
    found = change("ties", [ONE, OTHER, THIRD], [1.0, 2.0, 3.0])
    expected = [(4 + 3) / 4, 12 / 3, -4 / 2, 0.0, 6 / 6, (8 + 6) / 5]
    torch.testing.assert_close(found, torch.tensor(expected))


@pytest.mark.parametrize("method", ["ties", "della"])
@pytest.mark.parametrize("weight", [0.3, -1.0])
def test_normalize_cancels_the_weight_of_one_model_and_even_its_sign(change, method, weight):
    torch.testing.assert_close(change(method, [ONE], [weight]), ONE)
    scaled = change(method, [ONE], [weight], normalize=False)
    torch.testing.assert_close(scaled, weight * ONE)


@pytest.mark.parametrize("density", [0.2, 0.5, 0.9])
@pytest.mark.parametrize("magnitudes", [3, 100_000])
def test_ties_keeps_exactly_the_largest_and_of_equal_ones_the_first(change, density, magnitudes):
    values = torch.randint(0, magnitudes, (1000,), generator=generator_for(0, "values"))
    signs = torch.randint(0, 2, (1000,), generator=generator_for(0, "signs")) * 2 - 1
    delta = (values * signs + 0.5 * signs).float()
    found = change("ties", [delta], [1.0], density=density)
    kept = delta.abs().argsort(descending=True, stable=True)[: int(density * 1000)]
    expected = torch.zeros(1000).index_copy(0, kept, delta[kept])
    assert torch.equal(found, expected)


@pytest.mark.parametrize(("density", "gamma"), [(0.5, 0.1), (0.2, 0.0), (0.95, 0.1), (0.8, 0.2)])
@pytest.mark.parametrize("magnitudes", [3, 100_000])
def test_breadcrumbs_drops_the_largest_and_keeps_the_next(change, density, gamma, magnitudes):
    delta = torch.randint(1, magnitudes + 1, (1000,), generator=generator_for(1, "d")).float()
    found = change("breadcrumbs", [delta], [1.0], density=density, gamma=gamma)
    first = max(0, 1000 - int(density * 1000) - int(gamma * 1000))
    kept = delta.argsort(stable=True)[first : first + int(density * 1000)]
    assert torch.equal(found, torch.zeros(1000).index_copy(0, kept, delta[kept]))


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("method", ["ties", "breadcrumbs", "dare_linear", "della_linear"])
def test_the_smallest_tensors_have_a_result(change, method, size):
    delta = torch.arange(1.0, size + 1)
    found = change(method, [delta], [1.0], density=0.5)
    assert found.isfinite().all()
    if method == "ties":
        assert int((found != 0).sum()) == 1  # never nothing


@pytest.mark.parametrize("method", RANDOM)
def test_rescale_keeps_the_l1_norm_of_a_tensor(change, method):
    delta = random(50, 60)
    found = change(method, [delta], [1.0], density=0.3, normalize=False)
    kept = found != 0
    assert kept.float().mean() == pytest.approx(0.3, abs=4 * 0.5 / 3000**0.5)
    torch.testing.assert_close(found.abs().sum(), delta.abs().sum())
    scale = delta.abs().sum() / delta[kept].abs().sum()
    torch.testing.assert_close(found[kept], scale * delta[kept])
    plain = change(method, [delta], [1.0], density=0.3, normalize=False, rescale=False)
    assert torch.equal(plain, delta * kept)


def test_della_keeps_an_entry_by_its_rank_in_its_row(change):
    delta = random(2000, 11) * torch.logspace(-3, 3, 2000)[:, None]
    found = change("della_linear", [delta], [1.0], density=0.5, epsilon=0.4) != 0
    ranks = delta.abs().argsort(dim=1).argsort(dim=1)
    shares = [float(found[ranks == rank].float().mean()) for rank in range(11)]
    expected = [0.1 + 0.08 * rank for rank in range(11)]
    assert shares == pytest.approx(expected, abs=4 * 0.5 / 2000**0.5)


@pytest.mark.parametrize("method", RANDOM)
def test_a_mask_is_that_of_the_seed(change, method):
    parameters = {"density": 0.5, "epsilon": 0.1} if "della" in method else {"density": 0.5}
    first = change(method, [ONE.repeat(50)], [1.0], seed=1, **parameters)
    again = change(method, [ONE.repeat(50)], [1.0], seed=1, **parameters)
    other = change(method, [ONE.repeat(50)], [1.0], seed=2, **parameters)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("method", ["ties", "breadcrumbs_ties", *RANDOM])
def test_chunks_do_not_change_a_bit(change, monkeypatch, method):
    # Few magnitudes, so that equal ones lie in several chunks.
    deltas = [(4 * random(64, 32, seed=seed)).round() / 4 for seed in range(3)]
    whole = change(method, deltas, [0.5, -0.4, 0.8], density=0.5)
    monkeypatch.setattr(terms, "CHUNK", 96)
    assert torch.equal(change(method, deltas, [0.5, -0.4, 0.8], density=0.5), whole)


@pytest.mark.parametrize("method", ["ties", "breadcrumbs", "dare_linear", "della"])
def test_density_1_is_everything_and_density_0_nothing(change, method):
    assert torch.equal(change(method, [ONE], [1.0], density=1), ONE)
    assert torch.equal(change(method, [ONE], [1.0], density=0), torch.zeros(6))


def test_in_bfloat16_every_step_is_rounded(change):
    found = change("task_arithmetic", [torch.tensor([1.0, 128.0]).bfloat16()], [0.3])
    assert found.dtype == torch.bfloat16
    assert found.tolist() == [0.30078125, 38.5]  # the weight is 0.30078125, not 0.3
    thrice = [torch.tensor([1.0]).bfloat16()] * 3
    # Their sum 0.90234375 times 11 is 9.9258, which is 9.9375; 0.9 times 11 would be 9.875.
    assert change("task_arithmetic", thrice, [0.3] * 3, **{"lambda": 11.0}).item() == 9.9375


@pytest.mark.parametrize(
    ("shape", "parameters", "says"),
    [
        ((3, 4, 5), {"density": 0.5}, r"a.weight of shape \[3, 4, 5\]: della ranks the rows"),
        ((3, 4), {"density": 0.9}, "density - epsilon and density . epsilon must lie in"),
        ((3, 4), {"density": 0.5, "epsilon": 0.5}, "density 0.5 and epsilon 0.5, for a.weight"),
    ],
)
def test_della_refuses_what_mergekit_would_stumble_over(change, shape, parameters, says):
    with pytest.raises(RecipeError, match=says):
        change("della", [random(*shape)], [1.0], **parameters)
