"""Images whose activations lie in one array for many of them."""

import os
from collections.abc import Mapping
from functools import cached_property, partial
from pathlib import Path

from src.data.listing import Listing
from src.data.readers.feature_files import finite_pieces
from src.data.readers.feature_reader import FeatureReader
from src.data.readers.h5_files import FeatureFileError
from src.data.readers.tensor_files import TensorFile, image_ids, read_entries
from src.records import PARTS, Item
from src.stores.activations.index import Identity
from src.stores.activations.writer import ItemRows

_ALL = "all"

Files = Mapping[str, str | Path | None]
"""A file, or none, by part: `train`, `val`, `test`; or `all` where folds are made later."""


class TensorFolder(FeatureReader):
    """Files of activations, each of many images, read image by image.

    An image's rows are its tokens, or one. Without ids, images are called by their part and place: `train_0000012`.

    Attributes:
        path: the first of the files.
        parts: the images of each part, in the order of the file.
        items: the images with their cases and labels.

    Args:
        files: of activations.
        ids: files of ids or image paths, one an image.
        labels: files of labels, one an image.
        cases: files of case ids (patients), one an image; for all parts or for none.
        on_bad_file: see `FeatureReader`; an image with a value that is not finite is bad.

    Raises:
        FileNotFoundError, FeatureFileError: when a file is missing or bad.
        ValueError: when the parts are others, widths differ, or ids, labels and cases do not fit.
    """

    def __init__(
        self,
        files: Files,
        ids: Files | None = None,
        labels: Files | None = None,
        cases: Files | None = None,
        on_bad_file: str = "error",
    ) -> None:
        given = {part: Path(path) for part, path in files.items() if path is not None}
        if not given or set(given) - {*PARTS, _ALL} or (_ALL in given and len(given) > 1):
            raise ValueError(
                f"Expected dataset.tensors to name files for some of {', '.join(PARTS)}, or one for {_ALL}, got "
                f"{sorted(given)}."
            )
        if len({(cases or {}).get(part) is None for part in given}) > 1:
            raise ValueError(
                f"Expected dataset.tensor_cases to name a file for each of {sorted(given)} or for none, got {cases}."
            )
        super().__init__(next(iter(given.values())), on_bad_file)
        self.parts: dict[str, list[str]] = {}
        self.items: list[Item] = []
        # Relative, so that the same files by another way are the same.
        self._names = {path: os.path.relpath(path, self.path.parent) for path in given.values()}
        for part, path in given.items():
            self._add(part, _open_tensor(path), *((entries or {}).get(part) for entries in (ids, labels, cases)))
        widths = {tensor.shape[-1] for tensor, _ in self._places.values()}
        if len(widths) > 1:
            raise ValueError(f"Expected one width of activations in {sorted(map(str, given.values()))}, got {widths}.")

    @cached_property
    def d_in(self) -> int:
        """The width of the activations."""
        return next(iter(self._places.values()))[0].shape[-1]

    def open(self, item_id: str) -> ItemRows:
        """Finds an image; see `FeatureReader.open`."""
        tensor, index = self._place(item_id)
        shape = tensor.shape[1] if len(tensor.shape) == 3 else 1, self.d_in
        source = f"image {item_id!r} (entry {index} of {tensor.path})"
        pieces = partial(finite_pieces, lambda places: tensor.read(index).reshape(shape)[places], shape, source)
        missing = f"{tensor.path.name} holds none"
        return ItemRows(item_id, tensor.path, *shape, tensor.dtype, pieces, coords_missing=missing)

    def identity(self, item_id: str) -> Identity:
        """Returns file and entry, bytes and time of change (ns); see `FeatureReader.identity`.

        With the entry, because other ids may give a name to another image of the same file.
        """
        tensor, index = self._place(item_id)
        status = os.stat(tensor.path)
        return f"{self._names[tensor.path]}[{index}]", status.st_size, status.st_mtime_ns

    def _place(self, item_id: str) -> tuple[TensorFile, int]:
        if item_id not in self._places:
            raise FileNotFoundError(
                f"Expected image {item_id!r} among the {len(self._places)} of {self.path} and the files beside it, got "
                "no such id. Write the csv again (task=metadata), or take the image out of the split."
            )
        return self._places[item_id]

    def _add(self, part: str, tensor: TensorFile, *entries: str | Path | None) -> None:
        ids, labels, cases = entries
        n_images = tensor.shape[0]
        names = [f"{part}_{index:07d}" for index in range(n_images)]
        if ids is not None:
            names = image_ids(read_entries(ids, n_images, "ids"), ids)
        if both := sorted(set(names) & set(self._places)):
            raise ValueError(f"Expected images in one part each, got {both[:5]} in several ({len(both)} in all).")
        case_ids = names if cases is None else read_entries(cases, n_images, "cases")
        classes = [None] * n_images if labels is None else read_entries(labels, n_images, "labels")
        self.parts[part] = names
        self.items += [Item(*values) for values in zip(names, case_ids, classes, strict=True)]
        self._places.update({name: (tensor, index) for index, name in enumerate(names)})


def list_tensors(
    tensors: Files,
    ids: Files | None = None,
    labels: Files | None = None,
    cases: Files | None = None,
    on_bad_file: str = "error",
) -> Listing:
    """Lists the images of files of activations; the arguments are those of `TensorFolder`.

    Returns:
        Columns `case_id`, `item_id` and `label`; the parts, unless one file holds all images.

    Raises:
        FileNotFoundError, FeatureFileError, ValueError: see `TensorFolder`.
    """
    folder = TensorFolder(tensors, ids, labels, cases, on_bad_file)
    columns = {
        "case_id": [item.case_id for item in folder.items],
        "item_id": [item.item_id for item in folder.items],
        "label": [item.label or "" for item in folder.items],
    }
    return Listing(columns, None if _ALL in folder.parts else folder.parts)


def _open_tensor(path: Path) -> TensorFile:
    if not path.is_file():
        raise FileNotFoundError(
            f"Expected a .npy or .pt file of activations at {path}, found no such file. "
            "Give dataset.tensors.<part>=<file>."
        )
    tensor = TensorFile(path)
    if len(tensor.shape) not in (2, 3) or 0 in tensor.shape:
        raise FeatureFileError(
            f"Expected activations [n_images, d_in] or [n_images, n_tokens, d_in] in {path}, got {tensor.shape}."
        )
    if "float" not in tensor.stored_dtype:
        raise FeatureFileError(f"Expected floating point activations in {path}, got {tensor.stored_dtype}.")
    return tensor
