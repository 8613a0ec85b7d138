import numpy as np
import pytest

from src.data.feeding.rows import ImageRows, StoreRows
from tests.data.stores import pack


@pytest.fixture
def store(tmp_path):
    rng = np.random.default_rng(0)
    return pack(tmp_path / "f", {name: rng.normal(size=(n, 3)) for name, n in (("a", 4), ("b", 1), ("c", 6))})


@pytest.mark.parametrize("item_ids", [["a", "b", "c"], ["c", "a"], ["a", "c"], ["b"]])
def test_rows_in_the_order_of_the_slides(store, item_ids):
    rows = StoreRows(store, item_ids)
    expected = np.concatenate([store.rows(item_id) for item_id in item_ids])
    assert (rows.n_rows, rows.d_in, rows.dtype) == (len(expected), 3, np.float32)
    lengths = [len(store.rows(item_id)) for item_id in item_ids]
    np.testing.assert_array_equal(rows.slide_starts, np.cumsum([0, *lengths])[:-1])
    for start in range(len(expected) + 1):
        for stop in range(start, len(expected) + 1):
            np.testing.assert_array_equal(rows.read(start, stop), expected[start:stop])


def test_identity_is_of_slides_and_their_order(store):
    identities = {StoreRows(store, item_ids).identity for item_ids in (["a", "b"], ["b", "a"], ["a"])}
    assert len(identities) == 3
    assert StoreRows(store, ["a", "b"]).identity in identities


def test_no_slides(store):
    rows = StoreRows(store, [])
    assert rows.n_rows == 0
    assert rows.read(0, 0).shape == (0, 3)


def test_unknown_slide(store):
    with pytest.raises(ValueError, match=r"got \['x'\]"):
        StoreRows(store, ["x"])


def test_images_are_rows_side_by_side(store):
    rows = StoreRows(store, ["a", "c"])
    images = ImageRows(rows, n_tokens=2)
    assert (images.n_rows, images.d_in) == (5, 6)
    np.testing.assert_array_equal(images.read(1, 4), rows.read(2, 8).reshape(3, 6))
    np.testing.assert_array_equal(images.slide_starts, [0, 2])
    assert images.identity != ImageRows(rows, n_tokens=1).identity
    with pytest.raises(ValueError, match=r"multiple of train\.n_tokens=4 rows a slide, got 6"):
        ImageRows(rows, n_tokens=4)
