"""A slide in memory, as OpenSlide shows one."""

import numpy as np
from PIL import Image

PINK, GLASS = (225, 150, 190), (240, 240, 240)


class ArraySlide:
    """Levels of an image; what lies outside of them is transparent black."""

    def __init__(self, *levels, mpp=None):
        self.levels = levels
        self.level_count = len(levels)
        self.level_dimensions = tuple((level.shape[1], level.shape[0]) for level in levels)
        self.dimensions = self.level_dimensions[0]
        ratios = [np.divide(self.dimensions, one).mean() for one in self.level_dimensions]
        self.level_downsamples = tuple(float(ratio) for ratio in ratios)
        self.properties = {} if mpp is None else {"openslide.mpp-x": str(mpp)}

    def get_best_level_for_downsample(self, downsample):
        return max(level for level, factor in enumerate(self.level_downsamples) if factor <= max(downsample, 1))

    def read_region(self, location, level, size):
        scale = np.divide(self.dimensions, self.level_dimensions[level])
        left, top = (np.asarray(location) / scale).astype(int)
        region = Image.fromarray(self.levels[level]).convert("RGBA")
        return region.crop((left, top, left + size[0], top + size[1]))


def painted(width, height, *boxes, ground=GLASS):
    """An image with coloured boxes (left, top, right, bottom, colour) on it; right and bottom not included."""
    image = np.full((height, width, 3), ground, np.uint8)
    for left, top, right, bottom, colour in boxes:
        image[top:bottom, left:right] = colour
    return image


def halved(image, times):
    """An image made smaller by taking every second pixel, `times` times."""
    return image[:: 2**times, :: 2**times]
