"""Scores of patches as GeoJSON features, which QuPath draws and measures."""

from typing import Any

import numpy as np


def patch_features(coords: np.ndarray, size: int, scores: np.ndarray, name: str) -> list[dict[str, Any]]:
    """Returns a square a patch, a detection object of QuPath (0.4 and later) with its score as a measurement.

    Args:
        coords: top-left corners in level-0 pixels, [n_patches, 2].
        size: edge of a patch in level-0 pixels.
        scores: [n_patches].
        name: of the measurement and the classification.
    """
    ring = np.array([[0, 0], [1, 0], [1, 1], [0, 1], [0, 0]]) * size
    return [
        {
            "type": "Feature",
            "geometry": {"type": "Polygon", "coordinates": [corners]},
            "properties": {
                "objectType": "detection",
                "classification": {"name": name},
                "measurements": {name: score},
            },
        }
        for corners, score in zip((coords[:, None] + ring).tolist(), np.asarray(scores, float).tolist(), strict=True)
    ]
