"""Whether a patch is out of focus."""

import numpy as np

from src.data.slides.outlines import import_cv2
from src.data.slides.patching import PatchGrid
from src.data.slides.slide_files import SlideImages

# A quarter of the patch's resolution: read from a small level, 16 times less than the patch itself.
_REDUCTION = 4
_LEAST_SIDE = 16


def is_blurred(image: np.ndarray, min_sharpness: float) -> bool:
    """Whether an image has structure, and all of it is coarse.

    Sharpness is the variance of the Laplacian, grey values 0 to 255 (Pech-Pacheco et al., "Diatom autofocusing in
    brightfield microscopy", ICPR 2000). It must also be below the variance of the grey values themselves: in an even
    area, where there is nothing to be in focus, what little there is is noise, whose Laplacian varies 20 times as much.

    Args:
        image: RGB uint8 [H, W, 3].
        min_sharpness: what is below is blurred.
    """
    cv2 = import_cv2()
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32)
    sharpness = cv2.Laplacian(grey, cv2.CV_32F, borderType=cv2.BORDER_REFLECT).var()
    return bool(sharpness < min(min_sharpness, grey.var()))


def drop_blurred(images: SlideImages, coords: np.ndarray, grid: PatchGrid, min_sharpness: float) -> np.ndarray:
    """Returns the patches that are in focus, looked at with a quarter of their pixels along an edge.

    So small, what shows is a blur wider than about five pixels of the patch, which makes it useless, and little of
    noise and JPEG blocks. On a real slide in focus (CMU-1, 0.5 micrometres a pixel, patches of 128 and 256) the
    sharpness of all patches lies between 1,700 and 18,000; blurred by a Gaussian of 4 pixels between 50 and 620, of 6
    pixels between 13 and 165, of 8 pixels between 6 and 73. The default of 100 keeps all that is fit for use.
    Of patches that overlap, each is judged by the patch without overlap that its centre lies in: a fine lattice is read
    no more often than a coarse one.

    Args:
        images: of the slide.
        coords: level-0 corners [n_patches, 2].
        grid: the size of the patches.
        min_sharpness: see `is_blurred`.
    """
    side = max(_LEAST_SIDE, grid.patch_size // _REDUCTION)
    size, pitch = grid.size_level0, max(grid.size_level0, grid.step_level0)
    places, place_of = np.unique((coords + size // 2) // pitch * pitch, axis=0, return_inverse=True)
    is_sharp = [not is_blurred(images.patch(x, y, size, side), min_sharpness) for x, y in places]
    return coords[np.array(is_sharp, dtype=bool)[place_of]]
