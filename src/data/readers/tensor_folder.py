"""Images whose activations lie in one array for many of them, read as slides are."""

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from src.data.readers.feature_files import Bag, Placement
from src.data.readers.features import FeatureFolder
from src.data.readers.h5_files import FeatureFileError
from src.data.readers.tensor_files import TensorFile, image_ids, read_entries
from src.records import PARTS, Item

_ALL = "all"
_NO_LABEL = ""


class TensorFolder(FeatureFolder):
    """Files of activations, each of many images, read image by image; an image's rows are its tokens, or one.

    Without ids, images are called by their part and place: `train_0000012`.

    Args:
        files: part (`train`, `val`, `test`; or `all` where folds are made later) to file.
        ids: part to a file of ids or image paths, one an image.
        labels: part to a file of labels, one an image.
        on_bad_file: as in `FeatureFolder`; an image with a value that is not finite is bad.

    Raises:
        FileNotFoundError, FeatureFileError: when a file is missing or bad.
        ValueError: when the parts are others, widths differ, or ids and labels do not fit.
    """

    def __init__(
        self,
        files: Mapping[str, str | Path | None],
        ids: Mapping[str, str | Path | None] | None = None,
        labels: Mapping[str, str | Path | None] | None = None,
        on_bad_file: str = "error",
    ) -> None:
        given = {part: path for part, path in files.items() if path is not None}
        if not given or set(given) - {*PARTS, _ALL} or (_ALL in given and len(given) > 1):
            raise ValueError(
                f"Expected dataset.tensors to name files for some of {', '.join(PARTS)}, or one for {_ALL}, got "
                f"{sorted(given)}."
            )
        self.path = Path(next(iter(given.values())))
        self.patches_dir = None
        self.on_bad_file = on_bad_file
        self.skipped: dict[str, str] = {}
        self.paths: dict[str, Path] = {}
        self.parts: dict[str, list[str]] = {}
        self.labels: dict[str, str] = {}
        self._tensors: dict[Path, TensorFile] = {}
        self._places: dict[str, tuple[TensorFile, int]] = {}
        for part, path in given.items():
            self._add(part, TensorFile(path), (ids or {}).get(part), (labels or {}).get(part))
        widths = {tensor.d_in for tensor in self._tensors.values()}
        if len(widths) > 1:
            raise ValueError(f"Expected one width of activations in {sorted(map(str, self._tensors))}, got {widths}.")
        self._d_in = widths.pop()

    @property
    def n_tokens(self) -> int | None:
        """Rows of every image, None when files differ in it."""
        numbers = {tensor.n_tokens for tensor in self._tensors.values()}
        return numbers.pop() if len(numbers) == 1 else None

    def items(self) -> list[Item]:
        """Returns the images with their labels; each is a case of its own."""
        return [Item(image_id, image_id, self.labels[image_id] or None) for image_id in self.paths]

    def shape(self, item_id: str) -> tuple[int, int]:
        """Returns (n_tokens, d_in) of an image; see `FeatureFolder.shape`."""
        tensor, _ = self._place(item_id)
        return tensor.n_tokens, tensor.d_in

    def read(self, item_id: str) -> Bag:
        """Reads an image's activations; see `FeatureFolder.read`."""
        tensor, index = self._place(item_id)
        features = tensor.read(index)
        if not np.isfinite(features).all():
            raise FeatureFileError(
                f"Expected finite activations of image {item_id!r} (entry {index} of {tensor.path}), got nan or inf. "
                "Make them again, or leave the image out with dataset.on_bad_file=skip."
            )
        return Bag(item_id, features, None, None, self._placement_without_h5(tensor.path).coords_missing)

    def dtype(self, item_id: str) -> np.dtype:
        """Returns what the values of an image need; see `FeatureFolder.dtype`."""
        return self._place(item_id)[0].dtype

    def identity(self, item_id: str) -> tuple[str, int, int]:
        """Returns file and entry, bytes and time of change (ns); see `FeatureFolder.identity`.

        With the entry, because other ids may give a name to another image of the same file.
        """
        tensor, index = self._place(item_id)
        status = tensor.path.stat()
        file = os.path.relpath(tensor.path, self.path.parent)
        return f"{file}[{index}]", status.st_size, status.st_mtime_ns

    def _placement_without_h5(self, path: Path) -> Placement:
        return Placement(None, None, f"{path.name} holds none")

    def _place(self, item_id: str) -> tuple[TensorFile, int]:
        self.file(item_id)
        return self._places[item_id]

    def _add(self, part: str, tensor: TensorFile, ids: str | Path | None, labels: str | Path | None) -> None:
        n_images = tensor.n_images
        names = [f"{part}_{index:07d}" for index in range(n_images)]
        if ids is not None:
            names = image_ids(read_entries(ids, n_images, "ids"), ids)
        if both := sorted(set(names) & set(self.paths)):
            raise ValueError(f"Expected images in one part each, got {both[:5]} in several ({len(both)} in all).")
        values = [_NO_LABEL] * n_images if labels is None else read_entries(labels, n_images, "labels")
        self._tensors[tensor.path] = tensor
        self.parts[part] = names
        self.labels.update(zip(names, values, strict=True))
        self.paths.update(dict.fromkeys(names, tensor.path))
        self._places.update({name: (tensor, index) for index, name in enumerate(names)})
