import numpy as np
import pytest
import torch

from src.analysis.pooling import pool_slides
from src.ops.sparse_latents import SparseLatents


def test_sparse_and_dense_pool_alike():
    rng = np.random.default_rng(0)
    dense = {
        item_id: (rng.random((n, 6)) * (rng.random((n, 6)) < 0.2)).astype(np.float32)
        for item_id, n in (("1", 3), ("02", 7))
    }
    sparse = {item_id: SparseLatents.from_dense(torch.from_numpy(values)) for item_id, values in dense.items()}
    of_dense, of_sparse = (pool_slides(slides.__getitem__, ["02", "1"]) for slides in (dense, sparse))
    assert of_sparse.item_ids == ("02", "1")
    np.testing.assert_array_equal(of_sparse.maxima, np.stack([dense["02"].max(0), dense["1"].max(0)]))
    np.testing.assert_array_equal(of_sparse.maxima, of_dense.maxima)
    np.testing.assert_array_equal(of_sparse.density, of_dense.density)
    np.testing.assert_allclose(of_sparse.density, (np.concatenate([*dense.values()]) > 0).mean(0))


def test_negative_channels_keep_their_maximum():
    pooled = pool_slides(lambda _: np.array([[-3.0], [-1.0]], dtype=np.float32), ["a"])
    assert pooled.maxima.tolist() == [[-1.0]]
    assert pooled.density.tolist() == [0.0]


def test_nothing_to_pool():
    with pytest.raises(ValueError, match="Expected slides to pool"):
        pool_slides(lambda _: np.zeros((1, 1)), [])
    with pytest.raises(ValueError, match="at least one patch of slide empty"):
        pool_slides(lambda _: np.zeros((0, 1)), ["empty"])
