from itertools import chain

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from src.data.epoch_loader import EpochLoader, epoch_order


def make_loader(n_items=10, group_size=3, seed=0, **kwargs):
    return EpochLoader(n_items, group_size, lambda positions: positions.tolist(), seed, **kwargs)


@given(n_items=st.integers(1, 60), group_size=st.integers(1, 70), seed=st.integers(0, 5))
def test_every_item_once_an_epoch_in_the_order_of_seed_and_epoch(n_items, group_size, seed):
    loader = make_loader(n_items, group_size, seed)
    for epoch in range(3):
        groups = list(loader)
        assert len(groups) == len(loader)
        assert [len(group) for group in groups[:-1]] == [group_size] * (len(groups) - 1)
        assert list(chain(*groups)) == epoch_order(n_items, seed, epoch).tolist()
        assert sorted(chain(*groups)) == list(range(n_items))


def test_epochs_and_seeds_differ_and_the_same_repeats():
    orders = {tuple(epoch_order(50, seed, epoch)) for seed in range(3) for epoch in range(3)}
    assert len(orders) == 9
    np.testing.assert_array_equal(epoch_order(50, 1, 2), epoch_order(50, 1, 2))
    np.testing.assert_array_equal(epoch_order(5, None, 2), range(5))


@given(
    n_items=st.integers(1, 30),
    group_size=st.integers(1, 12),
    stop_after=st.integers(0, 40),
    n_resumes=st.integers(1, 3),
)
def test_resumed_order_continues_the_uninterrupted_one(n_items, group_size, stop_after, n_resumes):
    def stream(loader):
        while True:
            yield from loader

    whole, n_groups = stream(make_loader(n_items, group_size)), (n_resumes + 1) * stop_after
    expected = [next(whole) for _ in range(n_groups)]
    seen, state = [], None
    for _ in range(n_resumes + 1):
        loader = make_loader(n_items, group_size)
        if state is not None:
            loader.load_state_dict(state)
        part = stream(loader)
        seen += [next(part) for _ in range(stop_after)]
        state = loader.state_dict()
    assert seen == expected


def test_epoch_that_was_left_early_is_not_continued():
    loader = make_loader(n_items=10, group_size=3)
    next(iter(loader))
    assert list(chain(*loader)) == epoch_order(10, 0, 1).tolist()


def test_iterator_that_was_never_asked_starts_no_epoch():
    loader = make_loader()
    iter(loader)
    assert loader.state_dict()["epoch"] == 0
    assert list(chain(*loader)) == epoch_order(10, 0, 0).tolist()


def test_group_in_the_consumers_hands_comes_again():
    for n_taken, position in ((1, (0, 0)), (2, (0, 3)), (4, (0, 9))):
        loader = make_loader(n_unfinished=lambda: 1)
        groups = iter(loader)
        for _ in range(n_taken):
            next(groups)
        state = loader.state_dict()
        assert (state["epoch"], state["consumed"]) == position


def test_state_at_the_end_of_an_epoch_is_the_start_of_the_next():
    loader = make_loader()
    list(loader)
    state = loader.state_dict()
    assert (state["epoch"], state["consumed"]) == (1, 0)


@pytest.mark.parametrize("other", [{"n_items": 11}, {"group_size": 4}, {"seed": 1}])
def test_state_of_another_order_is_refused(other):
    (name,) = other
    with pytest.raises(ValueError, match=f"Expected a checkpoint made with {name}="):
        make_loader().load_state_dict(make_loader(**other).state_dict())


def test_group_size():
    with pytest.raises(ValueError, match="group size of at least 1, got 0"):
        make_loader(group_size=0)
