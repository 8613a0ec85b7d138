import numpy as np
import pytest
import torch

from src.data.feeding.item_vectors import latent_pieces, pool_vectors
from src.ops.sparse_latents import SparseLatents

N_ROWS = [3, 1, 4, 2]


def make_items(seed=0):
    rng = np.random.default_rng(seed)
    return [(rng.gamma(1.0, size=(n, 5)) * (rng.random((n, 5)) < 0.5)).astype(np.float32) for n in N_ROWS]


def pieces(items, size, order, is_sparse):
    rows = torch.from_numpy(np.concatenate([items[position] for position in order]))
    positions = np.repeat(order, [len(items[position]) for position in order])
    for start in range(0, len(rows), size):
        piece = rows[start : start + size]
        yield positions[start : start + size], SparseLatents.from_dense(piece) if is_sparse else piece


EXPECTED = {
    "mean": lambda items: np.stack([item.mean(0) for item in items]),
    "max": lambda items: np.stack([item.max(0) for item in items]),
    "cls": lambda items: np.stack([item[0] for item in items]),
    "none": np.concatenate,
}


@pytest.mark.parametrize("is_sparse", [True, False])
@pytest.mark.parametrize("size", [1, 3, 100])
@pytest.mark.parametrize("pool", list(EXPECTED))
def test_pieces_of_any_size_and_order_pool_to_the_same(tmp_path, pool, size, is_sparse):
    items = make_items()
    items = items if is_sparse else [item - 1 for item in items]  # activations may be negative throughout
    expected = EXPECTED[pool](items)
    for order in ([0, 1, 2, 3], [2, 0, 3, 1]):
        for ram_bytes in (1 << 20, 0):
            found = pool_vectors(pieces(items, size, order, is_sparse), N_ROWS, 5, pool, tmp_path, ram_bytes)
            np.testing.assert_allclose(found.values, expected, rtol=1e-6, atol=1e-7)
            assert isinstance(found.values, np.memmap) == (ram_bytes == 0)
    assert found.items.tolist() == ([0, 0, 0, 1, 2, 2, 2, 2, 3, 3] if pool == "none" else [0, 1, 2, 3])
    assert list(tmp_path.iterdir()) == []


def test_vectors_of_consecutive_items(tmp_path):
    found = pool_vectors(pieces(make_items(), 100, [0, 1, 2, 3], True), N_ROWS, 5, "none", tmp_path)
    assert found.of(range(1, 3)) == slice(3, 8)
    assert found.of(range(3, 3)) == slice(8, 8)


def test_an_item_with_other_rows_than_said_is_refused(tmp_path):
    with pytest.raises(ValueError, match="Expected 4 rows, at least one, of item 2, got 0"):
        pool_vectors(pieces(make_items(), 100, [0, 1, 3], True), N_ROWS, 5, "mean", tmp_path)
    with pytest.raises(ValueError, match="got 'median'"):
        pool_vectors([], N_ROWS, 5, "median", tmp_path)


def test_latents_of_some_neurons_come_in_the_order_asked_for():
    class Source:
        def read(self, item_ids):
            yield np.array([0, 0]), SparseLatents.from_dense(torch.tensor([[0.0, 1, 2], [3, 0, 5]]))

    ((_, dense),) = latent_pieces(Source(), ["a"], [2, 0])
    assert dense.tolist() == [[2.0, 0.0], [5.0, 3.0]]
    ((_, sparse),) = latent_pieces(Source(), ["a"])
    assert isinstance(sparse, SparseLatents)
