"""Where in an image a neuron fires: its values on the tokens of the image, as a map over the image's pixels."""

from typing import NamedTuple

import numpy as np

from src.activation_spec import UNKNOWN, ActivationSpec
from src.models.backbones.preprocessing import Window
from src.models.backbones.spec import POOLED

INTERPOLATIONS = ("bilinear", "nearest")
SCALES = ("neuron", "image", "absolute")
WHOLE = Window(0.0, 0.0, 1.0, 1.0)
_ALL_TOKENS = "all"


class Grid(NamedTuple):
    """The tokens of an image: `n_prefix` class and register tokens, then rows * columns patch tokens, row by row."""

    rows: int
    columns: int
    n_prefix: int = 0

    @property
    def n_tokens(self) -> int:
        """How many rows of activations an image has."""
        return self.rows * self.columns + self.n_prefix


def token_grid(spec: ActivationSpec, n_rows: int) -> Grid:
    """Returns how the rows of an image lie in it.

    Args:
        spec: of the activations; its `tokens` and `grid` say it.
        n_rows: how many rows an image has.

    Raises:
        ValueError: when the rows have no place in the image (class token, pooled), or nothing says which.
    """
    if spec.tokens in POOLED:
        raise ValueError(
            f"Expected rows that have a place in the image, got one row an image (backbone.tokens={spec.tokens}): "
            "embed the images with backbone.tokens=patch or all."
        )
    if spec.grid == UNKNOWN:
        raise ValueError(
            f"Expected activations that say the grid of their {n_rows} tokens, got none: embed the images with "
            "task=embed."
        )
    rows, columns = map(int, spec.grid.split("x"))
    n_prefix = n_rows - rows * columns
    if n_prefix < 0 or (n_prefix and spec.tokens != _ALL_TOKENS):
        raise ValueError(
            f"Expected {rows * columns} rows an image, of a grid of {rows}x{columns} tokens, got {n_rows}: embed the "
            "images again with task=embed overwrite=true."
        )
    return Grid(rows, columns, n_prefix)


def to_grid(values: np.ndarray, grid: Grid) -> np.ndarray:
    """Returns values of an image's tokens [n_tokens, n] as maps [n, rows, columns]; prefix tokens are left out."""
    patches = np.asarray(values, np.float32)[grid.n_prefix :]
    return patches.T.reshape(-1, grid.rows, grid.columns)


def to_pixels(
    maps: np.ndarray, height: int, width: int, window: Window = WHOLE, interpolation: str = "bilinear"
) -> np.ndarray:
    """Returns maps over the pixels of an image, with resize and crop of the backbone undone.

    Each cell of the grid stands for an equal part of what the model saw of the image. Bilinear interpolation is that
    of torch's `interpolate(align_corners=False)`, which Mammo-SAE uses; PatchSAE's demo uses `nearest`.

    Args:
        maps: [..., rows, columns].
        height: of the image in pixels, at any scale: as it is stored, or of a small copy.
        width: of the image.
        window: the part of the image that the model saw.
        interpolation: `bilinear` or `nearest`.

    Returns:
        [..., height, width] float32, 0 where the model did not look.
    """
    down = _weights(maps.shape[-2], height, window.top, window.bottom, interpolation)
    across = _weights(maps.shape[-1], width, window.left, window.right, interpolation)
    return down @ np.asarray(maps, np.float32) @ across.T


def token_centres(grid: Grid, height: int, width: int, window: Window = WHOLE) -> np.ndarray:
    """Returns the centres (x, y) of the patch tokens in pixels of the image, [rows * columns, 2] float64."""
    y = (window.top + (np.arange(grid.rows) + 0.5) / grid.rows * (window.bottom - window.top)) * height
    x = (window.left + (np.arange(grid.columns) + 0.5) / grid.columns * (window.right - window.left)) * width
    return np.stack([np.tile(x, grid.rows), np.repeat(y, grid.columns)], axis=1)


def cover_tokens(mask: np.ndarray, grid: Grid, window: Window = WHOLE) -> np.ndarray:
    """Returns the share of each patch token's area that a mask covers.

    Args:
        mask: bool [height, width] over the image.
        grid: of the tokens.
        window: the part of the image that the model saw.

    Returns:
        [rows * columns] float64 from 0 to 1.
    """
    down = _overlaps(grid.rows, mask.shape[0], window.top, window.bottom)
    across = _overlaps(grid.columns, mask.shape[1], window.left, window.right)
    return (down @ mask.astype(np.float64) @ across.T).reshape(-1)


def mask_levels(thresholds: np.ndarray, scale: str, maps: np.ndarray, neuron_maxima: np.ndarray) -> np.ndarray:
    """Returns the values above which pixels belong to a neuron's mask.

    A threshold is a share of the neuron's maximum over the data set (`neuron`), a share of the maximum of the image
    (`image`; 0.3 in Mammo-SAE), or a value of the latents (`absolute`). No level is below 0, so that the mask of a
    silent neuron is empty.

    Args:
        thresholds: [n_thresholds].
        scale: `neuron`, `image` or `absolute`.
        maps: [n, height, width].
        neuron_maxima: [n] the maximum of each map's neuron over the data set.

    Returns:
        [n_thresholds, n].
    """
    if scale not in SCALES:
        raise ValueError(f"Expected visualize.scale to be one of {', '.join(SCALES)}, got {scale!r}.")
    of_maps = {"neuron": neuron_maxima, "image": maps.max(axis=(1, 2)), "absolute": np.ones(len(maps))}[scale]
    return np.maximum(np.asarray(thresholds)[:, None] * of_maps, 0.0)


def _weights(n_cells: int, n_pixels: int, start: float, stop: float, interpolation: str) -> np.ndarray:
    """Returns the weight of each cell at each pixel along one axis, [n_pixels, n_cells] float32; 0 outside."""
    if interpolation not in INTERPOLATIONS:
        raise ValueError(
            f"Expected visualize.interpolation to be one of {', '.join(INTERPOLATIONS)}, got {interpolation!r}."
        )
    shares = ((np.arange(n_pixels) + 0.5) / n_pixels - start) / (stop - start)  # of what the model saw
    inside = np.flatnonzero((shares >= 0) & (shares < 1))
    weights = np.zeros((n_pixels, n_cells), np.float32)
    places = shares[inside] * n_cells
    if interpolation == "nearest":
        weights[inside, places.astype(int)] = 1
        return weights
    places = np.clip(places - 0.5, 0, n_cells - 1)
    low = np.minimum(places.astype(int), max(n_cells - 2, 0))
    weights[inside, low] = 1 - (places - low)
    weights[inside, np.minimum(low + 1, n_cells - 1)] += places - low
    return weights


def _overlaps(n_cells: int, n_pixels: int, start: float, stop: float) -> np.ndarray:
    """Returns the share of each cell that lies in each pixel along one axis, [n_cells, n_pixels] float64."""
    edges = np.linspace(start * n_pixels, stop * n_pixels, n_cells + 1)
    pixels = np.arange(n_pixels)
    overlap = np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels)
    return np.maximum(overlap, 0) / np.diff(edges)[:, None]
