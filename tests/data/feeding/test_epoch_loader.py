from itertools import chain

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from src.data.feeding.epoch_loader import EpochLoader
from src.data.feeding.epoch_order import EpochOrder


def make_loader(n_items=10, batch_size=3, seed=0, chunk=None, window=None, **kwargs):
    def read(positions, blocks):
        return (np.asarray(positions[start:stop]).tolist() for start, stop in blocks)

    return EpochLoader(EpochOrder(n_items, seed, chunk, window), batch_size, read, **kwargs)


def order_of(loader, epoch):
    return np.asarray(loader.order.epoch(epoch)[:]).tolist()


orders = st.one_of(st.just({}), st.fixed_dictionaries({"chunk": st.integers(1, 9), "window": st.integers(1, 5)}))


@settings(deadline=None)
@given(
    n_items=st.integers(1, 60),
    batch_size=st.integers(1, 20),
    block_size=st.integers(1, 5),
    seed=st.integers(0, 5),
    windows=orders,
)
def test_every_item_once_an_epoch_in_the_order_of_seed_and_epoch(n_items, batch_size, block_size, seed, windows):
    loader = make_loader(n_items, batch_size, seed, block_size=block_size, **windows)
    for epoch in range(3):
        blocks = list(loader)
        assert len(blocks) == len(loader)
        assert [len(block) for block in blocks[:-1]] == [batch_size * block_size] * (len(blocks) - 1)
        assert list(chain(*blocks)) == order_of(loader, epoch)
        assert sorted(chain(*blocks)) == list(range(n_items))


@settings(deadline=None)
@given(
    n_items=st.integers(1, 30),
    batch_size=st.integers(1, 6),
    block_sizes=st.lists(st.tuples(st.integers(1, 4), st.integers(0, 20)), min_size=2, max_size=4),
    windows=orders,
)
def test_resumed_order_continues_the_uninterrupted_one_also_with_other_blocks(
    n_items, batch_size, block_sizes, windows
):
    """Cut at any block, as often as it may be, and resumed with blocks of another size."""

    def stream(loader):
        while True:
            yield from loader

    seen, state = [], None
    for block_size, n_blocks in block_sizes:
        loader = make_loader(n_items, batch_size, block_size=block_size, **windows)
        if state is not None:
            loader.load_state_dict(state)
        part = stream(loader)
        blocks = [next(part) for _ in range(n_blocks)]
        assert loader.n_blocks_done <= len(loader)
        seen += chain(*blocks)
        state = loader.state_dict()
    epochs = chain(*(order_of(loader, epoch) for epoch in range(len(seen) // n_items + 1)))
    assert seen == list(epochs)[: len(seen)]
    assert (state["epoch"], state["consumed"]) == divmod(len(seen), n_items)


def test_count_of_blocks_that_are_done():
    loader = make_loader(n_items=20, batch_size=2, block_size=1)
    blocks = iter(loader)
    for n_done in range(1, 8):
        next(blocks)
        assert loader.n_blocks_done == n_done
    resumed = make_loader(n_items=20, batch_size=2, block_size=4)
    resumed.load_state_dict(loader.state_dict())  # 14 of 20: one more block, of three
    assert resumed.n_blocks_done + len(list(resumed)) == 3


def test_epoch_that_was_left_early_is_not_continued():
    loader = make_loader(n_items=10)
    next(iter(loader))
    assert list(chain(*loader)) == order_of(loader, 1)


def test_iterator_that_was_never_asked_starts_no_epoch():
    loader = make_loader()
    iter(loader)
    assert loader.state_dict()["epoch"] == 0
    assert list(chain(*loader)) == order_of(loader, 0)


def test_block_in_the_consumers_hands_comes_again():
    for n_taken, position in ((1, (0, 0)), (2, (0, 3)), (4, (0, 9))):
        loader = make_loader(n_unfinished=lambda: 1)
        blocks = iter(loader)
        for _ in range(n_taken):
            next(blocks)
        state = loader.state_dict()
        assert (state["epoch"], state["consumed"]) == position


def test_block_that_comes_again_begins_where_it_began():
    first = make_loader()
    next(iter(first))
    resumed = make_loader(block_size=2, n_unfinished=lambda: 1)
    resumed.load_state_dict(first.state_dict())
    assert resumed.state_dict()["consumed"] == 3
    next(iter(resumed))
    assert resumed.state_dict()["consumed"] == 3


def test_state_at_the_end_of_an_epoch_is_the_start_of_the_next():
    loader = make_loader()
    list(loader)
    state = loader.state_dict()
    assert (state["epoch"], state["consumed"]) == (1, 0)


@pytest.mark.parametrize("end", ["close", "iter", "load", "drop"])
def test_reading_ahead_ends_with_the_iteration(end):
    closed = []

    def read(positions, blocks):
        try:
            yield from blocks
        finally:
            closed.append(True)

    loader = EpochLoader(EpochOrder(10, 0), 3, read)
    blocks = iter(loader)
    next(blocks)
    assert not closed
    if end == "close":
        loader.close()
    elif end == "iter":
        next(iter(loader))
    elif end == "load":
        loader.load_state_dict(loader.state_dict())
    else:
        blocks.close()
    assert closed


OTHERS = [{"n_items": 11}, {"batch_size": 4}, {"seed": 1}, {"data": "y"}, {"chunk": 2, "window": 2}]


@pytest.mark.parametrize("other", OTHERS)
def test_state_of_another_order_is_refused(other):
    name = next(iter(other))
    state = make_loader(**other).state_dict()
    with pytest.raises(ValueError, match=rf"Expected a checkpoint made with ({name}|order)=.*Resume with the data"):
        make_loader().load_state_dict(state)
    other_windows = make_loader(chunk=2, window=3)
    with pytest.raises(ValueError, match=r"Expected a checkpoint made with .*Resume with the data"):
        other_windows.load_state_dict(state)


def test_state_without_what_decides_is_refused():
    with pytest.raises(ValueError, match="made with n_items=10, got None"):
        make_loader().load_state_dict({"epoch": 0, "consumed": 3})
