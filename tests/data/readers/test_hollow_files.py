"""Files that promise more than they hold, or hold what lies elsewhere."""

import os

import h5py
import numpy as np
import pytest
import torch

from src.data.packing import pack_activations
from src.data.readers.features import FeatureFileError, FeatureFolder
from src.data.readers.tensor_files import TensorFile
from src.data.slides.patching import read_patch_file
from tests.data.readers.opened import look, read

SHAPE = (50, 4)
ROWS = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)


def external_storage(file, folder, name):
    (folder / "secret.bin").write_bytes(ROWS.tobytes())
    file.create_dataset(name, SHAPE, np.float32, external=[(str(folder / "secret.bin"), 0, h5py.h5f.UNLIMITED)])


def external_link(file, folder, name):
    with h5py.File(folder / "other.hdf5", "w") as other:
        other["features"] = ROWS
    file[name] = h5py.ExternalLink(str(folder / "other.hdf5"), "features")


def soft_link_out_of_the_file(file, folder, name):
    with h5py.File(folder / "other.hdf5", "w") as other:
        other["features"] = ROWS
    file["elsewhere"] = h5py.ExternalLink(str(folder / "other.hdf5"), "/")
    file[name] = h5py.SoftLink("/elsewhere/features")


def virtual(file, folder, name):
    with h5py.File(folder / "other.hdf5", "w") as other:
        other["features"] = ROWS
    layout = h5py.VirtualLayout(SHAPE, np.float32)
    layout[:] = h5py.VirtualSource(str(folder / "other.hdf5"), "features", SHAPE)
    file.create_virtual_dataset(name, layout)


@pytest.mark.parametrize("make", [external_storage, external_link, soft_link_out_of_the_file, virtual])
@pytest.mark.parametrize("name", ["features", "coords"])
def test_values_of_other_files_are_not_read(tmp_path, make, name):
    (tmp_path / "f").mkdir()
    with h5py.File(tmp_path / "f" / "s.h5", "w") as file:
        if name == "coords":
            file["features"] = ROWS
        make(file, tmp_path, name)
    with pytest.raises(FeatureFileError, match=rf"values of {name} in .*s\.h5 itself, got .*not followed"):
        look(FeatureFolder(tmp_path / "f"), "s")


def test_link_within_the_file_is_followed(tmp_path):
    with h5py.File(tmp_path / "s.h5", "w") as file:
        file["model/x"] = ROWS
        file["features"] = h5py.SoftLink("/model/x")
    np.testing.assert_array_equal(read(FeatureFolder(tmp_path), "s"), ROWS)


@pytest.mark.parametrize(
    "options",
    [
        {"chunks": (1024, 512)},
        {},
        {"chunks": (1024, 512), "fillvalue": 1.5},
        {"chunks": (1024, 512), "compression": "gzip"},
    ],
)
def test_small_file_that_declares_much_fills_no_disk(tmp_path, options):
    (tmp_path / "f").mkdir()
    path = tmp_path / "f" / "s.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("features", (6_250_000, 512), np.float32, **options)
    assert path.stat().st_size < 20_000
    folder = FeatureFolder(tmp_path / "f")
    with pytest.raises(ValueError, match=r"12,800,000,000 bytes of features in .*s\.h5.* got 0 in the file"):
        pack_activations(folder, ["s"], tmp_path / "cache")
    assert not any(file.suffix == ".npy" for file in (tmp_path / "cache").rglob("*"))


def test_chunks_that_were_never_written_are_no_zeros(tmp_path):
    with h5py.File(tmp_path / "s.h5", "w") as file:
        features = file.create_dataset("features", SHAPE, np.float32, chunks=(8, 4), compression="gzip")
        features[:40] = ROWS[:40]
    with pytest.raises(FeatureFileError, match="not all of it was written"):
        look(FeatureFolder(tmp_path), "s")


