"""The compiled form of a formula computes the bits of its operations, whatever it is given."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import personality_vector as pv
from personality_vector import Checkpoint, Delta, merge
from personality_vector.checkpoint import read_header
from personality_vector.errors import NonFiniteError, RecipeError
from personality_vector.merging.formula import Vote
from personality_vector.merging.loop import Cast, changed, written_at_once
from personality_vector.merging.merged import Merged
from personality_vector.merging.methods import METHODS
from personality_vector.numeric.random import uniform
from tests.rows import altered, is_word

BF16, F32 = torch.bfloat16, torch.float32
LENGTHS = (1, 2047, 2048, 2049, 70_001)
"""About the 2048 entries that go through the loop together, and many of them."""
MOST_TERMS = 5
COMPILED = [
    name
    for name, row in METHODS.items()
    if isinstance(row.bind({}).consensus, Vote) and not row.sparsify.ranks_rows
]
KINDS = ("tuned", "saved", "lossy")
"""Terms in bfloat16 that the loop subtracts itself, and deltas that it gets in float64."""

NUMBERS: dict[str, st.SearchStrategy[Any]] = {
    "density": st.sampled_from([1e-4, 0.2, 0.5, 1.0]),
    "drop_rate": st.sampled_from([0.0, 1e-9, 0.1, 0.5, 0.9, 0.999]),
    "beta": st.sampled_from([0.0, 0.3, 0.85]),
    "gamma": st.sampled_from([0.0, 0.01, 0.1]),
    "lambda": st.sampled_from([1.0, -1.0, 0.3, 2.5, 0.0]),
}
ALPHAS = st.sampled_from([1.0, -1.0, 0.5, -0.3, 0.1, 3.0, 1e-3])


@pytest.fixture(scope="session")
def bench(tmp_path_factory, write_toy, hard_weights) -> Callable[..., Path]:
    """Return ``bench(dtype, kind, number)``: a base, or a term of it of some kind."""
    root = tmp_path_factory.mktemp("loop")
    start = {f"w{count}": hard_weights(f"base {count}", count) for count in LENGTHS}

    def tensors(dtype: torch.dtype, number: int | None) -> dict[str, Tensor]:
        if number is None:
            return {name: base.to(dtype) for name, base in start.items()}
        # Tensors change by different amounts, so that the threshold of one is not that of all.
        return {
            name: hard_weights(f"{number} {name}", base.numel(), base).to(dtype) * (1 + index % 2)
            for index, (name, base) in enumerate(start.items())
        }

    def make(dtype: torch.dtype, kind: str = "base", number: int | None = None) -> Path:
        path = root / f"{dtype}-{kind}-{number}"
        if path.exists():
            return path
        if kind in ("base", "tuned"):
            return write_toy(path, tensors(dtype, number))
        delta = Delta.between(make(dtype), make(dtype, "tuned", number))
        return delta.save(path, storage={"saved": "float32", "lossy": "bfloat16"}[kind])

    return make


def same_bits(found: Tensor, expected: Tensor) -> bool:
    integer = {2: torch.int16, 4: torch.int32, 8: torch.int64}[expected.element_size()]
    same = found.dtype == expected.dtype and found.shape == expected.shape
    return same and torch.equal(found.view(integer), expected.view(integer))


def made(bench: Any, dtype: torch.dtype, method: str, options: Any, terms: Any) -> Merged:
    pairs = [(bench(dtype, kind, number), alpha) for number, (kind, alpha) in enumerate(terms)]
    return pv.merged(bench(dtype), pairs, method=method, options=options).source


def written(bench: Any, source: Merged, name: str, part: slice) -> Any:
    stored = Checkpoint.open(bench(BF16)).part(name, part)
    return written_at_once(source.combine, source.slices(name, part), stored, Cast(BF16))


@st.composite
def merges(draw: Any) -> tuple[str, dict[str, Any], list[Any], str, slice]:
    """Draw a method, its options, its terms, a tensor and a part of it."""
    method = draw(st.sampled_from(sorted(COMPILED)))
    options = {
        name: draw(
            st.sampled_from(get_args(option.annotation))
            if is_word(option)
            else NUMBERS.get(name, st.just(option.default))
        )
        for name, option in METHODS[method].options.items()
    }
    terms = draw(
        st.lists(st.tuples(st.sampled_from(KINDS), ALPHAS), min_size=1, max_size=MOST_TERMS)
    )
    if draw(st.booleans()):
        terms = [("tuned", alpha) for _, alpha in terms]
    count = draw(st.sampled_from(LENGTHS))
    start = draw(st.one_of(st.just(0), st.integers(0, count - 1)))
    stop = draw(st.one_of(st.just(count), st.integers(start + 1, count)))
    return method, options, terms, f"w{count}", slice(start, stop)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(drawn=merges())
def test_what_is_written_at_once_is_the_formula_rounded_once(bench, drawn):
    method, options, terms, name, part = drawn
    source = made(bench, BF16, method, options, terms)
    stored = Checkpoint.open(bench(BF16)).part(name, part).double()
    change = source.combine(source.slices(name, part))
    done = written(bench, source, name, part)
    if len(terms) == 1 and terms[0][1] == 1.0:
        assert done is None  # where the fine-tuned entries may be restored
        return
    assert same_bits(done[0], Cast(BF16).rounded(stored + change))
    for sum_of, one, other in zip(
        done[1], (stored, change, done[0].double() - stored), (stored, change, change), strict=True
    ):
        assert sum_of == pytest.approx(float(one.dot(other)), rel=1e-9, abs=1e-300)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(drawn=merges(), dtype=st.sampled_from([BF16, F32]))
def test_the_compiled_change_is_that_of_the_formula(bench, drawn, dtype):
    method, options, terms, name, part = drawn
    source = made(bench, dtype, method, options, terms)
    found = changed(source.combine, source.slices(name, part))
    assert same_bits(found, source.combine(source.slices(name, part)))


@pytest.mark.parametrize("kind", ["tuned", "saved"])
@pytest.mark.parametrize(
    ("method", "option"), [(method, o) for method in METHODS for o in METHODS[method].options]
)
def test_every_option_of_a_method_changes_what_is_computed(bench, method, option, kind):
    terms, part = [(kind, 0.5), (kind, -0.7), (kind, 0.9)], slice(0, 2049)
    results = []
    for options in ({}, {option: altered(method)[option]}):
        source = made(bench, BF16, method, options, terms)
        results.append(changed(source.combine, source.slices("w2049", part)))
    assert not torch.equal(*results)


@pytest.mark.parametrize("method", ["dare", "dare_ties"])
@pytest.mark.parametrize("first", [0, 2_048, 69_900])
def test_an_entry_is_kept_at_the_rate_that_it_draws_and_dropped_above(bench, method, first):
    terms, name = [("tuned", 0.5)], "w70001"
    (around,) = made(bench, BF16, method, {}, terms).slices(name, slice(first, first + 100))
    index = first + int(around.delta.nonzero()[0])
    at = uniform(around.key, index, 1)
    above = torch.nextafter(at, torch.ones(1))
    part = slice(index, index + 1)
    for rate, kept in ((at, True), (above, False)):
        source = made(bench, BF16, method, {"drop_rate": float(rate)}, terms)
        change = changed(source.combine, source.slices(name, part))
        assert same_bits(change, source.combine(source.slices(name, part)))
        assert bool(change != 0) == kept


def test_the_methods_of_a_vote_are_compiled_but_the_one_that_ranks_rows(bench):
    for method in METHODS:
        source = made(bench, BF16, method, {}, [("tuned", 0.5)])
        done = written(bench, source, "w2049", slice(0, 2049))
        assert (done is None) == (method not in COMPILED)


# --- what is not a number ---


@pytest.fixture
def spoil(toy, tmp_path) -> Callable[..., Any]:
    """Return ``spoil(kind, value, place)``: base, a good term, a bad one, and the file at fault.

    The first tensor is sound, so that opening the term, which looks for one change, goes through.
    """
    ones = {"a": torch.ones(1).bfloat16(), "w": torch.ones(5_000).bfloat16()}
    changes = torch.linspace(0.5, 2.0, 5_000)

    def make(kind: str, value: float, place: int) -> tuple[Path, Path, Path, Path]:
        base = toy("base", **ones)
        good = toy("good", a=ones["a"] + 1, w=(1 + changes).bfloat16())
        bad = toy("bad", a=ones["a"] + 1, w=(1 - changes).bfloat16())
        if kind == "saved":
            bad = Delta.between(base, bad).save(tmp_path / "saved", storage="bfloat16")
        (file,) = bad.glob("*.safetensors")
        content = bytearray(file.read_bytes())
        at = len(content) - 2 * (5_000 - place)
        content[at : at + 2] = torch.tensor([value]).bfloat16().view(torch.uint8).numpy().tobytes()
        file.write_bytes(content)
        if kind == "saved":  # as if it had been saved like that
            record = json.loads((bad / "delta.json").read_text())
            record["hashes"]["w"] = Checkpoint(bad, read_header(file)).digests["w"]
            (bad / "delta.json").write_text(json.dumps(record))
        return base, good, bad, file

    return make


@pytest.mark.parametrize("place", [0, 2_047, 2_048, 4_999])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("kind", ["tuned", "saved"])
@pytest.mark.parametrize("method", METHODS)
def test_what_is_not_a_number_is_refused_by_name(spoil, tmp_path, method, kind, value, place):
    base, good, bad, file = spoil(kind, value, place)
    with pytest.raises(NonFiniteError) as caught:
        merge(base, [(good, 0.5), (bad, -0.5)], out=tmp_path / "out", method=method, device="cpu")
    assert str(caught.value) == f"{file}: w: 1 of 5000 values are NaN or infinite"
    assert any("delta bad" in note for note in caught.value.__notes__)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("method", METHODS)
def test_what_is_not_a_number_is_not_read_at_alpha_0(spoil, tmp_path, method):
    base, good, bad, _ = spoil("tuned", torch.nan, 0)
    found = merge(base, [(good, 0.5), (bad, 0.0)], out=tmp_path / "out", method=method).path
    alone = merge(base, [(good, 0.5)], out=tmp_path / "alone", method=method).path
    assert torch.equal(Checkpoint.open(found)["w"], Checkpoint.open(alone)["w"])


@pytest.mark.parametrize("dtype", [BF16, F32])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("alphas", [(1e39, 1e39), (-1e39, -1e39), (1e308, 1e308), (1e308, -1e307)])
def test_a_sum_that_does_not_fit_is_refused_by_name(toy, tmp_path, method, dtype, alphas):
    base, changes = torch.ones(500, dtype=dtype), torch.linspace(0.5, 2.0, 500)
    start, tuned = toy("base", w=base), toy("tuned", w=base + changes.to(dtype))
    terms = [(tuned, alpha) for alpha in alphas]
    with pytest.raises(NonFiniteError, match="does not fit torch") as caught:
        merge(start, terms, out=tmp_path / "out", method=method)
    assert "while at tensor w" in caught.value.__notes__
    assert not (tmp_path / "out").exists()


def test_the_last_number_that_fits_is_written(toy, tmp_path):
    """``base - 2 * delta`` is 3.39e38, the largest bfloat16."""
    largest = torch.finfo(BF16).max
    start = toy("base", w=torch.full((3,), largest / 2).bfloat16())
    tuned = toy("tuned", w=torch.full((3,), largest / 4).bfloat16())
    out = merge(start, [(tuned, -2.0)], out=tmp_path / "out").path
    assert torch.equal(Checkpoint.open(out)["w"], torch.full((3,), largest).bfloat16())


# --- shapes ---


@pytest.mark.parametrize("shape", [(), (1,), (3, 0), (0,), (1, 1), (2, 1, 3)], ids=str)
@pytest.mark.parametrize("method", METHODS)
def test_every_method_merges_tensors_of_every_shape(toy, tmp_path, method, shape):
    ones = torch.ones(4, 5).bfloat16()
    odd = torch.ones(shape).bfloat16()
    start, tuned = toy("base", a=ones, odd=odd), toy("tuned", a=2 * ones, odd=2 * odd)
    found = Checkpoint.open(merge(start, [(tuned, 0.5)], out=tmp_path / "o", method=method).path)
    assert found["odd"].shape == shape
    # Chance keeps a change rescaled or drops it, and an outlier is left out.
    assert bool(((found["odd"] == 1.0) | (found["odd"] >= 1.5)).all())


@pytest.mark.parametrize("method", METHODS)
def test_a_row_of_more_than_a_million_entries_is_cut_or_refused(toy, tmp_path, method):
    ones = torch.ones(2**20 + 7).bfloat16()
    start, tuned = toy("base", w=ones), toy("tuned", w=2 * ones)
    if method == "della":
        with pytest.raises(RecipeError, match="della ranks the entries of a row, and those of w"):
            merge(start, [(tuned, 0.5)], out=tmp_path / "o", method=method)
        return
    found = Checkpoint.open(merge(start, [(tuned, 0.5)], out=tmp_path / "o", method=method).path)
    assert bool(((found["w"] == 1.0) | (found["w"] >= 1.5)).all())
