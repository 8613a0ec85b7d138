"""Runs tasks in threads a bounded way ahead of who needs their results."""

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

T = TypeVar("T")


def prefetch(tasks: Iterable[Callable[[], T]], n_workers: int, n_ahead: int) -> Generator[T, None, None]:
    """Yields the results of the tasks, in order.

    No thread ever waits for a place to put a result, so closing the iterator (or dropping it) waits for the tasks that
    run and ends the threads.

    Args:
        tasks: asked for one by one, in the consumer's thread.
        n_workers: threads; 0 runs each task when its result is asked for.
        n_ahead: results made or in the making beyond the one the consumer has.

    Raises:
        Exception: what a task raised, when its result is asked for.
    """
    if not n_workers:
        for task in tasks:
            yield task()
        return
    pool = ThreadPoolExecutor(n_workers, thread_name_prefix="prefetch")
    try:
        tasks = iter(tasks)
        pending: deque[Future[T]] = deque(pool.submit(task) for task in islice(tasks, n_ahead))
        while pending:
            result = pending.popleft().result()
            pending.extend(pool.submit(task) for task in islice(tasks, 1))
            yield result
            del result
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
