"""Layouts of h5 files against what h5py reads of them."""

import h5py
import numpy as np
import pytest

from src.data.readers import feature_files
from src.data.readers.feature_files import open_feature_file
from src.data.readers.h5_files import FeatureFileError

FEATURES = np.random.default_rng(0).standard_normal((157, 6)).astype(np.float32)
LAYOUTS = {
    "contiguous": {},
    "CLAM": {"chunks": (32, 6), "maxshape": (None, 6)},
    "one chunk, not full": {"chunks": (200, 6), "maxshape": (None, 6)},
    "gzip": {"chunks": (32, 6), "compression": "gzip"},
    "shuffle": {"chunks": (32, 6), "shuffle": True},
    "narrow chunks": {"chunks": (32, 4)},
    "big endian": {"dtype": ">f4"},
    "float64": {"dtype": np.float64},
    "half": {"dtype": np.float16},
    "user block": {"file": {"userblock_size": 512}},
}


def write(path, **options):
    with h5py.File(path, "w", **options.pop("file", {})) as file:
        file.create_dataset("features", data=FEATURES, **options)
    return path


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("piece_bytes", [24, 1000, 10**6])
def test_pieces_are_the_rows_in_order(tmp_path, monkeypatch, layout, piece_bytes):
    monkeypatch.setattr(feature_files, "_PIECE_BYTES", piece_bytes)
    item = open_feature_file(write(tmp_path / "s.h5", **LAYOUTS[layout]), "s")
    pieces = list(item.pieces())
    assert item.dtype == (np.float16 if layout == "half" else np.float32)
    assert {piece.dtype for piece in pieces} == {item.dtype}
    np.testing.assert_array_equal(np.concatenate(pieces), FEATURES.astype(item.dtype))
    if piece_bytes == 1000 and layout == "CLAM":
        assert [len(piece) for piece in pieces] == [64, 64, 29]  # whole chunks


def test_chunk_that_cannot_be_read(tmp_path):
    path = write(tmp_path / "s.h5", **LAYOUTS["gzip"])
    with h5py.File(path) as file:
        offset = file["features"].id.get_chunk_info(3).byte_offset
    content = bytearray(path.read_bytes())
    content[offset : offset + 20] = bytes(20)
    path.write_bytes(content)
    item = open_feature_file(path, "s")
    with pytest.raises(FeatureFileError, match=r"readable HDF5 file at .*s\.h5"):
        list(item.pieces())


def test_failure_of_who_takes_the_rows_is_not_blamed_on_the_file(tmp_path):
    path = write(tmp_path / "s.h5")
    with pytest.raises(OSError, match=r"^disk gone$"):  # noqa: PT012
        for _ in open_feature_file(path, "s").pieces():
            raise OSError("disk gone")
