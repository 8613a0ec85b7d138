import h5py
import numpy as np
import pytest
import torch

from src.activation_spec import ActivationSpec
from src.data.readers.features import FeatureFileError, FeatureFolder
from tests.data.readers.opened import look, read


def write_h5(path, features, coords=None, attributes=None, coords_attributes=None, key="features"):
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        file[key] = features
        if coords is not None:
            file["coords"] = coords
            file["coords"].attrs.update(coords_attributes or {})
        file.attrs.update(attributes or {})
    return path


@pytest.fixture
def features():
    return np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)


@pytest.fixture
def coords():
    return np.arange(10, dtype=np.int32).reshape(5, 2) * 256


def test_clam_folder_prefers_h5_and_keeps_leading_zeros(tmp_path, features, coords):
    write_h5(tmp_path / "h5_files" / "007.h5", features, coords)
    for item_id in ("007", "008"):
        (tmp_path / "pt_files").mkdir(exist_ok=True)
        torch.save(torch.from_numpy(features) + 1, tmp_path / "pt_files" / f"{item_id}.pt")
    folder = FeatureFolder(tmp_path)
    assert folder.item_ids == ["007", "008"]
    assert folder.d_in == 3
    bag = look(folder, "007")
    assert (bag.n_rows, bag.d_in, bag.dtype) == (5, 3, np.float32)
    np.testing.assert_array_equal(read(folder, "007"), features)
    np.testing.assert_array_equal(bag.coords, coords)
    assert bag.patch_size_level0 is None
    assert bag.spec == ActivationSpec()
    without_coords = look(folder, "008")
    np.testing.assert_array_equal(read(folder, "008"), features + 1)
    assert without_coords.coords is None
    assert "pt file" in without_coords.coords_missing


def test_bare_folder_with_dots_in_names_and_unfinished_files(tmp_path, features):
    write_h5(tmp_path / "a.b.h5", features)
    (tmp_path / ".a.c.xyz.h5").touch()
    folder = FeatureFolder(tmp_path)
    assert folder.item_ids == ["a.b"]
    assert look(folder, "a.b").coords_missing == "a.b.h5 has no dataset coords"


def test_trident_file_states_its_patch_size(tmp_path, features, coords):
    attributes = {"patch_size": 256, "patch_size_level0": 512, "overlap": "None"}
    write_h5(tmp_path / "s.h5", features.astype(np.float16), coords, coords_attributes=attributes)
    item = look(FeatureFolder(tmp_path), "s")
    assert item.dtype == np.float16
    rows = read(FeatureFolder(tmp_path), "s")
    assert rows.dtype == np.float32
    np.testing.assert_array_equal(rows, features.astype(np.float16).astype(np.float32))
    assert item.patch_size_level0 == 512
    assert item.spec == ActivationSpec()


def test_stamp_file_has_no_pixel_coords(tmp_path, features, coords):
    attributes = {"unit": "um", "tile_size_um": 256.0, "tile_size_px": 224, "extractor": "ctranspath"}
    write_h5(tmp_path / "s.h5", features.astype(np.float16), coords.astype(np.float32), attributes, key="feats")
    bag = look(FeatureFolder(tmp_path), "s")
    assert (bag.n_rows, bag.d_in) == (5, 3)
    assert bag.coords is None
    assert "micrometres" in bag.coords_missing
    assert bag.patch_size_level0 is None
    assert bag.spec == ActivationSpec()


def test_patch_size_comes_from_the_patch_file_and_is_never_guessed(tmp_path, features, coords):
    write_h5(tmp_path / "f" / "s.h5", features, coords, coords_attributes={"patch_size": 256})
    clam = {"patch_size": 256, "patch_level": 1, "downsample": (4.0003, 4.0003)}
    write_h5(tmp_path / "p" / "patches" / "s.h5", coords, coords, coords_attributes=clam)
    folder = FeatureFolder(tmp_path / "f", patches_dir=tmp_path / "p")
    assert look(folder, "s").patch_size_level0 is None
    assert folder.patch_size_of_patch_file("s") == 1024
    assert FeatureFolder(tmp_path / "f").patch_size_of_patch_file("s") is None


def test_spec_is_read_from_the_file_that_states_it(tmp_path, features):
    spec = ActivationSpec(model="vit", layer="11", tokens="patch")
    write_h5(tmp_path / "s.h5", features, attributes={"spec": spec.to_json()})
    assert look(FeatureFolder(tmp_path), "s").spec == spec
    for text in ("{", "[1]"):
        write_h5(tmp_path / "s.h5", features, attributes={"spec": text})
        with pytest.raises(FeatureFileError, match=r"JSON in the attribute spec of .*s\.h5"):
            look(FeatureFolder(tmp_path), "s")


def test_old_pt_files_are_read(tmp_path, features):
    torch.save(torch.from_numpy(features), tmp_path / "s.pt", _use_new_zipfile_serialization=False)
    np.testing.assert_array_equal(read(FeatureFolder(tmp_path), "s"), features)


def truncate(path):
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def make_bad_folder(path, features, kind):
    """Writes two good slides and one bad, `bad.h5`."""
    for name in ("a", "b"):
        write_h5(path / f"{name}.h5", features)
    bad = path / "bad.h5"
    if kind == "truncated":
        truncate(write_h5(bad, np.zeros((500, 3), np.float32)))
    elif kind == "no features":
        write_h5(bad, features, key="imgs")
    elif kind == "another width":
        write_h5(bad, np.zeros((5, 4), np.float32))
    elif kind == "empty":
        write_h5(bad, np.zeros((0, 3), np.float32))
    elif kind == "empty of TRIDENT":
        write_h5(bad, np.zeros((0,), np.float32))
    elif kind == "zero bytes":
        bad.touch()


