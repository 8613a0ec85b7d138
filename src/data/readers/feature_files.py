"""One feature file of any system, recognised by its content, as a bag of float32 patch vectors."""

from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import torch

from src.data.readers.h5_files import REMEDY, FeatureFileError, find_dataset, open_h5
from src.data.readers.pt_files import map_tensor
from src.data.slides.patch_size import patch_size_level0

FEATURE_KEYS = ("features", "feats")
"""CLAM and TRIDENT write `features`, STAMP writes `feats`."""
_MOST_PIXELS = np.iinfo(np.int32).max
_HALF_EXPONENT = np.uint16(0x7C00)


@dataclass(frozen=True)
class Bag:
    """The patches of one slide.

    `features` is [n_patches, d_in] float32, `coords` [n_patches, 2] the level-0 pixel (x, y) of each patch's top-left
    corner, or None with the reason in `coords_missing`; `patch_size_level0` is the patch's edge in level-0 pixels, None
    when no file states it.
    """

    item_id: str
    features: np.ndarray
    coords: np.ndarray | None
    patch_size_level0: int | None
    coords_missing: str | None = None


@dataclass(frozen=True)
class Placement:
    """Where the patches of a slide lie, as `Bag` has it; coords are [n_patches, 2] int32."""

    coords: np.ndarray | None
    patch_size_level0: int | None
    coords_missing: str | None = None


def read_shape(path: Path) -> tuple[int, int]:
    """Returns (n_patches, d_in) of a feature file from its header alone.

    Raises:
        FeatureFileError: when the file is damaged, holds no features, or no patches.
    """
    if path.suffix == ".pt":
        return check_shape(tuple(map_tensor(path, REMEDY).shape), path)
    with open_h5(path) as file:
        return check_shape(find_features(file, path).shape, path)


def read_bag(path: Path, item_id: str) -> Bag:
    """Reads the h5 or pt feature file of a slide.

    Known are CLAM h5 (`features`, `coords`; no attributes) and pt (a tensor), TRIDENT h5 (`features`, perhaps fp16;
    `patch_size_level0` among the attributes of `coords`; shape (0,) when empty), and STAMP h5 (`feats` fp16; `coords`
    in micrometres, which are no level-0 pixels without the slide's resolution and are therefore left out).

    Raises:
        FeatureFileError: as `read_shape`; also when coords do not match, or a value is not finite.
    """
    if path.suffix == ".pt":
        tensor = map_tensor(path, REMEDY)
        check_shape(tuple(tensor.shape), path)
        features = tensor.to(torch.float32).numpy()
        place = placement_of_pt(path)
        return Bag(item_id, _check_finite(features, path), None, None, place.coords_missing)
    with open_h5(path) as file:
        dataset = find_features(file, path)
        check_shape(dataset.shape, path)
        features = dataset[()].astype(np.float32, copy=False)
        place = read_placement(file, len(features), path)
    return Bag(item_id, _check_finite(features, path), place.coords, place.patch_size_level0, place.coords_missing)


def read_dtype(path: Path) -> np.dtype:
    """Returns float16 where a pt file holds that, else float32; reads the header only.

    Raises:
        FeatureFileError: when the file is damaged.
    """
    is_half = path.suffix == ".pt" and map_tensor(path, REMEDY).dtype == torch.float16
    return np.dtype(np.float16 if is_half else np.float32)


def find_features(file: h5py.File, path: Path) -> h5py.Dataset:
    """Returns the dataset of features.

    Raises:
        FeatureFileError: when there is none, or not all of it lies in the file, see `find_dataset`.
    """
    for key in FEATURE_KEYS:
        if (dataset := find_dataset(file, key, path)) is not None:
            return dataset
    raise FeatureFileError(f"Expected a dataset {' or '.join(FEATURE_KEYS)} in {path}, got {sorted(file)}. {REMEDY}")


def read_placement(file: h5py.File, n_patches: int, path: Path) -> Placement:
    """Reads the coords of an h5 file, and the patch size from its attributes and theirs.

    Raises:
        FeatureFileError: when coords do not match the number of patches, are beyond 2^31 pixels, or do not lie in the
            file, see `find_dataset`.
    """
    dataset = find_dataset(file, "coords", path)
    if dataset is None:
        return Placement(None, patch_size_level0(file.attrs), f"{path.name} has no dataset coords")
    _check_coords(dataset, n_patches, path)
    size = patch_size_level0({**file.attrs, **dataset.attrs})
    if "feats" in file or file.attrs.get("unit") == "um":
        return Placement(None, size, f"coords of {path.name} are in micrometres, not level-0 pixels")
    coords = dataset[()]
    if not np.issubdtype(coords.dtype, np.integer) and not np.array_equal(coords, np.rint(coords)):
        return Placement(None, size, f"coords of {path.name} are no whole numbers, so no level-0 pixels")
    if np.abs(coords).max() > _MOST_PIXELS:
        raise FeatureFileError(
            f"Expected coords of at most {_MOST_PIXELS} pixels in {path}, got {np.abs(coords).max()}. {REMEDY}"
        )
    return Placement(coords.astype(np.int32), size)


def placement_of_pt(path: Path) -> Placement:
    """Returns that of a pt file, which is none."""
    return Placement(None, None, f"{path.name} is a pt file, which holds none")


def _check_coords(dataset: h5py.Dataset, n_patches: int, path: Path) -> None:
    if dataset.shape != (n_patches, 2):
        raise FeatureFileError(
            f"Expected coords of shape ({n_patches}, 2) beside the features in {path}, got {dataset.shape}. {REMEDY}"
        )


def check_shape(shape: tuple[int, ...], path: Path) -> tuple[int, int]:
    """Returns (n_patches, d_in).

    Raises:
        FeatureFileError: when the shape is another one, or there are no patches.
    """
    if not shape or shape[0] == 0:
        raise FeatureFileError(f"Expected at least one patch in {path}, got 0 (shape {shape}). {REMEDY}")
    if len(shape) != 2:
        raise FeatureFileError(f"Expected features of shape [n_patches, d_in] in {path}, got {shape}. {REMEDY}")
    return shape[0], shape[1]


def _check_finite(features: np.ndarray, path: Path) -> np.ndarray:
    if n_rows := count_rows_not_finite(features):
        raise not_finite(path, n_rows)
    return features


def count_rows_not_finite(features: np.ndarray) -> int:
    """Returns how many rows of features [n, d_in] hold nan or inf."""
    if features.dtype == np.float16:
        # The bits of the exponent are all set in nan and inf; numpy's isfinite is 15 times slower on float16.
        finite = (features.view(np.uint16) & _HALF_EXPONENT) != _HALF_EXPONENT
    else:
        finite = np.isfinite(features)
    return 0 if finite.all() else int((~finite.all(axis=1)).sum())


def not_finite(path: Path, n_rows: int) -> FeatureFileError:
    """Returns the error of a file with nan or inf in `n_rows` rows."""
    return FeatureFileError(f"Expected finite features in {path}, got nan or inf in {n_rows} of its rows. {REMEDY}")
