"""Draws one synthetic slide: tissue, cells, stains and camera, from one seed."""

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from src.data.synthetic import tissue as tissue_parts
from src.data.synthetic.cells import NucleusKind, draw_stamps, scatter, stamp_onto
from src.data.synthetic.tissue import Gland, Outline

MICRONS_PER_PIXEL = 0.5

# Textures are drawn at half the resolution of nuclei: nothing in them is finer than two pixels.
_SCALE = 2
_FIBROBLAST = NucleusKind(9, 2.8, 0.20, 0.05, 0.52, 0.10, 0.06)
_LYMPHOCYTE = NucleusKind(5.2, 4.8, 0.10, 0.04, 0.75, 0.05, 0.08)
_EPITHELIUM = NucleusKind(8.2, 4.8, 0.10, 0.04, 0.52, 0.12, 0.06, 1)
_TUMOR = NucleusKind(13.0, 10.0, 0.22, 0.16, 0.36, 0.26, 0.27, 2)
_SHAPES = 8
_MEAN_HAEMATOXYLIN = 0.16
_MEAN_EOSIN = 0.23
_NEIGHBOURHOOD = 28
_PATCHINESS = 0.12

# Absorption of red, green and blue: the reference vectors to which slides are commonly normalised by the method of
# M. Macenko et al., ISBI 2009, p. 1107.
_HAEMATOXYLIN = np.array([0.5626, 0.7201, 0.4062])
_EOSIN = np.array([0.2159, 0.8012, 0.5581])


@dataclass(frozen=True)
class Stain:
    """How a laboratory stains; slides vary about it.

    Attributes:
        haematoxylin: absorption of red, green and blue.
        eosin: the same.
        strengths: factors on the mean density of haematoxylin and of eosin.
    """

    haematoxylin: np.ndarray
    eosin: np.ndarray
    strengths: tuple[float, float] = (1.0, 1.0)


# The second: a browner haematoxylin and a strong orange eosin (Ruifrok and Johnston, Anal. Quant. Cytol. Histol. 2001,
# give vectors of this kind), further apart than slides of one laboratory are.
STAINS = (
    Stain(_HAEMATOXYLIN, _EOSIN),
    Stain(np.array([0.650, 0.704, 0.286]), np.array([0.072, 0.990, 0.105]), (0.8, 1.35)),
)
"""Of the centres of a data set."""


