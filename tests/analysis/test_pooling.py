import numpy as np
import pytest
import torch

from src.analysis.pooling import pool_items
from src.ops.sparse_latents import SparseLatents


def test_sparse_and_dense_pool_alike():
    rng = np.random.default_rng(0)
    dense = {
        item_id: (rng.random((n, 6)) * (rng.random((n, 6)) < 0.2)).astype(np.float32)
        for item_id, n in (("1", 3), ("02", 7))
    }
    together = np.concatenate([dense["02"], dense["1"]])
    codes = np.repeat([0, 1], [7, 3])
    cuts = [(codes[a:b], together[a:b]) for a, b in ((0, 5), (5, 9), (9, 10))]  # of both items, and of a part of one
    of_dense = pool_items(cuts, ["02", "1"])
    of_sparse = pool_items(
        ((codes, SparseLatents.from_dense(torch.from_numpy(values))) for codes, values in cuts), ["02", "1"]
    )
    assert of_sparse.item_ids == ("02", "1")
    for pool, expected in (
        ("mean", lambda rows: rows.mean(0)),
        ("active_fraction", lambda rows: (rows > 0).mean(0)),
        ("top_mean", lambda rows: np.sort(rows, axis=0)[-int(np.ceil(0.3 * len(rows))) :].mean(0)),
    ):
        pooled = pool_items(cuts, ["02", "1"], pool, top_share=0.3)
        np.testing.assert_allclose(pooled.values, np.stack([expected(dense["02"]), expected(dense["1"])]), rtol=1e-6)
        again = pool_items(
            ((codes, SparseLatents.from_dense(torch.from_numpy(values))) for codes, values in cuts),
            ["02", "1"],
            pool,
            top_share=0.3,
        )
        np.testing.assert_allclose(again.values, pooled.values, rtol=1e-6)
        np.testing.assert_array_equal(again.density, of_sparse.density)
    np.testing.assert_array_equal(of_sparse.values, np.stack([dense["02"].max(0), dense["1"].max(0)]))
    np.testing.assert_array_equal(of_sparse.values, of_dense.values)
    np.testing.assert_array_equal(of_sparse.density, of_dense.density)
    np.testing.assert_allclose(of_sparse.density, (together > 0).mean(0))


def test_negative_channels_keep_their_maximum():
    pooled = pool_items([(np.zeros(2, np.int64), np.array([[-3.0], [-1.0]], dtype=np.float32))], ["a"])
    assert pooled.values.tolist() == [[-1.0]]
    assert pooled.density.tolist() == [0.0]


def test_nothing_to_pool():
    with pytest.raises(ValueError, match="Expected items to pool"):
        pool_items([], [])
    with pytest.raises(ValueError, match=r"selection.pool to be one of .*, got 'median'"):
        pool_items([], ["a"], "median")
    with pytest.raises(ValueError, match="at least one row of item empty"):
        pool_items([(np.zeros(1, np.int64), np.zeros((1, 1)))], ["full", "empty"])
