import h5py
import numpy as np
import pytest
import torch

from src.data import shard_writer, store_builder
from src.data.activation_store import ActivationStore
from src.data.packing import pack_activations
from src.data.readers.features import FeatureFileError, FeatureFolder

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
    for item_id, coords in COORDS.items():
        packed = store.coords(item_id)
        assert packed.dtype == np.int32
        np.testing.assert_array_equal(packed, coords)
    assert store.coords("c") is None


@pytest.mark.parametrize("shard_rows", [100, 2])
def test_coords_are_those_of_the_files(folder, tmp_path, monkeypatch, shard_rows):
    monkeypatch.setattr(shard_writer, "SHARD_BYTES", shard_rows * 16 + 256)
    store = pack_activations(folder, folder.item_ids, tmp_path / "cache", verify="full")
    check(store)
    assert [store.patch_size_level0(item_id) for item_id in "abcd"] == [512, None, None, None]
    reasons = dict(zip(store.index["item_id"], store.index["coords_missing"], strict=True))
    assert reasons == {"a": "", "b": "", "c": "c.pt is a pt file, which holds none", "d": ""}


def stop_before_the_index(monkeypatch, folder, item_ids, cache):
    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(store_builder, "write_index", stop)
        with pytest.raises(KeyboardInterrupt):
            pack_activations(folder, item_ids, cache)


def test_coords_of_slides_added_later_and_after_a_stop(folder, tmp_path, monkeypatch):
    pack_activations(folder, ["c"], tmp_path / "cache")
    pack_activations(folder, ["d"], tmp_path / "cache")
    stop_before_the_index(monkeypatch, folder, ["a", "c", "d"], tmp_path / "cache")
    check(pack_activations(folder, folder.item_ids, tmp_path / "cache", verify="full"))


def test_journalled_coords_that_did_not_reach_the_disk(folder, tmp_path, monkeypatch, caplog):
    stop_before_the_index(monkeypatch, folder, folder.item_ids, tmp_path / "cache")
    (path,) = (tmp_path / "cache").glob("*/coords_00000.npy")
    content = path.read_bytes()
    path.write_bytes(content[:128] + bytes(3 * 8) + content[128 + 3 * 8 :])
    check(pack_activations(folder, folder.item_ids, tmp_path / "cache", verify="full"))
    assert "The rows of slide a did not reach the disk" in caplog.text
    assert path.read_bytes() == content


def test_flipped_byte_is_found_by_a_full_check(folder, tmp_path):
    store = pack_activations(folder, folder.item_ids, tmp_path / "cache")
    path = store.path / "coords_00000.npy"
    content = bytearray(path.read_bytes())
    content[128 + 2 * 8 + 4] ^= 1  # 2^24 + 1, which float32 rounds
    path.write_bytes(content)
    assert ActivationStore(store.path).coords("a")[2, 1] == 2**24
    with pytest.raises(ValueError, match=r"coords of slide a \(0 to 3 in .*changed on disk.*Delete the folder"):
        ActivationStore(store.path, verify="full")


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
        ActivationStore(store.path)


def test_coords_beyond_any_slide(folder, tmp_path):
    write_h5(folder.path, "a", np.array([[0, 2**31]]))
    with pytest.raises(FeatureFileError, match=r"coords of at most 2147483647 pixels in .*a\.h5, got 2147483648"):
        pack_activations(folder, ["a"], tmp_path / "cache")


def test_coords_that_nobody_has_take_no_disk(tmp_path):
    (tmp_path / "features").mkdir()
    torch.save(torch.ones(200_000, 4), tmp_path / "features" / "c.pt")
    store = pack_activations(FeatureFolder(tmp_path / "features"), ["c"], tmp_path / "cache")
    assert (store.path / "coords_00000.npy").stat().st_blocks * 512 < 20_000 < 8 * store.n_rows
