"""Pieces of a feature file against what h5py reads of it."""

import h5py
import numpy as np
import pytest

from src.data.readers import feature_source
from src.data.readers.feature_files import read_bag
from src.data.readers.feature_source import open_h5_source
from src.data.readers.features import FeatureFileError


def write(path, features, appended=False, **options):
    with h5py.File(path, "w", **options.pop("file", {})) as file:
        if not appended:
            file.create_dataset("features", data=features, **options)
            return
        shape = (0, features.shape[1])
        dataset = file.create_dataset("features", shape, features.dtype, maxshape=(None, shape[1]), **options)
        other = file.create_dataset("other", (0, 512), np.int64, maxshape=(None, 512), chunks=(1, 512))
        for start in range(0, len(features), 48):
            for grown in (dataset, other):
                grown.resize(min(start + 48, len(features)), axis=0)
            dataset[start : start + 48] = features[start : start + 48]
            other[start : start + 48] = 1


def read(path, buffer_bytes):
    source = open_h5_source(path)
    pieces = [piece.copy() for piece in source.pieces(np.empty(buffer_bytes, np.uint8))]
    return source, np.concatenate(pieces), len(pieces)


FEATURES = np.random.default_rng(0).standard_normal((157, 6)).astype(np.float32)
PLAIN = {
    "contiguous": {},
    "CLAM": {"appended": True, "chunks": (32, 6)},
    "one chunk, not full": {"chunks": (200, 6), "maxshape": (None, 6)},
}
ODD = {
    "gzip": {"chunks": (32, 6), "compression": "gzip"},
    "shuffle": {"chunks": (32, 6), "shuffle": True},
    "narrow chunks": {"chunks": (32, 4)},
    "big endian": {"dtype": ">f4"},
    "float64": {"dtype": np.float64},
    "user block": {"file": {"userblock_size": 512}},
}


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("layout", PLAIN)
def test_plain_layouts_are_read_past_hdf5(tmp_path, monkeypatch, layout, dtype):
    path = tmp_path / "slide.h5"
    write(path, FEATURES.astype(dtype), **PLAIN[layout])
    monkeypatch.delattr(feature_source, "_read_by_h5py")
    for buffer_bytes in (24, 1000, 10**6):
        source, features, n_pieces = read(path, buffer_bytes)
        assert source.dtype == features.dtype == dtype
        np.testing.assert_array_equal(features, FEATURES.astype(dtype))
        assert n_pieces == -(-157 // (buffer_bytes // (6 * np.dtype(dtype).itemsize)))


@pytest.mark.parametrize("layout", ODD)
def test_other_layouts_are_read_by_hdf5(tmp_path, monkeypatch, layout):
    path = tmp_path / "slide.h5"
    write(path, FEATURES, **ODD[layout])
    monkeypatch.delattr(feature_source, "_read_runs")
    source, features, _ = read(path, 1000)
    assert source.dtype == features.dtype == np.float32
    np.testing.assert_array_equal(features, read_bag(path, "slide").features)


def test_chunks_that_were_never_written_are_missing_and_not_the_fill_value(tmp_path):
    path = tmp_path / "slide.h5"
    with h5py.File(path, "w") as file:
        dataset = file.create_dataset("features", (96, 6), np.float32, chunks=(32, 6), fillvalue=7)
        dataset[64:] = 1
    with pytest.raises(FeatureFileError, match=r"2,304 bytes of features in .*slide\.h5.* got 768"):
        open_h5_source(path)


def test_file_that_ends_early(tmp_path):
    path = tmp_path / "slide.h5"
    write(path, FEATURES)
    source = open_h5_source(path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(FeatureFileError, match=r"up to byte [\d,]+ of .*slide\.h5, it ends"):
        list(source.pieces(np.empty(1000, np.uint8)))
