import gc
import threading
import time
from functools import partial

import pytest

from src.prefetch import prefetch


def threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("prefetch")]


@pytest.mark.parametrize("n_workers", [0, 1, 3])
def test_results_in_order_and_no_thread_left(n_workers):
    def task(i):
        time.sleep(0.002 * (i % 3))
        return i

    assert list(prefetch((partial(task, i) for i in range(20)), n_workers, 3)) == list(range(20))
    assert list(prefetch([], n_workers, 3)) == []
    assert not threads()


@pytest.mark.parametrize(("n_workers", "n_ahead"), [(0, 2), (1, 2), (4, 2), (2, 1)])
def test_never_further_ahead(n_workers, n_ahead):
    started = []
    results = prefetch((partial(started.append, i) for i in range(20)), n_workers, n_ahead)
    for n_taken in range(1, 10):
        next(results)
        time.sleep(0.005)
        assert len(started) <= n_taken + n_ahead
    if n_workers:
        assert len(started) == 9 + n_ahead
    results.close()


@pytest.mark.parametrize("n_workers", [0, 2])
def test_exception_comes_in_its_place_and_ends_the_threads(n_workers):
    def task(i):
        if i == 3:
            raise OSError("disk gone")
        return i

    seen = []
    with pytest.raises(OSError, match="disk gone"):
        seen.extend(prefetch((partial(task, i) for i in range(9)), n_workers, 2))
    assert seen == [0, 1, 2]
    assert not threads()


@pytest.mark.parametrize("end", ["close", "drop"])
def test_iterator_left_early_ends_its_threads(end):
    results = prefetch((partial(time.sleep, 0.001) for _ in range(100)), 2, 2)
    next(results)
    assert threads()
    if end == "close":
        results.close()
    else:
        del results
        gc.collect()
    assert not threads()
