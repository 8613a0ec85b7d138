import numpy as np
import pytest

from src.data.rows import StoreRows
from tests.data.stores import pack


@pytest.fixture
def store(tmp_path):
    rng = np.random.default_rng(0)
    return pack(tmp_path / "f", {name: rng.normal(size=(n, 3)) for name, n in (("a", 4), ("b", 1), ("c", 6))})


@pytest.mark.parametrize("ram_bytes", [0, 1 << 20])
def test_rows_by_position(store, ram_bytes):
    rows = StoreRows(store, ["c", "a"], ram_bytes)
    assert rows.in_ram == (ram_bytes > 0)
    assert len(rows) == 10
    expected = np.concatenate([store.rows("c"), store.rows("a")])
    positions = np.array([9, 0, 0, 5, 6])
    np.testing.assert_array_equal(rows.gather(positions).numpy(), expected[positions])
    np.testing.assert_array_equal(rows.gather(np.arange(10)).numpy(), expected)


@pytest.mark.parametrize("ram_bytes", [0, 1 << 20])
def test_memory_is_used_again_only_when_nobody_holds_it(store, ram_bytes):
    rows = StoreRows(store, ["a", "b", "c"], ram_bytes)
    batches = [rows.gather(np.array([i, i + 1])) for i in range(6)]
    for i, batch in enumerate(batches):
        np.testing.assert_array_equal(batch.numpy(), store.gather([i, i + 1]))
    kept = batches[2][1:].T  # a view of a view, its bases gone
    del batches, batch
    addresses = set()
    for i in range(6):
        gathered = rows.gather(np.array([i, i]))
        addresses.add(gathered.data_ptr())
    assert len(addresses) <= 3
    np.testing.assert_array_equal(kept[:, 0].numpy(), store.gather([3])[0])


def test_no_slides(store):
    assert len(StoreRows(store, [])) == 0


def test_unknown_slide(store):
    with pytest.raises(ValueError, match=r"got \['x'\]"):
        StoreRows(store, ["x"])
