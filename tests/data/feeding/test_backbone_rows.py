import numpy as np
import pytest
import torch

from src.data.feeding.activations import ActivationDataModule
from src.data.feeding.backbone_rows import BackboneRows
from src.data.feeding.rows import StoreRows
from src.models.backbones.base import Backbone
from tests.data.stores import pack


class Corner(Backbone):
    """The top left pixel of each patch; notes the batches it saw, and has no memory for more than `at_most`."""

    def __init__(self, at_most=100):
        scaling = {"mean": [0] * 3, "std": [1 / 255] * 3}
        super().__init__(
            "corner", torch.nn.Identity(), (), "corner", "none", "the top left pixel", image_size=4, **scaling
        )
        self.at_most, self.seen = at_most, []

    def _body(self, images):
        return images

    def _head(self, native):
        if native.device.type == "meta":
            return native[:, :, 0, 0]
        if len(native) > self.at_most:
            raise torch.cuda.OutOfMemoryError
        self.seen.append(len(native))
        return native[:, :, 0, 0].round()


def read_patches(item_id, coords):
    """Patches whose top left pixel is (slide, x, y)."""
    patches = np.zeros((len(coords), 4, 4, 3), dtype=np.uint8)
    patches[:, 0, 0] = np.column_stack([np.full(len(coords), int(item_id)), coords])
    return patches


def make_rows(at_most=100, **kwargs):
    coords = {"7": np.arange(10).reshape(5, 2), "8": np.zeros((0, 2), int), "9": np.arange(50, 74).reshape(12, 2)}
    backbone = Corner(at_most)
    expected = np.concatenate([np.column_stack([np.full(len(c), int(s)), c]) for s, c in coords.items()])
    return BackboneRows(list(coords.items()), read_patches, backbone, **kwargs), expected, backbone


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_rows_are_what_the_backbone_gives(batch_size):
    rows, expected, _ = make_rows(batch_size=batch_size)
    assert (rows.n_rows, rows.d_in, rows.slide_starts.tolist()) == (17, 3, [0, 5, 5])
    for start in range(18):
        for stop in range(start, 18):
            np.testing.assert_array_equal(rows.read(start, stop), expected[start:stop])


def test_out_of_memory_halves_the_batch(caplog):
    rows, expected, backbone = make_rows(at_most=2, batch_size=8)
    np.testing.assert_array_equal(rows.read(5, 17), expected[5:])
    assert backbone.seen == [2] * 6
    assert "batches of 2 rows" in caplog.text
    rows, _, _ = make_rows(at_most=0, batch_size=2)
    with pytest.raises(torch.cuda.OutOfMemoryError):
        rows.read(0, 1)


def test_identity_is_of_patches_and_backbone():
    assert make_rows()[0].identity == make_rows(batch_size=3)[0].identity
    other = BackboneRows([("7", np.ones((5, 2), int))], read_patches, Corner())
    assert other.identity != make_rows()[0].identity


@pytest.mark.parametrize(("window_bytes", "n_passes"), [(24, 2), (1 << 20, 1)])
@pytest.mark.parametrize("n_workers", [0, 2])
def test_computed_once_an_epoch_and_once_in_all_where_one_window_holds_them(
    tmp_path, n_workers, window_bytes, n_passes
):
    store = pack(tmp_path / "f", {"v": np.ones((3, 3))})
    rows, expected, backbone = make_rows()
    validation = StoreRows(store, ["v"])
    data = ActivationDataModule(rows, validation, 4, 2, seed=0, n_workers=n_workers, window_bytes=window_bytes)
    for epoch in range(2):
        found = torch.cat([batch for block in data.train_dataloader() for batch in block]).numpy()
        np.testing.assert_array_equal(found, expected[data.train_loader.order.epoch(epoch)[:]])
    assert sum(backbone.seen) == 17 * n_passes