HEADER_FAULTS = {
    "truncated": r"Expected a readable HDF5 file at .*bad\.h5.*truncated",
    "no features": r"Expected a dataset features or feats in .*bad\.h5, got \['imgs'\]",
    "another width": r"Expected one feature width .*, got 4 in bad\.h5 and 3",
    "empty": r"Expected at least one patch in .*bad\.h5, got 0",
    "empty of TRIDENT": r"Expected at least one patch in .*bad\.h5, got 0",
    "zero bytes": r"Expected a readable HDF5 file at .*bad\.h5",
}


@pytest.mark.parametrize("kind", HEADER_FAULTS)
def test_bad_file_is_an_error_that_names_it(tmp_path, features, kind):
    make_bad_folder(tmp_path, features, kind)
    folder = FeatureFolder(tmp_path)
    with pytest.raises(FeatureFileError, match=HEADER_FAULTS[kind]) as caught:
        look(folder, "bad")
    assert "on_bad_file=skip" in str(caught.value)
    np.testing.assert_array_equal(read(folder, "b"), features)


@pytest.mark.parametrize("kind", HEADER_FAULTS)
def test_bad_file_is_skipped_and_listed(tmp_path, features, kind, caplog):
    make_bad_folder(tmp_path, features, kind)
    folder = FeatureFolder(tmp_path, on_bad_file="skip")
    assert folder.item_ids == ["a", "b"]
    assert list(folder.skipped) == ["bad"]
    assert "Skipped bad" in caplog.text


def test_bad_file_does_not_disturb_the_others(tmp_path, features):
    write_h5(tmp_path / "a.h5", features, key="imgs")
    write_h5(tmp_path / "b.h5", features)
    folder = FeatureFolder(tmp_path)
    assert look(folder, "b").n_rows == 5
    (tmp_path / "b.h5").unlink()
    with pytest.raises(ValueError, match=r"usable feature file in .*imgs"):
        FeatureFolder(tmp_path).d_in  # noqa: B018


def test_slide_without_file(tmp_path, features, caplog):
    write_h5(tmp_path / "a.h5", features)
    for find in (look, FeatureFolder.identity):
        with pytest.raises(FileNotFoundError, match=r"Expected a feature file of slide 'x'.*task=embed"):
            find(FeatureFolder(tmp_path), "x")
    folder = FeatureFolder(tmp_path, on_bad_file="skip")
    with folder.skipping("x"):
        folder.identity("x")
    assert "Expected a feature file" in folder.skipped["x"]
    assert "Skipped x" in caplog.text


def test_widths_in_equal_number_cannot_be_skipped(tmp_path, features):
    write_h5(tmp_path / "a.h5", features)
    write_h5(tmp_path / "b.h5", np.zeros((5, 4), np.float32))
    with pytest.raises(ValueError, match="equally many files"):
        FeatureFolder(tmp_path, on_bad_file="skip")


def test_values_and_coords_are_checked(tmp_path, features, coords):
    broken = features.copy()
    broken[2, 1] = np.nan
    write_h5(tmp_path / "nan.h5", broken)
    write_h5(tmp_path / "coords.h5", features, coords[:4])
    torch.save({"features": features.tolist()}, tmp_path / "dict.pt")
    (tmp_path / "noise.pt").write_bytes(b"not a pt file")
    folder = FeatureFolder(tmp_path)
    with pytest.raises(FeatureFileError, match=r"finite features in .*nan\.h5, got nan or inf in 1 of its rows"):
        read(folder, "nan")
    with pytest.raises(FeatureFileError, match=r"coords of shape \(5, 2\).*coords\.h5, got \(4, 2\)"):
        look(folder, "coords")
    with pytest.raises(FeatureFileError, match=r"one dense tensor in .*dict\.pt, got dict"):
        look(folder, "dict")
    with pytest.raises(FeatureFileError, match=r"readable \.pt file at .*noise\.pt"):
        look(folder, "noise")


def test_refused_lock_is_explained_and_never_skipped(tmp_path, features, monkeypatch):
    write_h5(tmp_path / "a.h5", features)

    def refuse(*args, **kwargs):
        raise OSError(37, "Unable to synchronously open file (unable to lock file, errno = 37)")

    monkeypatch.setattr(h5py, "File", refuse)
    with pytest.raises(OSError, match="HDF5_USE_FILE_LOCKING=FALSE"):
        FeatureFolder(tmp_path, on_bad_file="skip")


def test_folder_that_is_missing_or_holds_nothing(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"found no such folder.*task=embed"):
        FeatureFolder(tmp_path / "nowhere")
    (tmp_path / "readme.txt").touch()
    with pytest.raises(FileNotFoundError, match=r"got \['readme.txt'\]"):
        FeatureFolder(tmp_path)


@pytest.mark.realdata
def test_real_folders(data_dir):
    folders = [path.parent for path in sorted((data_dir / "mil").glob("*/h5_files"))]
    assert folders
    for path in folders:
        folder = FeatureFolder(path)
        for item_id in folder.item_ids:
            bag = look(folder, item_id)
            assert read(folder, item_id).shape == (bag.n_rows, bag.d_in) == (len(bag.coords), folder.d_in)
