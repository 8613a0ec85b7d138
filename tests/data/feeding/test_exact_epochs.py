"""Properties of the whole path from a store of several shards to the batches of several processes."""

from itertools import chain
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from src.data.feeding import feeds
from src.data.feeding.activations import ActivationDataModule
from src.data.feeding.rows import StoreRows
from src.stores.activations import writer
from tests.data.stores import pack

LENGTHS = {"b": 30, "a": 11, "d": 47, "c": 1, "e": 20}
TRAIN = ["d", "b", "c", "e"]
N_ROWS = 98


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Rows whose first value is their number among the train rows; shards of 25 rows, or of one larger item."""
    numbers, bags = 0, {"a": np.full((11, 2), -1)}
    for item_id in TRAIN:
        bags[item_id] = np.arange(numbers, numbers + LENGTHS[item_id])[:, None] * np.array([1, -1])
        numbers += LENGTHS[item_id]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writer, "SHARD_BYTES", 25 * 2 * 4)
        store = pack(tmp_path_factory.mktemp("shards"), {item_id: bags[item_id] for item_id in LENGTHS})
    assert len(list(store.path.glob("shard_*.npy"))) == 5
    return store


def make_ranks(store, n_ranks, batch_size, block_size, n_workers, residency, seed=0):
    """A data module for each process."""
    strategy = SimpleNamespace(root_device=torch.device("cpu"), broadcast=lambda choice: choice)
    ranks = []
    for rank in range(n_ranks):
        data = ActivationDataModule(
            StoreRows(store, TRAIN), StoreRows(store, ["a"]), batch_size, block_size, seed,
            residency=residency, n_workers=n_workers, window_bytes=8 * 8 * 3,
        )  # fmt: skip
        data.trainer = SimpleNamespace(global_rank=rank, world_size=n_ranks, strategy=strategy)
        ranks.append(data)
    return ranks


def batches_of(ranks, n_blocks=None):
    """The batches of the next blocks, each put together from the pieces of the processes."""
    iterators = [iter(data.train_dataloader()) for data in ranks]
    batches, n_taken = [], 0
    while n_taken != n_blocks:
        blocks = [next(iterator, None) for iterator in iterators]
        if blocks[0] is None:
            break
        n_taken += 1
        for pieces in zip(*blocks, strict=True):
            assert {tuple(piece.shape[1:]) for piece in pieces} == {(2,)}
            batches.append([int(value) for piece in pieces for value in piece[:, 0]])
    for iterator in iterators:
        iterator.close()
    return batches


settings_of_a_run = st.fixed_dictionaries(
    {"n_ranks": st.integers(1, 4), "block_size": st.integers(1, 5), "n_workers": st.integers(0, 3)}
)


@settings(max_examples=60, deadline=None)
@given(
    chunk=st.integers(1, 12),
    batch_size=st.integers(1, 40),
    residency=st.sampled_from(["ram", "mmap", "stream"]),
    before=settings_of_a_run,
    after=settings_of_a_run,
    n_blocks=st.integers(0, 12),
    seed=st.integers(0, 3),
)
def test_every_row_once_an_epoch_also_across_a_restart_with_other_settings(
    store, chunk, batch_size, residency, before, after, n_blocks, seed
):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(feeds, "CHUNK_BYTES", chunk * 8)
        common = {"batch_size": batch_size, "residency": residency, "seed": seed}
        whole = make_ranks(store, 1, block_size=1, n_workers=0, **common)
        epochs = [batches_of(whole) for _ in range(2)]
        for batches in epochs:
            assert sorted(chain(*batches)) == list(range(N_ROWS))
            assert [len(batch) for batch in batches[:-1]] == [batch_size] * (len(batches) - 1)
        assert epochs[0] != epochs[1]
        assert batches_of(make_ranks(store, 1, block_size=1, n_workers=0, **common)) == epochs[0]
        begun = make_ranks(store, **before, **common)
        seen = batches_of(begun, n_blocks)
        states = [data.state_dict() for data in begun]
        assert all(state == states[0] for state in states)
        resumed = make_ranks(store, **after, **common)
        for data in resumed:
            data.load_state_dict(states[0])
        rest = batches_of(resumed)
        if len(seen) == len(epochs[0]):
            assert (seen, rest) == (epochs[0], epochs[1])
        else:
            assert seen + rest == epochs[0]
