"""One picture a neuron: the images on which it fires most, about its median, and some at random, with its heatmaps."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

_MARGIN, _GAP, _TITLE, _CAPTION = 12, 8, 30, 18
_TITLE_SIZE, _CAPTION_SIZE = 17, 12
_INK, _PALE = "#222222", "#666666"


@dataclass(frozen=True)
class Tile:
    """An image on a contact sheet.

    Attributes:
        pixels: RGB uint8 [H, W, 3].
        heatmap: the same size, drawn below it.
        caption: a line under both.
    """

    pixels: np.ndarray
    heatmap: np.ndarray
    caption: str


def choose_sheet_items(maxima: np.ndarray, n: int, seed: int) -> dict[str, list[int]]:
    """Returns which items to show of a neuron, as positions.

    Args:
        maxima: [n_items] the neuron's maximum on each item.
        n: at most so many of each kind.
        seed: of those drawn at random.

    Returns:
        `Strongest`: the largest maxima. `Middle`: of the items on which it fires, those about the median. `Random`:
        drawn from all items, whether it fires there or not. Rows may share items where there are few.
    """
    order = np.argsort(-maxima, kind="stable")
    active = order[: np.count_nonzero(maxima > 0)]
    first = max(0, (len(active) - n) // 2)
    drawn = np.random.default_rng(seed).permutation(len(maxima))[:n]
    rows = {"Strongest": active[:n], "Middle": active[first : first + n], "Random": drawn}
    return {title: positions.tolist() for title, positions in rows.items()}


def draw_sheet(title: str, rows: Sequence[tuple[str, Sequence[Tile]]]) -> np.ndarray:
    """Draws a sheet, RGB uint8 [H, W, 3]: for each row a title, its images, and the heatmaps below them.

    Args:
        title: of the sheet.
        rows: a title and its tiles; rows without tiles say so.

    Raises:
        ValueError: there is no tile at all.
    """
    tiles = [tile for _, row in rows for tile in row]
    if not tiles:
        raise ValueError(f"Expected images to show on the sheet {title!r}, got none.")
    width = max(tile.pixels.shape[1] for tile in tiles)
    n_columns = max(len(row) for _, row in rows)
    heights = [max((tile.pixels.shape[0] for tile in row), default=0) for _, row in rows]
    row_heights = [_TITLE + 2 * height + _GAP + _CAPTION if height else _TITLE for height in heights]
    size = 2 * _MARGIN + n_columns * (width + _GAP) - _GAP, 2 * _MARGIN + _TITLE + sum(row_heights)
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    large, small = ImageFont.load_default(_TITLE_SIZE), ImageFont.load_default(_CAPTION_SIZE)
    draw.text((_MARGIN, _MARGIN), title, _INK, large)
    top = _MARGIN + _TITLE
    for (row_title, row), height, row_height in zip(rows, heights, row_heights, strict=True):
        draw.text((_MARGIN, top + 8), row_title if row else f"{row_title}: none", _PALE, small)
        for column, tile in enumerate(row):
            left = _MARGIN + column * (width + _GAP)
            sheet.paste(Image.fromarray(tile.pixels), (left, top + _TITLE))
            sheet.paste(Image.fromarray(tile.heatmap), (left, top + _TITLE + height + _GAP))
            place = left, top + _TITLE + 2 * height + _GAP + 2
            draw.text(place, _shorten(tile.caption, small, width), _PALE, small)
        top += row_height
    return np.asarray(sheet)


def _shorten(text: str, font: ImageFont.ImageFont | ImageFont.FreeTypeFont, width: int) -> str:
    """Cuts the beginning of a text that is wider than its image; ids differ at their ends."""
    while len(text) > 1 and font.getlength(text) > width:
        text = f"…{text.removeprefix('…')[1:]}"
    return text
