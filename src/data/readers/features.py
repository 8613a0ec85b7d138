"""A folder of feature files, one per slide, as CLAM, TRIDENT or STAMP leave it."""

import os
from collections import Counter
from functools import cached_property
from pathlib import Path

from src.data.readers.feature_files import open_feature_file
from src.data.readers.feature_reader import FeatureReader
from src.data.readers.h5_files import FeatureFileError, patch_size_level0, read_patch_coords
from src.files import list_files
from src.progress import track
from src.stores.activations.index import Identity
from src.stores.activations.writer import ItemRows

__all__ = ["FeatureFileError", "FeatureFolder"]


class FeatureFolder(FeatureReader):
    """The patch features of many slides, read by slide.

    The folder is recognised by its content: `h5_files/*.h5` and `pt_files/*.pt` below it, or such files in it. Where a
    slide has both, the h5 is read, because it holds the coords. Slide ids are the file names without suffix, as
    strings: leading zeros stay.

    Args:
        path: the folder.
        on_bad_file: see `FeatureReader`. Skipping reads every header once, here.
        patches_dir: folder of the patch files (`patches/<item_id>.h5` below it, or in it), asked for the patch size
            when the feature file does not state it, as CLAM's do not.

    Raises:
        FileNotFoundError: when the folder does not exist or holds no feature file.
        ValueError: when bad files are skipped and widths are found equally often.
    """

    def __init__(self, path: str | Path, on_bad_file: str = "error", patches_dir: str | Path | None = None) -> None:
        super().__init__(path, on_bad_file)
        self._patches_dir = None if patches_dir is None else Path(patches_dir)
        self._places = _list_feature_files(self.path)
        if self.skips:
            self._skip_bad_headers()

    @cached_property
    def d_in(self) -> int:
        """The width of the features: that of the first good file (`error`) or of most files (`skip`).

        Raises:
            ValueError: when no file of the folder is usable.
        """
        faults = list(self.skipped.values())
        for item_id in self.item_ids:
            try:
                return open_feature_file(self._places[item_id], item_id).d_in
            except FeatureFileError as error:
                # Told when the slide itself is asked for; others need not suffer from it.
                faults.append(str(error))
        raise ValueError(f"Expected a usable feature file in {self.path}, got none: {faults}.")

    def open(self, item_id: str) -> ItemRows:
        """Reads the header and the coords of a slide; see `FeatureReader.open`."""
        item = open_feature_file(self._file(item_id), item_id)
        if item.d_in != self.d_in:
            raise FeatureFileError(
                f"Expected one feature width in {self.path}, got {item.d_in} in {item.path.name} and {self.d_in} in "
                "other files. Keep the features of different encoders in different folders, or set "
                "dataset.on_bad_file=skip."
            )
        return item

    def identity(self, item_id: str) -> Identity:
        """Returns path (relative to the folder), bytes and time of change; see `FeatureReader.identity`."""
        path = self._file(item_id)
        status = path.stat()
        return os.path.relpath(path, self.path), status.st_size, status.st_mtime_ns

    def patch_size_of_patch_file(self, item_id: str) -> int | None:
        """Returns what a slide's patch file states, as CLAM's do; None where there is none."""
        if self._patches_dir is None:
            return None
        for path in (self._patches_dir / "patches" / f"{item_id}.h5", self._patches_dir / f"{item_id}.h5"):
            if path.is_file():
                return patch_size_level0(read_patch_coords(path)[1])
        return None

    def _file(self, item_id: str) -> Path:
        if item_id not in self._places:
            raise FileNotFoundError(
                f"Expected a feature file of slide {item_id!r} in {self.path} ({item_id}.h5 or {item_id}.pt), got "
                "none. Extract it (task=embed), take the slide out of the split, or set dataset.on_bad_file=skip."
            )
        return self._places[item_id]

    def _skip_bad_headers(self) -> None:
        widths: dict[str, int] = {}
        for item_id, path in track(self._places.items(), "Looking at feature files", total=len(self._places)):
            with self.skipping(item_id):
                widths[item_id] = open_feature_file(path, item_id).d_in
        counts = Counter(widths.values()).most_common()
        if len(counts) > 1 and counts[0][1] == counts[1][1]:
            raise ValueError(
                f"Expected one feature width in {self.path}, got {counts[0][0]} and {counts[1][0]} in equally many "
                "files, so neither can be skipped as the odd one. Keep different encoders in different folders."
            )
        for item_id, width in widths.items():
            if width != counts[0][0]:
                self.skip(item_id, f"{self._places[item_id]} has {width} features a patch, most files {counts[0][0]}")


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
