"""Cell nuclei of synthetic slides: their shapes and chromatin, where they lie, and how they are drawn."""

from dataclasses import dataclass

import numpy as np
from scipy import ndimage
from scipy.spatial import KDTree

_ROUNDS = 4
N_ANGLES = 16
"""Orientations that a bank of stamps holds, evenly over half a turn."""


@dataclass(frozen=True)
class NucleusKind:
    """What the nuclei of one cell type look like; lengths in level-0 pixels, densities in optical density.

    Attributes:
        length: mean half-axis along the nucleus.
        width: mean half-axis across it.
        spread: standard deviation of the logarithm of the size.
        irregularity: how far the outline departs from an ellipse, as a share of the radius.
        density: haematoxylin of the nucleoplasm.
        rim: haematoxylin that the membrane adds.
        chromatin: standard deviation of the haematoxylin inside.
        n_nucleoli: dark spots inside.
    """

    length: float
    width: float
    spread: float
    irregularity: float
    density: float
    rim: float
    chromatin: float
    n_nucleoli: int = 0


def draw_stamps(kind: NucleusKind, n_shapes: int, rng: np.random.Generator) -> np.ndarray:
    """Draws a bank of nuclei, each in all orientations.

    Args:
        kind: what they look like.
        n_shapes: how many different nuclei an orientation has.
        rng: source of the shapes.

    Returns:
        Haematoxylin density [N_ANGLES, n_shapes, edge, edge]; orientation i points along the angle i * pi / N_ANGLES.
    """
    edge = 2 * int(np.ceil(kind.length * np.exp(2 * kind.spread) * (1 + kind.irregularity) + 2)) + 1
    shape = (N_ANGLES, n_shapes, 1, 1)
    y, x = np.mgrid[:edge, :edge].astype(np.float32) - edge // 2
    turn = (np.arange(N_ANGLES) * np.pi / N_ANGLES).reshape(-1, 1, 1, 1)
    along = x * np.cos(turn) + y * np.sin(turn)
    across = y * np.cos(turn) - x * np.sin(turn)
    size = np.exp(kind.spread * np.clip(rng.standard_normal(shape), -2, 2))
    stretch = np.exp(0.6 * kind.spread * np.clip(rng.standard_normal(shape), -2, 2))
    angle = np.arctan2(across, along)
    outline = 1 + kind.irregularity * sum(
        rng.standard_normal(shape) * np.cos(order * angle + rng.uniform(0, 2 * np.pi, shape)) / order
        for order in (2, 3, 4, 5)
    )
    radius = np.hypot(along / (kind.length * size * stretch), across / (kind.width * size / stretch)) / outline
    inside = 1 / (1 + np.exp(np.clip((radius - 1) * kind.width * 2.2, -30, 30)))
    density = kind.density + kind.rim * np.exp(-(((radius - 0.88) / 0.14) ** 2))
    density = density + kind.chromatin * _grain(rng, (N_ANGLES, n_shapes, edge, edge))
    for _ in range(kind.n_nucleoli):
        place = rng.uniform(-0.45, 0.45, (2, *shape)) * kind.width
        spot = np.hypot(along - place[0], across - place[1]) / rng.uniform(1.6, 2.8, shape)
        density = density + 0.35 * np.exp(-(spot**2))
    return (inside * np.maximum(density, 0.05)).astype(np.float32)


def scatter(area: np.ndarray, scale: float, spacing: float, rng: np.random.Generator) -> np.ndarray:
    """Scatters points over an area, no two closer than `spacing`, on no lattice.

    Rounds of Matern's second hard-core process (B. Matern, Spatial Variation, 1960): of two candidates that are too
    close the later one goes; each round fills what the ones before left.

    Args:
        area: where points may lie, [height, width] on a grid of `scale` level-0 pixels.
        scale: level-0 pixels a cell of `area`.
        spacing: least distance in level-0 pixels.
        rng: source of the places.

    Returns:
        Points (x, y) in level-0 pixels, [n, 2].
    """
    rows, columns = np.nonzero(area)
    kept = np.empty((0, 2))
    if not len(rows):
        return kept
    n_candidates = int(1.3 * len(rows) * (scale / spacing) ** 2) + 1
    for _ in range(_ROUNDS):
        chosen = rng.integers(len(rows), size=n_candidates)
        cells = np.stack([columns[chosen], rows[chosen]], axis=1)
        points = np.concatenate([kept, (cells + rng.uniform(size=cells.shape)) * scale])
        pairs = KDTree(points).query_pairs(spacing, output_type="ndarray")
        crowded = np.zeros(len(points), bool)
        crowded[pairs.max(axis=1)] = True
        kept = points[~crowded]
    return kept


def stamp_onto(
    canvas: np.ndarray,
    stamps: np.ndarray,
    points: np.ndarray,
    angles: np.ndarray,
    strengths: np.ndarray,
    rng: np.random.Generator,
) -> None:
    """Draws nuclei onto a haematoxylin canvas in place; where two meet, the denser shows.

    Args:
        canvas: density [height, width] at level 0.
        stamps: a bank from `draw_stamps`.
        points: centres (x, y), [n, 2].
        angles: directions of the long axes in radians, [n].
        strengths: factors on the density, [n].
        rng: chooses the shapes.
    """
    height, width = canvas.shape
    half = stamps.shape[-1] // 2
    turns = np.rint(angles / np.pi * N_ANGLES).astype(int) % N_ANGLES
    shapes = rng.integers(stamps.shape[1], size=len(points))
    corners = np.rint(points).astype(int) - half
    for (left, top), turn, shape, strength in zip(corners, turns, shapes, strengths, strict=True):
        x, y = max(left, 0), max(top, 0)
        right, bottom = min(left + 2 * half + 1, width), min(top + 2 * half + 1, height)
        if x >= right or y >= bottom:
            continue
        target = canvas[y:bottom, x:right]
        stamp = stamps[turn, shape, y - top : bottom - top, x - left : right - left]
        np.maximum(target, stamp * np.float32(strength), out=target)


def _grain(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Noise of unit variance whose neighbouring pixels resemble each other, as clumped chromatin does."""
    noise = rng.standard_normal(shape, dtype=np.float32)
    noise = ndimage.gaussian_filter(noise, (0, 0, 0.9, 0.9), mode="wrap")
    return noise / noise.std()
