"""Figure of slides with the patches that were kept."""

from collections.abc import Sequence

import numpy as np
from matplotlib.collections import PatchCollection
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

_COLUMNS = 3


def plot_patches(panels: Sequence[tuple[str, np.ndarray, np.ndarray, float]]) -> Figure:
    """Draws slides in small, every kept patch framed.

    Args:
        panels: name, image [H, W, 3], top-left corners [n_patches, 2] and edge of the patches in its pixels.
    """
    columns = min(_COLUMNS, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(3.4 * columns, 3.5 * rows), layout="constrained", dpi=110)
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in grid:
        axes.axis("off")
        axes.set_anchor("NW")  # titles of a row on one line, whatever the slides' shapes
    for axes, (name, image, corners, size) in zip(grid, panels, strict=False):  # the last row may have room left
        axes.imshow(image)
        frames = PatchCollection(
            [Rectangle((x, y), size, size) for x, y in corners], facecolor="none", edgecolor="#0072B2", linewidth=0.6
        )
        axes.add_collection(frames)
        axes.set_title(f"{name}, {len(corners)} patches", fontsize=11, loc="left")
    return figure
