import h5py
import numpy as np
import pytest
import torch

from src.data.packing import pack_activations
from src.data.readers.features import FeatureFileError, FeatureFolder
from src.stores.activations import writer
from src.stores.activations.store import ActivationStore
from tests.data.stores import check_digests

COORDS = {"a": [[0, 512], [512, 2**31 - 1], [7, 2**24 + 1]], "b": [[3, 4]], "d": [[9, 8], [7, 6]]}


def write_h5(folder, item_id, coords, **attributes):
    with h5py.File(folder / f"{item_id}.h5", "w") as file:
        file["features"] = np.ones((len(coords), 4), np.float32) + len(item_id)
        file.create_dataset("coords", data=coords).attrs.update(attributes)


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "features"
    path.mkdir()
    write_h5(path, "a", np.array(COORDS["a"]), patch_size_level0=512)
    write_h5(path, "b", np.array(COORDS["b"], dtype=np.float64))
    torch.save(torch.ones(5, 4), path / "c.pt")
    write_h5(path, "d", np.array(COORDS["d"]))
    return FeatureFolder(path)


def check(store):
    check_digests(store)
    for item_id, coords in COORDS.items():
        packed = store.coords(item_id)
        assert packed.dtype == np.int32
        np.testing.assert_array_equal(packed, coords)
    assert store.coords("c") is None


@pytest.mark.parametrize("shard_rows", [100, 2])
def test_coords_are_those_of_the_files(folder, tmp_path, monkeypatch, shard_rows):
    monkeypatch.setattr(writer, "SHARD_BYTES", shard_rows * 16)
    store = pack_activations(folder, folder.item_ids, tmp_path / "cache")
    check(store)
    assert [store.patch_size_level0(item_id) for item_id in "abcd"] == [512, None, None, None]
    reasons = {item_id: row.coords_missing for item_id, row in store.index.items()}
    assert reasons == {"a": "", "b": "", "c": "c.pt is a pt file, which holds none", "d": ""}


def test_coords_of_items_added_later(folder, tmp_path):
    pack_activations(folder, ["c"], tmp_path / "cache")
    pack_activations(folder, ["d"], tmp_path / "cache")
    check(pack_activations(folder, folder.item_ids, tmp_path / "cache"))


def test_flipped_byte_changes_the_digest(folder, tmp_path):
    store = pack_activations(folder, folder.item_ids, tmp_path / "cache")
    path = store.path / "coords_00000.npy"
    content = bytearray(path.read_bytes())
    content[128 + 2 * 8 + 4] ^= 1  # 2^24 + 1, which float32 rounds
    path.write_bytes(content)
    assert ActivationStore(store.path).coords("a")[2, 1] == 2**24
    with pytest.raises(AssertionError):
        check_digests(ActivationStore(store.path))


@pytest.mark.parametrize("harm", ["missing", "empty", "short", "another type"])
def test_damaged_coords(folder, tmp_path, harm):
    store = pack_activations(folder, folder.item_ids, tmp_path / "cache")
    path = store.path / "coords_00000.npy"
    content = path.read_bytes()
    path.unlink()
    if harm == "another type":
        np.save(path, np.zeros((11, 2)))
    elif harm != "missing":
        path.write_bytes(b"" if harm == "empty" else content[:-4])
    with pytest.raises((ValueError, FileNotFoundError), match=r"coords_00000\.npy.*Delete the folder"):
        ActivationStore(store.path).coords("a")


def test_coords_beyond_any_slide(folder, tmp_path):
    write_h5(folder.path, "a", np.array([[0, 2**31]]))
    with pytest.raises(FeatureFileError, match=r"coords of at most 2147483647 pixels in .*a\.h5, got 2147483648"):
        pack_activations(folder, ["a"], tmp_path / "cache")


def test_coords_that_nobody_has_make_no_file(tmp_path):
    (tmp_path / "features").mkdir()
    torch.save(torch.ones(20, 4), tmp_path / "features" / "c.pt")
    store = pack_activations(FeatureFolder(tmp_path / "features"), ["c"], tmp_path / "cache")
    assert not list(store.path.glob("coords_*"))
