"""Images with the boxes that people drew in them, and the part of them that a model saw."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from src.analysis.concept_maps import WHOLE
from src.analysis.mask_boxes import clip_boxes
from src.data.images.boxes import Box
from src.data.images.source import ImageSource
from src.models.backbones.preprocessing import Window
from src.prefetch import prefetch
from src.progress import track

ONLY_LABEL = "box"
"""Of boxes without a label."""
_N_WORKERS = 2

SeenWindow = Callable[[int, int], Window]
"""Gives the part of an image that a model saw, from the image's height and width."""


@dataclass(frozen=True)
class BoxedImage:
    """An image with its boxes.

    Attributes:
        height: of the image in pixels, as it is stored.
        width: of it.
        window: the part of it that the model saw.
        boxes: by label [n, 4] (x1, y1, x2, y2) in pixels, within the image.
    """

    height: int
    width: int
    window: Window = WHOLE
    boxes: Mapping[str, np.ndarray] = field(default_factory=dict)

    def scaled(self, longest: int) -> "BoxedImage":
        """Returns the image at a size of which no side is longer; itself where none is."""
        scale = longest / max(self.height, self.width)
        if scale >= 1:
            return self
        height, width = max(1, round(self.height * scale)), max(1, round(self.width * scale))
        ratio = np.array([width / self.width, height / self.height] * 2)
        return BoxedImage(height, width, self.window, {label: boxes * ratio for label, boxes in self.boxes.items()})


@dataclass(frozen=True)
class ImageSet:
    """The images of a data set.

    Attributes:
        source: reads them.
        window: see `SeenWindow`.
        boxes: of each image that has some.
    """

    source: ImageSource
    window: SeenWindow
    boxes: Mapping[str, Sequence[Box]] = field(default_factory=dict)

    def read_boxed(self, item_ids: Iterable[str]) -> dict[str, BoxedImage]:
        """Reads images, for their sizes, and cuts their boxes at their edges.

        Raises:
            ValueError: when a box lies wholly outside of its image.
        """
        wanted = list(item_ids)
        tasks = ((lambda item_id=item_id: self.source.read(item_id).shape[:2]) for item_id in wanted)
        sizes = prefetch(tasks, _N_WORKERS, 2 * _N_WORKERS)
        read = zip(wanted, track(sizes, "Reading the sizes of images", len(wanted)), strict=True)
        return {item_id: self._boxed(item_id, *size) for item_id, size in read}

    def edges(self, item_id: str, label: str | None = None) -> np.ndarray:
        """Returns the boxes of an image as stored, [n, 4]; of one label, where it is given."""
        found = [box[:4] for box in self.boxes.get(item_id, ()) if label is None or (box.label or ONLY_LABEL) == label]
        return np.array(found, np.float64).reshape(-1, 4)

    def labels(self, item_id: str) -> set[str]:
        """Returns the labels of an image's boxes."""
        return {box.label or ONLY_LABEL for box in self.boxes.get(item_id, ())}

    def _boxed(self, item_id: str, height: int, width: int) -> BoxedImage:
        boxes = {
            label: clip_boxes(self.edges(item_id, label), height, width, f"image {item_id!r}")
            for label in sorted(self.labels(item_id))
        }
        return BoxedImage(height, width, self.window(height, width), boxes)
