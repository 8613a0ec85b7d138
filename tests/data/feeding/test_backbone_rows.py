import numpy as np
import pytest
import torch

from src.data.embedding.embedder import Embedder
from src.data.feeding.activations import ActivationDataModule
from src.data.feeding.backbone_rows import BackboneRows
from src.data.feeding.rows import StoreRows
from tests.data.pictures import Corner, Drawn
from tests.data.stores import pack

COORDS = {7: np.arange(10).reshape(5, 2), 8: np.zeros((0, 2), int), 9: np.arange(50, 74).reshape(12, 2)}


def make_rows(at_most=100, batch_size=64, n_tokens=1, identity="drawn"):
    backbone = Corner(at_most, n_tokens)
    units = [Drawn(number, coords) for number, coords in COORDS.items()]
    expected = np.concatenate([np.column_stack([np.full(len(c), s), c]) for s, c in COORDS.items()])
    expected = np.repeat(expected, n_tokens, axis=0) + np.tile(np.arange(n_tokens), len(expected))[:, None]
    rows = BackboneRows(units, [len(c) for c in COORDS.values()], identity, Embedder(backbone, batch_size))
    return rows, expected, backbone


@pytest.mark.parametrize("n_tokens", [1, 3])
@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_rows_are_what_the_backbone_gives(batch_size, n_tokens):
    rows, expected, _ = make_rows(batch_size=batch_size, n_tokens=n_tokens)
    assert (rows.n_rows, rows.d_in, rows.slide_starts.tolist()) == (17 * n_tokens, 3, [0, 5 * n_tokens, 5 * n_tokens])
    for start in range(18):
        for stop in range(start, 17 * n_tokens + 1):
            np.testing.assert_array_equal(rows.read(start, stop), expected[start:stop])


def test_out_of_memory_halves_the_batch(caplog):
    rows, expected, backbone = make_rows(at_most=2, batch_size=8)
    np.testing.assert_array_equal(rows.read(5, 17), expected[5:])
    assert backbone.seen == [2] * 6
    assert "batches of 2 rows" in caplog.text
    rows, _, _ = make_rows(at_most=0, batch_size=2)
    with pytest.raises(torch.cuda.OutOfMemoryError):
        rows.read(0, 1)


def test_identity_is_of_pictures_and_backbone():
    assert make_rows()[0].identity == make_rows(batch_size=3)[0].identity
    assert make_rows(identity="others")[0].identity != make_rows()[0].identity


@pytest.mark.parametrize(("window_bytes", "n_passes"), [(24, 2), (1 << 20, 1)])
@pytest.mark.parametrize("n_workers", [0, 2])
def test_computed_once_an_epoch_and_once_in_all_where_one_window_holds_them(
    tmp_path, n_workers, window_bytes, n_passes
):
    store = pack(tmp_path / "f", {"v": np.ones((3, 3))})
    rows, expected, backbone = make_rows(batch_size=2)
    validation = StoreRows(store, ["v"])
    data = ActivationDataModule(rows, validation, 4, 2, seed=0, n_workers=n_workers, window_bytes=window_bytes)
    for epoch in range(2):
        found = torch.cat([batch for block in data.train_dataloader() for batch in block]).numpy()
        np.testing.assert_array_equal(found, expected[data.train_loader.order.epoch(epoch)[:]])
    assert sum(backbone.seen) == 17 * n_passes


def test_windows_are_made_of_whole_batches_of_the_backbone():
    rows, _, backbone = make_rows(batch_size=2, n_tokens=3)
    data = ActivationDataModule(rows, rows, 4, 2, seed=0, window_bytes=24)
    list(data.train_dataloader())
    assert data.train_loader.order.chunk % 6 == 0
    assert sum(backbone.seen) == 17
