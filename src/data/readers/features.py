"""A folder of feature files, one per slide, as CLAM, TRIDENT or STAMP leave it."""

import logging
import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np

from src.data.readers.feature_files import Bag, Placement, placement_of_pt, read_bag, read_dtype, read_shape
from src.data.readers.feature_source import FeatureSource, open_h5_source
from src.data.readers.h5_files import RECUT, FeatureFileError, find_dataset, open_h5
from src.data.slides.patch_size import patch_size_level0
from src.files import list_files
from src.progress import track

__all__ = ["Bag", "FeatureFileError", "FeatureFolder"]

_LOGGER = logging.getLogger(__name__)
ON_BAD_FILE = ("error", "skip")


class FeatureFolder:
    """The patch features of many slides, read by slide.

    The folder is recognised by its content: `h5_files/*.h5` and `pt_files/*.pt` below it, or such files in it. Where a
    slide has both, the h5 is read, because it holds the coords. Slide ids are the file names without suffix, as
    strings: leading zeros stay.

    Args:
        path: the folder.
        on_bad_file: `error` raises at the first bad file; `skip` leaves bad files out, with a warning each, and lists
            them in `skipped` (slide id -> reason). Skipping reads every header once, here.
        patches_dir: folder of the patch files (`patches/<item_id>.h5` below it, or in it), asked for the patch size
            when the feature file does not state it, as CLAM's do not.

    Raises:
        FileNotFoundError: when the folder does not exist or holds no feature file.
        ValueError: when `on_bad_file` is neither.
    """

    def __init__(self, path: str | Path, on_bad_file: str = "error", patches_dir: str | Path | None = None) -> None:
        if on_bad_file not in ON_BAD_FILE:
            raise ValueError(f"Expected dataset.on_bad_file to be one of {ON_BAD_FILE}, got {on_bad_file!r}.")
        self.path = Path(path)
        self.patches_dir = None if patches_dir is None else Path(patches_dir)
        self.on_bad_file = on_bad_file
        self.skipped: dict[str, str] = {}
        self.paths = _list_feature_files(self.path)
        self._d_in: int | None = None
        if on_bad_file == "skip":
            self._skip_bad_headers()

    @property
    def item_ids(self) -> list[str]:
        """The slides of the folder, sorted; without those skipped."""
        return sorted(set(self.paths) - set(self.skipped))

    @property
    def d_in(self) -> int:
        """The width of the features: that of the first good file (`error`) or of most files (`skip`).

        Raises:
            ValueError: when no file of the folder is usable.
        """
        if self._d_in is None:
            self._d_in = self._width_of_first_good_file()
        return self._d_in

    def file(self, item_id: str) -> Path:
        """Returns the feature file of a slide.

        Raises:
            FileNotFoundError: when there is none.
        """
        if item_id not in self.paths:
            raise FileNotFoundError(
                f"Expected a feature file of slide {item_id!r} in {self.path} ({item_id}.h5 or {item_id}.pt), got "
                "none. Extract it (task=embed), take the slide out of the split, or set dataset.on_bad_file=skip."
            )
        return self.paths[item_id]

    def shape(self, item_id: str) -> tuple[int, int]:
        """Returns (n_patches, d_in) of a slide; reads the header only.

        Raises:
            FileNotFoundError: when the slide has no file.
            FeatureFileError: when the file is damaged, empty, without features, or of another width than the folder's.
        """
        path = self.file(item_id)
        n_patches, d_in = read_shape(path)
        self._check_width(d_in, path)
        return n_patches, d_in

    def read(self, item_id: str) -> Bag:
        """Reads the bag of a slide.

        Raises:
            FileNotFoundError: when the slide has no file.
            FeatureFileError: as `shape`, or when the values are not finite or the coords do not match.
        """
        path = self.file(item_id)
        bag = read_bag(path, item_id)
        self._check_width(bag.features.shape[1], path)
        if bag.patch_size_level0 is None:
            return replace(bag, patch_size_level0=self.patch_size_of_patch_file(item_id))
        return bag

    def dtype(self, item_id: str) -> np.dtype:
        """Returns what the values of a slide need: float16 where its file holds that, else float32."""
        return read_dtype(self.file(item_id))

    def identity(self, item_id: str) -> tuple[str, int, int]:
        """Returns path, bytes and time of change (ns) of a slide's file: another one where its values may be others.

        The path is relative to the folder, so that the same folder by another way is the same.

        Raises:
            FileNotFoundError: when the slide has no file.
        """
        path = self.file(item_id)
        status = path.stat()
        return os.path.relpath(path, self.path), status.st_size, status.st_mtime_ns

    def source(self, item_id: str) -> FeatureSource:
        """Opens the values of a slide for reading in pieces; reads the header and the coords.

        Raises:
            FileNotFoundError, FeatureFileError: as `shape`.
        """
        path = self.file(item_id)
        if path.suffix == ".h5":
            source = open_h5_source(path)
            self._check_width(source.d_in, path)
            return source
        n_patches, d_in = self.shape(item_id)
        return FeatureSource(
            n_patches,
            d_in,
            self.dtype(item_id),
            lambda _: iter([np.ascontiguousarray(self.read(item_id).features)]),
            self._placement_without_h5(path),
        )

    def usable(self, item_ids: Iterable[str]) -> list[str]:
        """Returns the slides that can be used, in the order given, after looking at every header.

        See `sources`.
        """
        return list(self.sources(item_ids))

    def sources(self, item_ids: Iterable[str]) -> dict[str, FeatureSource]:
        """Returns the sources of the slides that can be used, in the order given, after looking at every header.

        With `on_bad_file=skip` bad and missing ones are left out, warned about and listed in `skipped`.

        Raises:
            FileNotFoundError, FeatureFileError: for the first bad one, unless bad files are skipped.
        """
        sources: dict[str, FeatureSource] = {}
        for item_id in track(list(item_ids), "Looking at feature files"):
            if item_id in self.skipped:
                continue
            try:
                sources[item_id] = self.source(item_id)
            except (FileNotFoundError, FeatureFileError) as error:
                if self.on_bad_file == "error":
                    raise
                self.skip(item_id, str(error))
        return sources

    def skip(self, item_id: str, reason: str) -> None:
        """Leaves a slide out from now on, with a warning."""
        self.skipped[item_id] = reason
        _LOGGER.warning("Skipped slide %s: %s", item_id, reason)

    def _width_of_first_good_file(self) -> int:
        faults = []
        for item_id in self.item_ids:
            try:
                return read_shape(self.paths[item_id])[1]
            except FeatureFileError as error:
                # Told when the slide itself is asked for; others need not suffer from it.
                faults.append(str(error))
        raise ValueError(f"Expected a usable feature file in {self.path}, got none: {faults or self.skipped}.")

    def patch_size_of_patch_file(self, item_id: str) -> int | None:
        """Returns what a slide's patch file states, as CLAM's do; None where there is none."""
        if self.patches_dir is None:
            return None
        for path in (self.patches_dir / "patches" / f"{item_id}.h5", self.patches_dir / f"{item_id}.h5"):
            if path.is_file():
                with open_h5(path, RECUT) as file:
                    coords = find_dataset(file, "coords", path, RECUT)
                    if coords is None:
                        raise FeatureFileError(f"Expected a dataset coords in {path}, got {sorted(file)}. {RECUT}")
                    return patch_size_level0(coords.attrs)
        return None

    def _placement_without_h5(self, path: Path) -> Placement:
        return placement_of_pt(path)

    def _check_width(self, d_in: int, path: Path) -> None:
        if d_in != self.d_in:
            raise FeatureFileError(
                f"Expected one feature width in {self.path}, got {d_in} in {path.name} and {self.d_in} in other files. "
                "Keep the features of different encoders in different folders, or set dataset.on_bad_file=skip."
            )

    def _skip_bad_headers(self) -> None:
        widths: dict[str, int] = {}
        for item_id, path in track(self.paths.items(), "Looking at feature files", total=len(self.paths)):
            try:
                widths[item_id] = read_shape(path)[1]
            except FeatureFileError as error:
                self.skip(item_id, str(error))
        if not widths:
            return
        counts = Counter(widths.values()).most_common()
        if len(counts) > 1 and counts[0][1] == counts[1][1]:
            raise ValueError(
                f"Expected one feature width in {self.path}, got {counts[0][0]} and {counts[1][0]} in equally many "
                "files, so neither can be skipped as the odd one. Keep different encoders in different folders."
            )
        self._d_in = counts[0][0]
        for item_id, width in widths.items():
            if width != self._d_in:
                self.skip(item_id, f"{self.paths[item_id]} has {width} features a patch, most files {self._d_in}")


def _list_feature_files(path: Path) -> dict[str, Path]:
    if not path.is_dir():
        raise FileNotFoundError(
            f"Expected a folder of features (h5_files/*.h5 or pt_files/*.pt) at {path}, found no such folder. "
            "Give dataset.features_dir=<folder>, or extract features with task=embed."
        )
    files: dict[str, Path] = {}
    # Later entries win: h5 over pt.
    for folder, suffix in ((path, ".pt"), (path / "pt_files", ".pt"), (path, ".h5"), (path / "h5_files", ".h5")):
        files.update({file.name.removesuffix(suffix): file for file in list_files(folder, f"*{suffix}")})
    if not files:
        held = [entry.name for entry in list_files(path)][:8]
        raise FileNotFoundError(
            f"Expected h5_files/*.h5, pt_files/*.pt, *.h5 or *.pt in {path}, got {held or 'an empty folder'}. "
            "Give dataset.features_dir=<folder of features>, or extract features with task=embed."
        )
    return dict(sorted(files.items()))
