from itertools import chain

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from src.data.feeding.epoch_order import EpochOrder, block_batches, epoch_order

sizes = st.integers(1, 60)


@settings(deadline=None)
@given(n_items=st.integers(1, 200), chunk=sizes, window=st.integers(1, 12), seed=st.integers(0, 5))
def test_windows_hold_every_item_once_and_can_be_entered_anywhere(n_items, chunk, window, seed):
    order = EpochOrder(n_items, seed, chunk, window).epoch(3)
    whole = order[:]
    assert len(whole) == len(order) == n_items
    assert sorted(whole) == list(range(n_items))
    for start in range(0, n_items, 7):
        np.testing.assert_array_equal(order[start : start + 11], whole[start : start + 11])
    assert len(order[n_items:]) == 0
    windows = list(order.windows(0, n_items))
    assert len(windows) == order.n_windows == -(-n_items // (chunk * window))
    assert [w.stop for w in windows] == [w.start for w in windows[1:]] + [n_items]
    for w in windows:
        assert w.spans == sorted(w.spans)
        assert len(w.spans) <= window
        assert all(start % chunk == 0 and 0 < stop - start <= chunk for start, stop in w.spans)
        assert len(w.permutation) <= order.window_size
        np.testing.assert_array_equal(
            np.concatenate([np.arange(*span) for span in w.spans])[w.permutation], whole[w.start : w.stop]
        )


@pytest.mark.parametrize("windows", [{}, {"chunk": 4, "window": 3}])
def test_epochs_and_seeds_differ_and_the_same_repeats(windows):
    orders = {tuple(EpochOrder(50, seed, **windows).epoch(epoch)[:]) for seed in range(3) for epoch in range(3)}
    assert len(orders) == 9
    order = EpochOrder(50, 1, **windows)
    np.testing.assert_array_equal(order.epoch(2)[:], order.epoch(2)[:])


def test_without_a_seed_in_order():
    assert list(EpochOrder(5, None).epoch(2)[1:4]) == [1, 2, 3]


def test_one_permutation_is_seeded_by_seed_and_epoch():
    np.testing.assert_array_equal(EpochOrder(50, 1).epoch(2), epoch_order(50, 1, 2))


def test_chunks_stay_together_in_windows_and_windows_mix_chunks():
    order = EpochOrder(1000, 0, chunk=10, window=5).epoch(0)
    for window in order.windows(0, 1000):
        chunks = {item // 10 for item in order[window.start : window.stop].tolist()}
        assert len(chunks) == 5
        assert len({item // 10 for item in order[window.start : window.start + 10].tolist()}) > 2


@settings(deadline=None)
@given(start=sizes, n=sizes, batch_size=st.integers(1, 20), n_ranks=st.integers(1, 9))
def test_pieces_of_the_ranks_joined_are_the_batches(start, n, batch_size, n_ranks):
    of_ranks = [block_batches(start, start + n, batch_size, rank, n_ranks) for rank in range(n_ranks)]
    for i, first in enumerate(range(start, start + n, batch_size)):
        batch = np.arange(first, min(first + batch_size, start + n))
        pieces = [np.arange(*pieces[i]) for pieces in of_ranks]
        for piece, expected in zip(pieces, np.array_split(batch, n_ranks), strict=True):
            np.testing.assert_array_equal(piece, expected)
        assert list(chain(*pieces)) == batch.tolist()
