"""CLAM's list of slides, `process_list_autogen.csv`, with why a slide has no patches."""

import csv
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from src.data.slides.tiling import CLAM_COLUMNS
from src.files import write_atomically

FILE_NAME = "process_list_autogen.csv"
_COLUMNS = ("slide_id", "process", "status", *CLAM_COLUMNS, "n_patches", "reason")


@dataclass(frozen=True)
class SlideEntry:
    """What became of a slide.

    Attributes:
        n_patches: how many were cut; None: it is not its turn yet.
        reason: why there are none.
        columns: see `Cut.columns`.
    """

    n_patches: int | None = None
    reason: str = ""
    columns: Mapping[str, Any] = field(default_factory=dict)

    @property
    def status(self) -> str:
        """In CLAM's words: `tbp` (to be processed), `processed` or `failed_seg`."""
        if self.n_patches is None:
            return "tbp"
        return "processed" if self.n_patches else "failed_seg"


def write_process_list(out_dir: Path, file_names: Iterable[str], entries: Mapping[str, SlideEntry]) -> None:
    """Writes the list: CLAM's columns, then `n_patches` and `reason`; empty what the way of cutting does not know.

    Args:
        out_dir: where.
        file_names: of all slides, with suffix, as CLAM's `slide_id`.
        entries: by file name, of the slides that had their turn.
    """
    with write_atomically(out_dir / FILE_NAME) as temporary, open(temporary, "w", newline="") as file:
        writer = csv.DictWriter(file, _COLUMNS, lineterminator="\n")
        writer.writeheader()
        for name in file_names:
            entry = entries.get(name, SlideEntry())
            known = {
                "slide_id": name,
                "process": int(entry.n_patches is None),
                "status": entry.status,
                "n_patches": entry.n_patches or 0,
                "reason": entry.reason,
            }
            writer.writerow({**entry.columns, **known})
