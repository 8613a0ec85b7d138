import threading
from itertools import chain

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from src.data.feeding import feeds
from src.data.feeding.epoch_order import EpochOrder, block_batches
from src.data.feeding.feeds import DeviceFeed, RamFeed, WindowFeed, read_in_order, windowed_order
from tests.data.sources import NumberedRows

CPU = torch.device("cpu")


def threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("prefetch")]


def make_feed(kind, source, n_workers):
    if kind == "gpu":
        return DeviceFeed(source, CPU)
    return RamFeed(source, n_workers) if kind == "ram" else WindowFeed(source, n_workers)


def rows_of(feed, order, start, batch_size, block_size, rank=0, n_ranks=1):
    """The rows of each batch, read to the end of the epoch from a place in it."""
    ends = range(start, len(order), batch_size * block_size)
    blocks = [(first, min(first + batch_size * block_size, len(order))) for first in ends]
    pieces = [block_batches(*block, batch_size, rank, n_ranks) for block in blocks]
    batches = []
    for block in feed.read(order, pieces):
        for batch in block:
            assert batch.dtype == torch.float32
            batches.append(batch[:, 0].int().tolist())
            batch[:] = -1  # what is handed out is the consumer's own
    return batches


@settings(max_examples=80, deadline=None)
@given(
    kind=st.sampled_from(["gpu", "ram", "mmap"]),
    n_rows=st.integers(1, 120),
    chunk=st.integers(1, 9),
    window=st.integers(1, 6),
    n_workers=st.integers(0, 3),
    n_ranks=st.integers(1, 4),
    batch_size=st.integers(1, 20),
    block_size=st.integers(1, 4),
    dtype=st.sampled_from([np.float16, np.float32]),
    start=st.integers(0, 119),
)
def test_every_row_once_in_order_whatever_reads_them(
    kind, n_rows, chunk, window, n_workers, n_ranks, batch_size, block_size, dtype, start
):
    source = NumberedRows(n_rows, dtype=dtype)
    start = start // batch_size * batch_size % n_rows
    for epoch in (0, 1):
        order = EpochOrder(n_rows, 3, chunk, window).epoch(epoch)
        expected = order[start:].tolist()
        of_ranks = [
            rows_of(make_feed(kind, source, n_workers), order, start, batch_size, block_size, rank, n_ranks)
            for rank in range(n_ranks)
        ]
        batches = [list(chain(*pieces)) for pieces in zip(*of_ranks, strict=True)]
        assert list(chain(*batches)) == expected
        assert [len(batch) for batch in batches[:-1]] == [batch_size] * (len(batches) - 1)
        assert start > 0 or sorted(expected) == list(range(n_rows))
    assert not threads()


@pytest.mark.parametrize("kind", ["gpu", "ram"])
def test_one_permutation_of_all_rows_held_in_memory(kind):
    order = EpochOrder(50, 3).epoch(1)
    source = NumberedRows(50)
    feed = make_feed(kind, source, 1)
    assert list(chain(*rows_of(feed, order, 10, 4, 2))) == order[10:].tolist()
    assert list(chain(*rows_of(feed, order, 0, 4, 2))) == order.tolist()
    assert source.reads == [(0, 50)]


@pytest.mark.parametrize("n_workers", [0, 1, 2, 5])
def test_each_chunk_is_read_once_an_epoch_in_the_order_of_the_source_within_a_window(n_workers):
    source = NumberedRows(101)
    feed = WindowFeed(source, n_workers)
    order = EpochOrder(101, 0, chunk=7, window=4).epoch(0)
    rows_of(feed, order, 0, 10, 2)
    assert sorted(source.reads) == [(start, min(start + 7, 101)) for start in range(0, 101, 7)]
    if n_workers < 2:
        assert source.reads == [span for window in order.windows(0, 101) for span in window.spans]


def test_windows_are_not_read_far_ahead():
    source = NumberedRows(1000)
    feed = WindowFeed(source, n_workers=2)
    order = EpochOrder(1000, 0, chunk=5, window=4).epoch(0)
    blocks = feed.read(order, [block_batches(start, start + 10, 10) for start in range(0, 1000, 10)])
    next(blocks)
    # 10 rows are used and 20 made or in the making, of windows of 20: two windows, and the next one.
    assert len(source.reads) <= 12
    blocks.close()
    assert not threads()


@pytest.mark.parametrize("kind", ["ram", "mmap"])
@pytest.mark.parametrize("n_workers", [0, 1, 2])
def test_failure_to_read_reaches_the_consumer(kind, n_workers):
    feed = make_feed(kind, NumberedRows(100, fail_at=77), n_workers)
    with pytest.raises(OSError, match="disk gone"):
        rows_of(feed, EpochOrder(100, 0, chunk=5, window=4).epoch(0), 0, 10, 1)
    assert not threads()


def test_window_and_chunk_by_bytes(monkeypatch):
    monkeypatch.setattr(feeds, "CHUNK_BYTES", 64)
    order = windowed_order(NumberedRows(1000, d_in=2), seed=1, window_bytes=640)
    assert (order.n_items, order.chunk, order.window) == (1000, 8, 10)
    assert windowed_order(NumberedRows(1000, d_in=2, dtype=np.float16), 1, 640).chunk == 16
    assert windowed_order(NumberedRows(80, d_in=2), seed=1, window_bytes=640) == EpochOrder(80, 1)
    assert windowed_order(NumberedRows(81, d_in=2), seed=1, window_bytes=640).window == 10
    wide = windowed_order(NumberedRows(10, d_in=1000), seed=1, window_bytes=640)
    assert (wide.chunk, wide.window) == (1, 1)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_rows_in_order(dtype):
    batches = read_in_order(NumberedRows(9, dtype=dtype), [(0, 4), (4, 8), (8, 9)])
    assert [batch[:, 0].tolist() for batch in batches] == [[0, 1, 2, 3], [4, 5, 6, 7], [8]]
