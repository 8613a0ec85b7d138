import h5py
import numpy as np
import pytest
import torch

from src.stores.latents import clam_export
from src.stores.latents.clam_export import export_clam
from tests.latents import make_dense, write_latents


@pytest.mark.parametrize("piece_bytes", [1, 64 << 20])
@pytest.mark.parametrize("formats", [("h5",), ("pt",), ("h5", "pt")])
def test_dense_export_is_read_as_features(tmp_path, monkeypatch, formats, piece_bytes):
    monkeypatch.setattr(clam_export, "_PIECE_BYTES", piece_bytes)
    dense, coords = make_dense(40, 6), np.arange(80).reshape(40, 2)
    store = write_latents(tmp_path / "sparse", {"007": dense}, {"007": coords}, 256)
    export_clam(store, tmp_path / "dense", formats)
    found = sorted(path.relative_to(tmp_path / "dense").as_posix() for path in (tmp_path / "dense").rglob("*.*"))
    assert found == sorted(f"{name}_files/007.{name}" for name in formats)
    if "h5" in formats:
        with h5py.File(tmp_path / "dense" / "h5_files" / "007.h5") as file:
            np.testing.assert_array_equal(file["features"], dense)
            np.testing.assert_array_equal(file["coords"], coords)
            assert file["features"].chunks == (32, 6)
            assert file.attrs["patch_size_level0"] == 256
    if "pt" in formats:
        torch.testing.assert_close(torch.load(tmp_path / "dense" / "pt_files" / "007.pt", weights_only=True), dense)