def draw_slide(seed: int, positive: bool, size: int, stain: Stain = STAINS[0]) -> tuple[np.ndarray, list[Outline]]:
    """Draws an H&E-like slide.

    Glass, a piece of tissue of wavy stroma with fibroblasts, glands and lymphocytes; in positive slides one to three
    compact tumour regions that are told by larger, denser-lying, irregular nuclei with coarse chromatin. Dyes,
    thickness and brightness differ from slide to slide, and the mean of each dye over a neighbourhood is made
    independent of what lies there, so that a mean colour does not tell tumour.

    Args:
        seed: the same seed gives the same pixels.
        positive: whether the slide holds tumour.
        size: mean edge of the slide in pixels; height and width differ from it by up to an eighth.
        stain: of the laboratory; all else is the same with any.

    Returns:
        The image, uint8 [height, width, 3] at 0.5 micrometres a pixel, and the tumour outlines in its pixels.

    Raises:
        ValueError: when `size` is less than 256, too small for a tumour region.
    """
    if size < 256:
        raise ValueError(f"Expected a slide of at least 256 pixels, got {size}.")
    rng = np.random.default_rng(seed)
    height, width = (int(size * rng.uniform(0.875, 1.125)) // _SCALE * _SCALE for _ in range(2))
    shape = (height // _SCALE, width // _SCALE)
    tissue = tissue_parts.draw_tissue(shape, rng)
    outlines = tissue_parts.place_tumor(tissue[::8, ::8] > 0.5, 8 * _SCALE, rng) if positive else []
    tumor = tissue_parts.fill(outlines, shape, _SCALE) & (tissue > 0.5)
    glands = _place_glands(tissue, tumor, rng)
    haematoxylin, eosin, direction = _draw_matrix(tissue, outlines, glands, rng)
    nuclei = np.zeros((height, width), np.float32)
    _draw_stroma_cells(nuclei, tissue, tumor, glands, direction, rng)
    _draw_epithelium(nuclei, glands, rng)
    _draw_tumor_cells(nuclei, tissue, outlines, rng)
    nuclei *= np.minimum(tissue_parts.resize(tissue, nuclei.shape), 1)
    return _stain(haematoxylin, eosin, nuclei, tissue, stain, rng), outlines


def _place_glands(tissue: np.ndarray, tumor: np.ndarray, rng: np.random.Generator) -> list[Gland]:
    zone = tissue_parts.smooth_field(tissue.shape, 400, rng) > rng.uniform(-0.9, 0.6)
    points = scatter(zone & (tissue > 0.95) & ~tumor, _SCALE, rng.uniform(125, 170), rng)
    glands = [tissue_parts.make_gland(point, rng) for point in points]
    return [gland for gland in glands if _lies_in(gland.border, (tissue > 0.9) & ~tumor)]


def _lies_in(outline: Outline, area: np.ndarray) -> bool:
    x, y = np.floor(outline.T / _SCALE).astype(int)
    if min(x.min(), y.min()) < 0 or x.max() >= area.shape[1] or y.max() >= area.shape[0]:
        return False
    return bool(area[y, x].all())


def _draw_matrix(
    tissue: np.ndarray, outlines: list[Outline], glands: list[Gland], rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draws all but nuclei: densities of both stains, and the direction of the fibres, at half resolution."""
    shape = tissue.shape
    fibres, direction = tissue_parts.weave_fibres(shape, rng)
    grain = tissue_parts.smooth_field(shape, 4, rng)
    contrast = np.exp(0.35 * tissue_parts.smooth_field(shape, 180, rng))
    looseness = rng.uniform(1.9, 2.5) + 0.4 * tissue_parts.smooth_field(shape, 180, rng)
    clefts = 1 / (1 + np.exp(np.clip((fibres + looseness) * 7, -30, 30)))
    epithelium = tissue_parts.soft_fill([gland.border for gland in glands], shape, _SCALE, 1.2)
    lumen = tissue_parts.soft_fill([gland.lumen for gland in glands], shape, _SCALE, 1.2)
    nests = tissue_parts.soft_fill(outlines, shape, _SCALE, 3.0)
    eosin = 0.34 + 0.075 * contrast * fibres + 0.02 * grain
    haematoxylin = 0.10 + 0.015 * contrast * fibres + 0.01 * grain
    eosin += nests * (0.30 + 0.06 * contrast * fibres + 0.06 * grain - eosin)
    haematoxylin += nests * (0.10 + 0.02 * grain - haematoxylin)
    eosin *= 1 - 0.8 * clefts
    haematoxylin *= 1 - 0.8 * clefts
    eosin += epithelium * (0.30 + 0.03 * grain - eosin)
    haematoxylin += epithelium * (0.16 + 0.02 * grain - haematoxylin)
    eosin *= 1 - 0.75 * lumen
    haematoxylin *= 1 - 0.85 * lumen
    thickness = np.exp(0.12 * tissue_parts.smooth_field(shape, 300, rng)) * tissue
    return haematoxylin * thickness, eosin * thickness, direction


def _draw_stroma_cells(
    nuclei: np.ndarray,
    tissue: np.ndarray,
    tumor: np.ndarray,
    glands: list[Gland],
    direction: np.ndarray,
    rng: np.random.Generator,
) -> None:
    glandular = tissue_parts.fill([gland.border for gland in glands], tissue.shape, _SCALE)
    free = (tissue > 0.7) & ~glandular & ~tumor
    points = scatter(free, _SCALE, rng.uniform(20, 30), rng)
    x, y = np.floor(points.T / _SCALE).astype(int)
    angles = direction[y, x] + 0.25 * rng.standard_normal(len(points))
    _draw(nuclei, _FIBROBLAST, points, angles, rng)
    aggregates = tissue_parts.smooth_field(tissue.shape, 160, rng) > rng.uniform(1.3, 2.2)
    for area, spacing in ((free & aggregates, 12.5), ((tissue > 0.7) & ~glandular, rng.uniform(60, 110))):
        points = scatter(area, _SCALE, spacing, rng)
        _draw(nuclei, _LYMPHOCYTE, points, rng.uniform(0, np.pi, len(points)), rng)


def _draw_epithelium(nuclei: np.ndarray, glands: list[Gland], rng: np.random.Generator) -> None:
    """Lines each gland with nuclei that stand on its border and point to its centre."""
    points, angles = [np.empty((0, 2))], [np.empty(0)]
    for gland in glands:
        ring = gland.centre + (gland.border - gland.centre) * rng.uniform(0.76, 0.84)
        around = np.vstack([ring, ring[:1]])
        reach = np.concatenate([[0], np.cumsum(np.hypot(*np.diff(around, axis=0).T))])
        stops = np.arange(0, reach[-1] - 6, rng.uniform(11, 13.5))
        stops = stops + rng.normal(0, 1.3, len(stops))
        places = np.stack([np.interp(stops, reach, around[:, axis]) for axis in (0, 1)], axis=1)
        spokes = places - gland.centre
        points.append(places + rng.normal(0, 1.5, places.shape))
        angles.append(np.arctan2(spokes[:, 1], spokes[:, 0]))
    _draw(nuclei, _EPITHELIUM, np.concatenate(points), np.concatenate(angles), rng)


def _draw_tumor_cells(
    nuclei: np.ndarray, tissue: np.ndarray, outlines: list[Outline], rng: np.random.Generator
) -> None:
    for outline in outlines:
        area = tissue_parts.fill([outline], tissue.shape, _SCALE) & (tissue > 0.7)
        points = scatter(area, _SCALE, rng.uniform(18, 20), rng)
        tint = np.exp(rng.normal(0, 0.12))
        _draw(nuclei, _TUMOR, points, rng.uniform(0, np.pi, len(points)), rng, tint)


def _draw(
    nuclei: np.ndarray,
    kind: NucleusKind,
    points: np.ndarray,
    angles: np.ndarray,
    rng: np.random.Generator,
    tint: float = 1.0,
) -> None:
    strengths = tint * np.exp(0.15 * rng.standard_normal(len(points)))
    stamp_onto(nuclei, draw_stamps(kind, _SHAPES, rng), points, angles, strengths, rng)


def _stain(
    haematoxylin: np.ndarray,
    eosin: np.ndarray,
    nuclei: np.ndarray,
    tissue: np.ndarray,
    stain: Stain,
    rng: np.random.Generator,
) -> np.ndarray:
    """Turns densities into light by Beer and Lambert's law, with the slide's own dyes, lamp and camera noise."""
    shape = nuclei.shape
    cytoplasm = tissue_parts.resize(eosin, shape) * (1 - np.minimum(nuclei, 0.8) * 0.35)
    nuclear = np.maximum(nuclei, tissue_parts.resize(haematoxylin, shape))
    means = np.multiply((_MEAN_HAEMATOXYLIN, _MEAN_EOSIN), stain.strengths)
    of_nuclei, of_rest = np.exp(rng.normal(0, 0.09, 2)) * means
    densities = [_even_out(nuclear, tissue, of_nuclei, rng), _even_out(cytoplasm, tissue, of_rest, rng)]
    dyes = [dye * np.exp(rng.normal(0, 0.05, 3)) * np.log(10) for dye in (stain.haematoxylin, stain.eosin)]
    lamp = rng.uniform(232, 250) + rng.uniform(-3, 3, 3)
    noise = 2.0 * rng.standard_normal(shape, dtype=np.float32)
    image = np.empty((*shape, 3), np.uint8)
    for channel in range(3):
        absorbed = densities[0] * np.float32(dyes[0][channel]) + densities[1] * np.float32(dyes[1][channel])
        image[..., channel] = np.clip(np.exp(-absorbed) * np.float32(lamp[channel]) + noise, 0, 255)
    return image


def _even_out(density: np.ndarray, tissue: np.ndarray, mean: float, rng: np.random.Generator) -> np.ndarray:
    """Scales a stain so that its mean over a neighbourhood is a random field that knows nothing of what lies there.

    Without it the many large nuclei of tumour would make the mean colour of a patch tell tumour.
    """
    step = 16
    shape = (density.shape[0] // step, density.shape[1] // step)
    cells = density[: shape[0] * step, : shape[1] * step].reshape(shape[0], step, shape[1], step).mean(axis=(1, 3))
    weight = tissue_parts.resize(tissue, shape)
    local = ndimage.gaussian_filter(cells, _NEIGHBOURHOOD / step) / (
        ndimage.gaussian_filter(weight, _NEIGHBOURHOOD / step) + 0.05
    )
    wanted = mean * np.exp(_PATCHINESS * tissue_parts.smooth_field(shape, 200 / step, rng))
    factor = np.clip(wanted / np.maximum(local, 1e-3), 0.2, 3.0)
    return density * tissue_parts.resize(factor.astype(np.float32), density.shape)
