"""Scores of patches drawn where they lie on the slide, beside the true outline."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from src.analysis.figure_style import BLACK, styled

# Perceptually uniform; light where the score is low, so that glass, silence and low scores recede together.
_COLORMAP = "magma_r"
_OUTLINE = "#00A0C6"
_TISSUE = "#dddddd"  # of patches where there is no slide
# Colours end at this percentile of a slide's scores, so that a single patch does not make all others pale.
_BRIGHTEST = 99.5
_MARGIN = 0.04
_PANEL_INCHES = 3.4


@dataclass(frozen=True)
class SlideImage:
    """A slide as a small image.

    Attributes:
        pixels: RGB, uint8 [height, width, 3].
        size_level0: width and height of the whole slide at level 0, in pixels.
        mpp: micrometres a level-0 pixel, None when the slide does not say.
    """

    pixels: np.ndarray
    size_level0: tuple[int, int]
    mpp: float | None


@dataclass(frozen=True)
class PatchMap:
    """One score for each patch of a slide.

    Attributes:
        title: shown above the panel.
        scale: what the colours mean, shown under the panel.
        scores: one a patch, [n_patches].
        floor: where the colours begin; patches at or below it are drawn transparent.
        least_range: the colours span at least this much above the floor, so that small differences stay pale.
    """

    title: str
    scale: str
    scores: np.ndarray
    floor: float = 0.0
    least_range: float = 0.0


@styled
def plot_overlay(
    slide: SlideImage | None,
    coords: np.ndarray,
    patch_size_level0: int,
    maps: Sequence[PatchMap],
    outlines: Sequence[np.ndarray],
) -> Figure:
    """Draws a slide with its true outline, and each map on a pale copy of it, cut to the tissue.

    Args:
        slide: the slide's thumbnail; None: maps lie on white, between the outermost patches.
        coords: top-left corners of the patches in level-0 pixels, [n_patches, 2].
        patch_size_level0: edge of a patch in level-0 pixels.
        maps: what to draw beside the slide.
        outlines: closed polygons in level-0 pixels, each [n_points, 2].

    Raises:
        ValueError: a map has not one score a patch.
    """
    for patch_map in maps:
        if len(patch_map.scores) != len(coords):
            raise ValueError(
                f"Expected {len(coords)} scores for {patch_map.title!r}, one a patch, got {len(patch_map.scores)}."
            )
    size = (np.inf, np.inf) if slide is None else slide.size_level0
    left, top, right, bottom = _bounds(coords, patch_size_level0, outlines, size)
    panel_height = np.clip(_PANEL_INCHES * (bottom - top) / (right - left), 1.6, 6.5)
    figure = Figure(figsize=(_PANEL_INCHES * (1 + len(maps)), panel_height + 1.25))
    panels, bars = figure.subplots(2, 1 + len(maps), squeeze=False, height_ratios=(30, 1))
    bars[0].set_axis_off()
    pale = None if slide is None else _pale_grey(slide.pixels)
    for number, axes in enumerate(panels):
        if slide is not None:
            width, height = slide.size_level0
            pixels = pale if number else slide.pixels
            axes.imshow(pixels, extent=(0, width, height, 0), interpolation="antialiased", zorder=0)
        elif not number:
            _draw_squares(axes, coords, patch_size_level0)
        axes.set(xlim=(left, right), ylim=(bottom, top), xticks=[], yticks=[], aspect="equal")
        axes.grid(visible=False)
        axes.spines[:].set_visible(False)
    what = "Slide" if slide is not None else "Patches"
    panels[0].set_title(f"{what} and true outline" if outlines else f"{what} (no outline)")
    _draw_outlines(panels[0], outlines)
    if slide is not None and slide.mpp is not None:
        _draw_scale_bar(panels[0], slide.mpp)
    for axes, bar, patch_map in zip(panels[1:], bars[1:], maps, strict=True):
        _draw_map(axes, bar, coords, patch_size_level0, patch_map)
        _draw_outlines(axes, outlines)
        axes.set_title(patch_map.title)
    return figure


def scale_bar_length(width: float, mpp: float) -> float:
    """Returns the longest of 1, 2, 5, 10, ... micrometres that takes at most a quarter of `width` level-0 pixels."""
    longest = width * mpp / 4
    power = 10.0 ** np.floor(np.log10(longest))
    return float(max(step * power for step in (1, 2, 5) if step * power <= longest))


def _bounds(
    coords: np.ndarray, patch_size: int, outlines: Sequence[np.ndarray], size: tuple[float, float]
) -> tuple[float, float, float, float]:
    """Returns left, top, right, bottom of what must be seen, with a margin, inside the slide."""
    corners = np.concatenate([coords, coords + patch_size, *outlines])
    low, high = corners.min(axis=0), corners.max(axis=0)
    margin = _MARGIN * (high - low).max()
    (left, top), (right, bottom) = np.maximum(low - margin, 0), np.minimum(high + margin, size)
    return float(left), float(top), float(right), float(bottom)


def _draw_map(axes: Axes, bar: Axes, coords: np.ndarray, patch_size: int, patch_map: PatchMap) -> None:
    scores = np.asarray(patch_map.scores, dtype=float)
    floor = patch_map.floor
    shown = scores > floor
    # A slide on which the neuron is silent has nothing to colour, and still needs a scale.
    brightest = float(np.percentile(scores[shown], _BRIGHTEST)) if shown.any() else floor + 1.0
    brightest = max(brightest, floor + patch_map.least_range)
    squares = _draw_squares(
        axes,
        coords[shown],
        patch_size,
        array=scores[shown],
        cmap=mpl.colormaps[_COLORMAP],
        clim=(floor, brightest),
        alpha=0.85,
        zorder=2,
    )
    extend: Any = "max" if shown.any() and scores.max() > brightest else "neither"
    scale = axes.figure.colorbar(squares, cax=bar, orientation="horizontal", extend=extend, ticks=MaxNLocator(4))
    scale.outline.set_visible(False)  # pyright: ignore[reportCallIssue]
    scale.set_label(patch_map.scale if shown.any() else f"{patch_map.scale}: at most {floor:g} everywhere")


def _draw_squares(axes: Axes, coords: np.ndarray, patch_size: int, **look: Any) -> PolyCollection:
    corners = np.array([[0, 0], [1, 0], [1, 1], [0, 1]]) * patch_size
    look = {"facecolor": _TISSUE} | look if "array" not in look else look
    vertices: Any = coords[:, None, :] + corners  # of one array matplotlib makes all paths at once, of a list not
    squares = PolyCollection(vertices, linewidth=0, antialiased=False, **look)
    axes.add_collection(squares, autolim=False)
    return squares


def _draw_outlines(axes: Axes, outlines: Sequence[np.ndarray]) -> None:
    for outline in outlines:
        closed = np.concatenate([outline, outline[:1]])
        axes.plot(closed[:, 0], closed[:, 1], color=_OUTLINE, linewidth=1.8, path_effects=_halo(3.6), zorder=4)


def _draw_scale_bar(axes: Axes, mpp: float) -> None:
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    length = scale_bar_length(right - left, mpp)
    x, y = left + 0.03 * (right - left), bottom - 0.03 * (bottom - top)
    axes.plot([x, x + length / mpp], [y, y], color=BLACK, linewidth=3, solid_capstyle="butt", path_effects=_halo(6))
    text = f"{length / 1000:g} mm" if length >= 1000 else f"{length:g} µm"
    look: Any = {"ha": "center", "va": "bottom", "color": BLACK, "path_effects": _halo(3)}
    axes.annotate(text, (x + length / mpp / 2, y), (0, 5), textcoords="offset points", **look)


def _halo(linewidth: float) -> list[Any]:
    return [patheffects.Stroke(linewidth=linewidth, foreground="white"), patheffects.Normal()]


def _pale_grey(pixels: np.ndarray) -> np.ndarray:
    """Returns the image in light grey, so that only the map has colour."""
    grey = pixels.astype(float).mean(axis=2, keepdims=True)
    return np.repeat((140 + grey * 115 / 255).astype(np.uint8), 3, axis=2)