def test_what_compresses_beyond_all_features_is_refused(tmp_path):
    with h5py.File(tmp_path / "s.h5", "w") as file:
        features = file.create_dataset("features", (1 << 16, 512), np.float32, chunks=(4096, 512), compression="gzip")
        features[:] = np.zeros((1 << 16, 512), np.float32)
    assert (tmp_path / "s.h5").stat().st_size < 200_000
    with pytest.raises(FeatureFileError, match=r"134,217,728 bytes of features"):
        look(FeatureFolder(tmp_path), "s")


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"chunks": (8, 3), "maxshape": (None, None)},
        {"chunks": (8, 4), "compression": "gzip"},
        {"chunks": (64, 4), "maxshape": (None, 4), "compression": "lzf", "shuffle": True},
    ],
)
def test_whole_files_are_read(tmp_path, options):
    for name, rows in (("s", ROWS), ("zeros", np.zeros_like(ROWS))):
        with h5py.File(tmp_path / f"{name}.h5", "w") as file:
            file.create_dataset("features", data=rows, **options)
        np.testing.assert_array_equal(read(FeatureFolder(tmp_path), name), rows)


def test_features_that_are_no_numbers(tmp_path):
    with h5py.File(tmp_path / "s.h5", "w") as file:
        file.create_dataset("features", data=[["a", "b"]], dtype=h5py.string_dtype())
    with pytest.raises(FeatureFileError, match=r"Expected numbers as features in .*s\.h5"):
        look(FeatureFolder(tmp_path), "s")


def test_tensor_whose_values_repeat_is_refused(tmp_path):
    torch.save(torch.ones(1, 512).expand(6_250_000, 512), tmp_path / "s.pt")
    assert (tmp_path / "s.pt").stat().st_size < 10_000
    for find in (lambda: look(FeatureFolder(tmp_path), "s"), lambda: TensorFile(tmp_path / "s.pt")):
        with pytest.raises(FeatureFileError, match=r"12,800,000,000 bytes in .*s\.pt.* got 2,048: a view"):
            find()


def test_npy_whose_header_promises_more_is_refused(tmp_path):
    np.save(tmp_path / "x.npy", ROWS)
    content = (tmp_path / "x.npy").read_bytes().replace(b"(50, 4), }      ", b"(5000000, 4), }")
    (tmp_path / "x.npy").write_bytes(content)
    with pytest.raises(FeatureFileError, match=r"Expected a whole \.npy file at .*x\.npy"):
        TensorFile(tmp_path / "x.npy")


@pytest.mark.filterwarnings("ignore:Validating sparse tensor invariants:UserWarning")
@pytest.mark.parametrize("tensor", [torch.eye(3).to_sparse(), torch.nn.Parameter(torch.eye(3))])
def test_other_kinds_of_tensors(tmp_path, tensor):
    torch.save(tensor, tmp_path / "s.pt")
    if tensor.layout == torch.strided:
        assert read(FeatureFolder(tmp_path), "s").tolist() == torch.eye(3).tolist()
        return
    with pytest.raises(FeatureFileError, match=r"one dense tensor in .*s\.pt, got torch\.sparse_coo values"):
        look(FeatureFolder(tmp_path), "s")


@pytest.mark.parametrize("name", ["s.h5", "s.pt"])
def test_a_pipe_is_no_feature_file(tmp_path, name):
    os.mkfifo(tmp_path / name)
    with pytest.raises(FeatureFileError, match="no regular file"):
        look(FeatureFolder(tmp_path), "s")


def test_hollow_patch_file_is_named(tmp_path):
    with h5py.File(tmp_path / "s.h5", "w") as file:
        file.create_dataset("coords", (10**9, 2), np.int64, chunks=(1024, 2))
    with pytest.raises(FeatureFileError, match=r"16,000,000,000 bytes of coords in .*s\.h5.* task=tile"):
        read_patch_file(tmp_path / "s.h5")
    with h5py.File(tmp_path / "s.h5", "w") as file:
        file["other"] = 1
    with pytest.raises(FeatureFileError, match=r"dataset coords .* in .*s\.h5, got \['other'\].*task=tile"):
        read_patch_file(tmp_path / "s.h5")
