import numpy as np
import pytest
import torch

from src.data.feeding.buffers import BufferPool, copy_rows, take_rows


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_rows_are_taken_and_copied_as_float32(dtype):
    rows = np.random.default_rng(0).normal(size=(2000, 5)).astype(dtype)
    row_ids = np.random.default_rng(1).permutation(2000)[:1300]
    out = np.empty((1300, 5), dtype=np.float32)
    take_rows(rows, row_ids, out)
    np.testing.assert_array_equal(out, rows[row_ids].astype(np.float32))
    rows.flags.writeable = False
    copy_rows(rows[:1300], out)
    np.testing.assert_array_equal(out, rows[:1300].astype(np.float32))
    take_rows(rows, row_ids[:0], out[:0])


def test_memory_is_used_again_only_when_nobody_holds_it():
    pool = BufferPool()
    held = []
    for i in range(6):
        array = pool.take((2, 3))
        array[:] = i
        held.append(torch.from_numpy(array))
    assert [int(tensor[0, 0]) for tensor in held] == list(range(6))
    kept = held[2][1:].T  # a view of a view, its bases gone
    del held, array
    addresses = {pool.take((1 + i % 2, 3)).ctypes.data for i in range(9)}
    assert len(addresses) == 1
    pool.take((2, 3))[:] = 9
    assert kept.tolist() == [[2.0]] * 3
    assert pool.take((5, 3)).shape == (5, 3)
