"""Writes the activations of a slide's patches in CLAM's layout."""

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch

from src.activation_spec import ActivationSpec
from src.files import write_atomically

_CHUNK_ROWS = 32  # CLAM's


def is_embedded(path: Path, coords: np.ndarray, spec: ActivationSpec, slide: str, may_replace: bool) -> bool:
    """Whether a slide's file is there, of this spec, this slide and these patches.

    Args:
        path: the h5 file.
        coords: of the patches.
        spec: of the activations that are to be made.
        slide: digest of the slide.
        may_replace: whether activations of another spec are made again, being this run's own of before.

    Raises:
        ValueError: when the folder holds activations of another spec; prints both.
    """
    if not path.is_file():
        return False
    with h5py.File(path, "r") as file:
        embedded: Any = file["coords"]
        found = ActivationSpec.from_json(file.attrs.get("spec"))
        is_same = np.array_equal(embedded, coords) and file.attrs.get("slide") == slide
    if found != spec and not may_replace:
        raise other_spec(path, spec, found)
    return is_same and found == spec


def other_spec(path: Path, here: ActivationSpec, there: ActivationSpec) -> ValueError:
    """Returns the error of a folder that holds activations of another spec."""
    return ValueError(
        f"Expected {path} to hold activations of this configuration, got others:\n  here: {here}\n"
        f"  there: {there}\nGive another dataset.features_dir, or overwrite=true to embed again."
    )


def write_features(folder: Path, features: np.ndarray, coords: np.ndarray, attributes: dict[str, Any]) -> None:
    """Writes `pt_files/<name>.pt` and then `h5_files/<name>.h5`, which is the sign that the slide is done.

    Args:
        folder: gets both.
        features: [n_patches, d_in].
        coords: level-0 corners [n_patches, 2].
        attributes: of the h5 file; `name` is the slide's id.
    """
    n_bytes = features.nbytes + coords.nbytes
    pt_path, h5_path = (folder / f"{kind}_files" / f"{attributes['name']}.{kind}" for kind in ("pt", "h5"))
    # Given a path, torch.save would note its random name inside: equal features have equal bytes.
    with write_atomically(pt_path, n_bytes) as temporary, open(temporary, "wb") as opened:
        torch.save(torch.from_numpy(features), opened)
    with write_atomically(h5_path, n_bytes) as temporary, h5py.File(temporary, "w") as file:
        n_rows, width = features.shape
        chunk = min(_CHUNK_ROWS, n_rows)
        file.create_dataset("features", data=features, chunks=(chunk, width), maxshape=(None, width))
        file.create_dataset("coords", data=coords.astype(np.int32), chunks=(chunk, 2), maxshape=(None, 2))
        file.attrs.update(attributes)
