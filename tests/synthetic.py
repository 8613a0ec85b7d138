"""Small data sets with a known answer, for tests."""

from pathlib import Path

import h5py
import numpy as np


def make_feature_folder(
    path: Path, n_slides: int = 60, n_patches: int = 60, d_in: int = 16, seed: int = 0, classes=("normal", "tumor")
) -> Path:
    """Writes a CLAM-shaped folder of features in which one direction marks some patches of the last class.

    Features are sparse non-negative mixtures of fixed directions, so that an SAE has something to find; two slides a
    case; the label of a slide is its case's.
    """
    generator = np.random.default_rng(seed)
    directions = generator.standard_normal((2 * d_in, d_in)).astype(np.float32)
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    (path / "h5_files").mkdir(parents=True)
    rows = ["case_id,slide_id,label"]
    for index in range(n_slides):
        case = index // 2
        label = classes[case % len(classes)]
        n = n_patches + index % 5
        weights = generator.gamma(2.0, size=(n, 2 * d_in)) * (generator.random((n, 2 * d_in)) < 0.15)
        weights[:, -1] = 0
        if label == classes[-1]:
            weights[: n // 5, -1] = 4 + generator.random(n // 5)
        features = (weights @ directions).astype(np.float32)
        side = int(np.ceil(np.sqrt(n)))
        coords = np.stack(np.divmod(np.arange(n), side), axis=1).astype(np.int32) * 256
        with h5py.File(path / "h5_files" / f"{index:03d}.h5", "w") as file:
            file["features"] = features
            file["coords"] = coords
        rows.append(f"c{case:02d},{index:03d},{label}")
    (path / "dataset.csv").write_text("\n".join(rows) + "\n")
    return path
