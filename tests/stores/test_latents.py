from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from src.ops.sparse_latents import SparseLatents
from src.stores.dense_latents import export_dense
from src.stores.latents import LatentStore, LatentWriter


def make_latents(n_patches, n_latents, seed=0):
    dense = torch.randn(n_patches, n_latents, generator=torch.Generator().manual_seed(seed)).relu()
    dense[:, 1] = 0
    if n_patches > 1:
        dense[1] = 0
    return dense


@pytest.mark.parametrize(("n_latents", "stored_type"), [(9, np.uint8), (256, np.uint8), (257, np.uint16)])
def test_written_and_read(tmp_path, n_latents, stored_type):
    bags = {"007": make_latents(5, n_latents), "1": make_latents(1, n_latents, 1)}
    coords = np.arange(10).reshape(5, 2) * 512
    writer = LatentWriter(tmp_path / "all", n_latents)
    writer.write("1", SparseLatents.from_dense(bags["1"]))
    writer.write("007", SparseLatents.from_dense(bags["007"]), coords, 512, "abc")
    store = writer.finish()
    assert store.item_ids == ["007", "1"]
    assert store.n_latents == n_latents
    for item_id, dense in bags.items():
        stored = store.read(item_id)
        torch.testing.assert_close(stored.latents.to_dense(), dense, rtol=0, atol=0)
        assert store.n_patches(item_id) == len(dense)
    stored = store.read("007")
    np.testing.assert_array_equal(stored.coords, coords)
    assert stored.patch_size_level0 == 512
    assert store.digest("007") == "abc"
    assert store.read("1").coords is None
    assert store.read("1").patch_size_level0 is None
    assert store.index["n_nonzero"].tolist() == [int((bags[item_id] > 0).sum()) for item_id in ("007", "1")]
    assert store.index["path"].tolist() == ["h5_files/007.h5", "h5_files/1.h5"]
    with h5py.File(tmp_path / "all" / "h5_files" / "007.h5") as file:
        assert file["neuron_ids"].dtype == stored_type
        assert file["values"].dtype == np.float32
        assert file["coords"].dtype == np.int32
        assert dict(file.attrs) == {"n_latents": n_latents, "patch_size_level0": 512, "digest": "abc"}


def test_slide_without_any_latent(tmp_path):
    writer = LatentWriter(tmp_path, 4)
    writer.write("s", SparseLatents.from_dense(torch.zeros(3, 4)))
    assert writer.finish().read("s").latents.to_dense().tolist() == [[0] * 4] * 3


def test_unfinished_store_has_no_index(tmp_path):
    latents = SparseLatents.from_dense(torch.ones(2, 3))
    writer = LatentWriter(tmp_path, 3)
    with pytest.raises(ValueError, match="latents of at least one slide"):
        writer.finish()
    writer.write("s", latents)
    with pytest.raises(FileNotFoundError, match="task=encode"):
        LatentStore(tmp_path)
    writer.finish()
    LatentWriter(tmp_path, 3)
    with pytest.raises(FileNotFoundError, match="task=encode"):
        LatentStore(tmp_path)


def test_full_disk_leaves_no_half_file_and_no_index(tmp_path, monkeypatch):
    latents = SparseLatents.from_dense(torch.ones(100, 3))
    writer = LatentWriter(tmp_path, 3)
    writer.write("first", latents)

    def write_half(path, content):
        with open(path, "wb") as file:
            file.write(content[: len(content) // 2])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", write_half)
    with pytest.raises(OSError, match=r"No space left.*slide second need \d.*MB.* are free") as caught:
        writer.write("second", latents)
    assert caught.value.errno == 28
    assert [path.name for path in (tmp_path / "h5_files").iterdir()] == ["first.h5"]
    assert not (tmp_path / "index.csv").exists()


def test_shapes_are_checked(tmp_path):
    writer = LatentWriter(tmp_path, 3)
    with pytest.raises(ValueError, match=r"Expected 3 latents .*, got 4 of slide s"):
        writer.write("s", SparseLatents.from_dense(torch.ones(2, 4)))
    with pytest.raises(ValueError, match=r"coords of shape \(2, 2\) of slide s, got \(3, 2\)"):
        writer.write("s", SparseLatents.from_dense(torch.ones(2, 3)), np.zeros((3, 2)))


def test_unknown_slide_and_damaged_file(tmp_path):
    writer = LatentWriter(tmp_path, 3)
    writer.write("s", SparseLatents.from_dense(torch.ones(2, 3)))
    store = writer.finish()
    with pytest.raises(ValueError, match="got 'x'"):
        store.read("x")
    path = tmp_path / "h5_files" / "s.h5"
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(ValueError, match=r"readable latents at .*s\.h5"):
        store.read("s")


def test_size_on_disk(tmp_path):
    """200,000 patches with 16 of 2048 latents each take under 40 MB."""
    n_slides, n_patches, k, n_latents = 20, 10_000, 16, 2048
    generator = torch.Generator().manual_seed(0)
    row_offsets = torch.arange(0, n_patches * k + 1, k)
    neuron_ids = torch.rand(n_patches, n_latents, generator=generator).topk(k).indices.sort(dim=1).values.reshape(-1)
    values = torch.rand(n_patches * k, generator=generator)
    latents = SparseLatents(row_offsets, neuron_ids, values, (n_patches, n_latents))
    coords = torch.randint(0, 100_000, (n_patches, 2), generator=generator).numpy()
    writer = LatentWriter(tmp_path, n_latents)
    for i in range(n_slides):
        writer.write(str(i), latents, coords, 512, "0" * 32)
    writer.finish()
    assert sum(path.stat().st_size for path in tmp_path.glob("**/*.*")) < 40e6


@pytest.mark.parametrize("formats", [("h5",), ("pt",), ("h5", "pt")])
def test_dense_export_is_read_as_features(tmp_path, formats):
    dense, coords = make_latents(40, 6), np.arange(80).reshape(40, 2)
    writer = LatentWriter(tmp_path / "sparse", 6)
    writer.write("007", SparseLatents.from_dense(dense), coords, 256)
    export_dense(writer.finish(), tmp_path / "dense", formats)
    assert sorted(path.name for path in (tmp_path / "dense").iterdir()) == sorted(f"{name}_files" for name in formats)
    if "h5" in formats:
        with h5py.File(tmp_path / "dense" / "h5_files" / "007.h5") as file:
            np.testing.assert_array_equal(file["features"], dense)
            np.testing.assert_array_equal(file["coords"], coords)
            assert file["features"].chunks == (32, 6)
            assert file.attrs["patch_size_level0"] == 256
    if "pt" in formats:
        torch.testing.assert_close(torch.load(tmp_path / "dense" / "pt_files" / "007.pt", weights_only=True), dense)


def test_dense_export_of_an_unknown_format(tmp_path):
    writer = LatentWriter(tmp_path / "sparse", 1)
    writer.write("s", SparseLatents.from_dense(torch.ones(1, 1)))
    with pytest.raises(ValueError, match=r"formats h5 and pt, got \['csv'\]"):
        export_dense(writer.finish(), tmp_path / "dense", ["csv"])
