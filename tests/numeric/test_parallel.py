"""Work on all cores yields in order, stops at an error, and leaves no trace in torch."""

import os
import threading
import time
from collections.abc import Callable, Iterator

import pytest
import torch

from personality_vector.errors import RecipeError
from personality_vector.numeric.parallel import cores, in_parallel

EVERY = pytest.mark.parametrize("number", [1, 3])


@pytest.fixture
def use(monkeypatch) -> Callable[[int], None]:
    """Return ``use(number)``: work on so many threads from now on."""
    return lambda number: monkeypatch.setenv("PVEC_THREADS", str(number))


@pytest.fixture
def torch_threads() -> Iterator[int]:
    """Give torch two threads, and afterwards those that it had."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield 2
    torch.set_num_threads(before)


@pytest.mark.parametrize("number", [1, 2, 7])
def test_cores_are_those_asked_for(use, number):
    use(number)
    assert cores() == number


@pytest.mark.parametrize("number", ["0", "two", "-3", "1.5"])
def test_what_is_no_number_of_threads_is_refused(use, number):
    use(number)
    with pytest.raises(RecipeError, match=f"PVEC_THREADS={number}: write a number of threads"):
        cores()


def test_unless_asked_cores_are_those_of_this_process(monkeypatch):
    expected = len(os.sched_getaffinity(0))
    monkeypatch.setenv("PVEC_THREADS", "")
    assert cores() == expected
    monkeypatch.delenv("PVEC_THREADS")
    assert cores() == expected


@EVERY
@pytest.mark.parametrize("count", [0, 1, 2, 20])
def test_results_have_the_order_of_the_items(use, number, count):
    def work(item: int) -> int:
        time.sleep(0.02 if item % 5 == 0 else 0.0)  # others overtake it
        return item * item

    use(number)
    assert list(in_parallel(work, range(count))) == [item * item for item in range(count)]


def test_as_many_items_are_worked_on_at_once_as_there_are_threads(use):
    use(3)
    barrier = threading.Barrier(3, timeout=10)  # opens only if three wait at once
    assert len(list(in_parallel(lambda _: barrier.wait(), range(6)))) == 6


@EVERY
def test_an_error_comes_out_and_stops_the_rest(use, number):
    begun = []

    def work(item: int) -> int:
        begun.append(item)
        if item == 2:
            raise ValueError("item 2")
        time.sleep(0.01)
        return item

    use(number)
    results = in_parallel(work, range(200))
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(ValueError, match="item 2"):
        next(results)
    stopped = len(begun)
    assert stopped < 20
    time.sleep(0.05)
    assert len(begun) == stopped


@EVERY
def test_a_caller_that_stops_listening_stops_the_rest(use, number):
    begun = []

    def work(item: int) -> int:
        begun.append(item)
        time.sleep(0.01)
        return item

    use(number)
    results = in_parallel(work, range(200))
    assert next(results) == 0
    results.close()
    stopped = len(begun)
    assert stopped < 20
    time.sleep(0.05)
    assert len(begun) == stopped


def test_work_inside_work_is_done_alone(use):
    use(3)

    def inner(item: int) -> tuple[int, int]:
        return item, threading.get_ident()

    def outer(_: int) -> bool:
        found = list(in_parallel(inner, range(5)))
        return found == [(i, threading.get_ident()) for i in range(5)]

    assert list(in_parallel(outer, range(4))) == [True] * 4
    own = {thread for _, thread in in_parallel(inner, range(9))}
    assert threading.get_ident() not in own


@EVERY
def test_torch_has_one_thread_meanwhile_and_as_many_as_before_afterwards(
    use, number, torch_threads
):
    use(number)
    seen = list(in_parallel(lambda _: torch.get_num_threads(), range(6)))
    assert seen == [1] * 6
    assert torch.get_num_threads() == torch_threads


@EVERY
def test_torch_has_its_threads_back_after_an_error_and_an_early_end(use, number, torch_threads):
    use(number)
    with pytest.raises(ZeroDivisionError):
        list(in_parallel(lambda item: 1 // item, range(6)))
    assert torch.get_num_threads() == torch_threads
    results = in_parallel(lambda item: item, range(6))
    next(results)
    results.close()
    assert torch.get_num_threads() == torch_threads


@EVERY
def test_threads_that_begin_later_have_those_of_torch(use, number, torch_threads):
    use(number)
    list(in_parallel(lambda item: item, range(6)))
    seen = []
    later = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
    later.start()
    later.join()
    assert seen == [torch_threads]
