"""The packed activations of a data set, mapped from disk."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd

ACTIVATIONS_FILE = "activations.npy"
INDEX_FILE = "index.csv"
_REPACK = "Delete the folder; the next run packs it again."


class ActivationStore:
    """Activations of many slides as one read-only memory map, with an index of who owns which rows.

    Attributes:
        path: the folder, made by `src.data.packing.pack_activations`.
        activations: [n_rows, d_in] float32, mapped read-only: reading rows reads only their pages.
        index: slide_id, start, stop (rows), digest (of the slide's values).

    Args:
        path: the folder.

    Raises:
        ValueError: when array and index do not agree.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        try:
            self.activations: np.ndarray = np.load(self.path / ACTIVATIONS_FILE, mmap_mode="r")
        except (ValueError, EOFError) as error:
            raise ValueError(f"Expected a whole {ACTIVATIONS_FILE} in {self.path}, got {error}. {_REPACK}") from error
        self.index = pd.read_csv(self.path / INDEX_FILE, dtype={"slide_id": str, "digest": str}, keep_default_na=False)
        starts, stops = self.index["start"].to_numpy(), self.index["stop"].to_numpy()
        n_rows = len(self.activations)
        if not len(stops) or starts[0] != 0 or (starts[1:] != stops[:-1]).any() or stops[-1] != n_rows:
            raise ValueError(
                f"Expected {INDEX_FILE} to cover the {n_rows} rows of {ACTIVATIONS_FILE} in {self.path}, got other "
                f"row ranges. {_REPACK}"
            )
        self._row_range = {
            str(slide_id): (int(start), int(stop))
            for slide_id, start, stop in zip(self.index["slide_id"], starts, stops, strict=True)
        }
        self._digest = dict(zip(self._row_range, self.index["digest"].astype(str), strict=True))

    @property
    def d_in(self) -> int:
        """The width of the activations."""
        return self.activations.shape[1]

    @property
    def slide_ids(self) -> list[str]:
        """The slides, in the order of their rows."""
        return list(self._row_range)

    def present(self, slide_ids: Iterable[str]) -> list[str]:
        """Returns those of `slide_ids` that were packed; the others were skipped as bad or missing, and logged."""
        return [slide_id for slide_id in slide_ids if slide_id in self._row_range]

    def row_ranges(self, slide_ids: Iterable[str]) -> list[tuple[int, int]]:
        """Returns (start, stop) of the rows of each slide.

        Raises:
            ValueError: when a slide was not packed.
        """
        return [self._row_range[slide_id] for slide_id in self._known(slide_ids)]

    def row_ids(self, slide_ids: Iterable[str]) -> np.ndarray:
        """Returns the numbers of all rows of the slides, in the order given: [n] int64.

        Raises:
            ValueError: when a slide was not packed.
        """
        ranges = [np.arange(start, stop) for start, stop in self.row_ranges(slide_ids)]
        return np.concatenate(ranges) if ranges else np.empty(0, dtype=np.int64)

    def rows(self, slide_id: str) -> np.ndarray:
        """Returns a read-only view [n_patches, d_in] of a slide's activations.

        Raises:
            ValueError: when the slide was not packed.
        """
        ((start, stop),) = self.row_ranges([slide_id])
        return self.activations[start:stop]

    def digest(self, slide_id: str) -> str:
        """Returns the digest of a slide's activations.

        Raises:
            ValueError: when the slide was not packed.
        """
        (known,) = self._known([slide_id])
        return self._digest[known]

    def _known(self, slide_ids: Iterable[str]) -> list[str]:
        slide_ids = list(slide_ids)
        if missing := [slide_id for slide_id in slide_ids if slide_id not in self._row_range]:
            raise ValueError(
                f"Expected slides among the {len(self._row_range)} of {self.path}, got {missing[:5]} "
                f"({len(missing)} unknown): they had no usable feature file. Extract them (task=embed) or take them "
                "out of the split."
            )
        return slide_ids
