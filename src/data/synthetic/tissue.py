"""The architecture of synthetic slides: where tissue, glands and tumour lie, and how stroma is woven."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFilter
from scipy import ndimage

Outline = np.ndarray
"""Vertices (x, y) of a closed polygon in level-0 pixels, [n_vertices, 2]."""

_FIELD_SCALE = 16
TUMOR_SHARE = (0.03, 0.20)
"""Least and largest share of the tissue that tumour takes in a positive slide."""


@dataclass(frozen=True)
class Gland:
    """A gland: its outer border, its lumen and its centre, in level-0 pixels."""

    centre: np.ndarray
    border: Outline
    lumen: Outline


def smooth_field(shape: tuple[int, ...], wavelength: float, rng: np.random.Generator) -> np.ndarray:
    """Returns a random field [height, width] of unit variance that varies over about `wavelength` cells."""
    step = max(1, int(wavelength // 4))
    coarse = (shape[0] // step + 3, shape[1] // step + 3)
    field = ndimage.gaussian_filter(rng.standard_normal(coarse, dtype=np.float32), wavelength / step / 4, mode="wrap")
    field /= field.std()
    return resize(field, (coarse[0] * step, coarse[1] * step))[: shape[0], : shape[1]]


def resize(field: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Returns a field resampled to [height, width]."""
    image = Image.fromarray(np.asarray(field, np.float32))
    return np.asarray(image.resize((shape[1], shape[0]), Image.Resampling.BICUBIC))


def draw_tissue(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Draws a piece of tissue with a ragged border.

    Args:
        shape: height and width of the result.
        rng: source of the outline.

    Returns:
        How much each pixel is tissue, from 0 (glass) to 1.
    """
    coarse = (shape[0] // _FIELD_SCALE * 2 + 2, shape[1] // _FIELD_SCALE * 2 + 2)
    y, x = (np.mgrid[: coarse[0], : coarse[1]] / np.reshape(coarse, (2, 1, 1)) - 0.5) * 2
    turn, stretch = rng.uniform(0, np.pi), np.exp(rng.normal(0, 0.2))
    along, across = x * np.cos(turn) + y * np.sin(turn), y * np.cos(turn) - x * np.sin(turn)
    distance = (np.abs(along * stretch) ** 2.4 + np.abs(across / stretch) ** 2.4) ** (1 / 2.4)
    border = 3.0 * np.maximum(np.abs(x), np.abs(y)) ** 12  # tissue keeps off the slide's edge
    field = distance + border - 0.2 * smooth_field(coarse, max(coarse) / 2.5, rng)
    field -= 0.05 * smooth_field(coarse, max(coarse) / 8, rng)
    level = np.quantile(field, rng.uniform(0.45, 0.58))
    field = resize(((level - field) * coarse[0]).astype(np.float32), shape)
    ragged = field + 0.6 * smooth_field(shape, 24, rng) + 0.25 * smooth_field(shape, 6, rng)
    return 1 / (1 + np.exp(-np.clip(4 * ragged, -30, 30)))


def weave_fibres(shape: tuple[int, ...], rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Weaves wavy collagen: noise stretched along one direction, bent by a smooth displacement.

    Args:
        shape: height and width.
        rng: source of the weave.

    Returns:
        The texture with unit variance, and the direction of its fibres in radians, both [height, width].
    """
    noise = rng.standard_normal((1024, 1024), dtype=np.float32)
    texture = ndimage.gaussian_filter(noise, (1.8, 12), mode="wrap")
    texture = texture / texture.std() + 0.6 * _unit(ndimage.gaussian_filter(noise[::-1, ::-1], (3.5, 30), mode="wrap"))
    y, x = np.mgrid[: shape[0], : shape[1]].astype(np.float32)
    x = x + 45 * smooth_field(shape, 260, rng) + 9 * smooth_field(shape, 70, rng)
    y = y + 45 * smooth_field(shape, 260, rng) + 9 * smooth_field(shape, 70, rng)
    turn = rng.uniform(0, np.pi)
    along, across = x * np.cos(turn) + y * np.sin(turn), y * np.cos(turn) - x * np.sin(turn)
    woven = ndimage.map_coordinates(texture, [across, along], order=1, mode="grid-wrap")
    slope_y, slope_x = np.gradient(across)
    return _unit(np.asarray(woven)), np.arctan2(-slope_x, slope_y)


def place_tumor(tissue: np.ndarray, scale: float, rng: np.random.Generator) -> list[Outline]:
    """Places one to three compact regions that together cover a share of the tissue within `TUMOR_SHARE`.

    Args:
        tissue: where tissue is, [height, width] on a grid of `scale` level-0 pixels.
        scale: level-0 pixels a cell.
        rng: source of the places and shapes.

    Returns:
        The outlines in level-0 pixels.
    """
    depth = np.asarray(ndimage.distance_transform_edt(tissue))
    while True:
        n_regions = int(rng.integers(1, 4))
        weights = rng.dirichlet(np.full(n_regions, 6.0))
        areas = rng.uniform(0.06, 0.18) * tissue.sum() * weights
        outlines: list[Outline] = []
        free = depth.copy()
        for area in areas:
            radius = np.sqrt(area / np.pi)
            rows, columns = np.nonzero(free > min(0.8 * radius, 0.9 * free.max()))
            chosen = rng.integers(len(rows))
            centre = np.array([columns[chosen], rows[chosen]], float)
            outlines.append((blob(centre, radius, 0.16, 72, rng) + 0.5) * scale)
            others = np.asarray(ndimage.distance_transform_edt(~fill(outlines, tissue.shape, scale)))
            free = np.minimum(free, np.maximum(others - 4, 0))
            if not free.any():
                break
        share = (fill(outlines, tissue.shape, scale) & tissue).sum() / tissue.sum()
        # The margin absorbs what the coarse grid misjudges.
        if len(outlines) == n_regions and TUMOR_SHARE[0] * 1.2 < share < TUMOR_SHARE[1] * 0.95:
            return outlines


def make_gland(centre: np.ndarray, rng: np.random.Generator) -> Gland:
    """Makes a gland of random size at a place."""
    radius = rng.uniform(32, 80)
    border = blob(centre, radius, 0.10, 48, rng)
    inner = rng.uniform(0.3, 0.55)
    lumen = centre + (border - centre) * inner + 0.04 * radius * rng.standard_normal((48, 2))
    return Gland(centre, border, lumen)


def blob(centre: np.ndarray, radius: float, irregularity: float, n_vertices: int, rng: np.random.Generator) -> Outline:
    """Returns the outline of a compact, irregular blob of about the area of a circle of `radius`."""
    angle = np.linspace(0, 2 * np.pi, n_vertices, endpoint=False)
    reach = 1 + irregularity * sum(
        rng.standard_normal() * np.cos(order * angle + rng.uniform(0, 2 * np.pi)) / np.sqrt(order)
        for order in (2, 3, 4, 5, 7)
    )
    reach = np.maximum(reach, 0.4)
    reach *= radius / np.sqrt(np.mean(reach**2))
    return centre + np.stack([reach * np.cos(angle), reach * np.sin(angle)], axis=1)


def fill(outlines: Sequence[Outline], shape: tuple[int, ...], scale: float) -> np.ndarray:
    """Returns the inside of level-0 outlines on a grid of `scale` level-0 pixels, [height, width]."""
    return np.asarray(_polygons(outlines, shape, scale)) > 127


def soft_fill(outlines: Sequence[Outline], shape: tuple[int, ...], scale: float, blur: float) -> np.ndarray:
    """Returns `fill` from 0 to 1 with borders blurred over about `blur` cells."""
    image = _polygons(outlines, shape, scale).filter(ImageFilter.GaussianBlur(blur))
    return np.asarray(image, np.float32) / 255


def _polygons(outlines: Sequence[Outline], shape: tuple[int, ...], scale: float) -> Image.Image:
    image = Image.new("L", (shape[1], shape[0]))
    draw = ImageDraw.Draw(image)
    for outline in outlines:
        draw.polygon([tuple(vertex) for vertex in outline / scale - 0.5], fill=255)
    return image


def _unit(field: np.ndarray) -> np.ndarray:
    return (field - field.mean()) / field.std()
