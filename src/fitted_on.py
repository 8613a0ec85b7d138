"""The list of slides that something was fitted on, which travels with it, so that leakage can be told."""

import csv
from collections.abc import Iterable
from pathlib import Path

from src.files import write_atomically
from src.records import FittedItem

FILE = "fitted_on.csv"


def write_fitted_on(path: Path, slides: Iterable[FittedItem]) -> None:
    """Writes a list of slides that something was fitted on."""
    with write_atomically(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("item_id", "case_id", "digest", "n_patches"))
        writer.writerows((slide.item_id, slide.case_id, slide.digest, slide.n_patches) for slide in slides)


def read_fitted_on(path: Path) -> list[FittedItem]:
    """Reads what `write_fitted_on` wrote.

    Raises:
        FileNotFoundError: when there is no such file.
        ValueError: when it lists nothing, or is damaged: leakage cannot be ruled out by such a list.
    """
    remedy = "leakage cannot be ruled out. Run it again with overwrite=true."
    if not path.is_file():
        raise FileNotFoundError(
            f"Expected the list of slides that {path.parent} was fitted on at {path}, found none: {remedy}"
        )
    with open(path, newline="", encoding="utf-8") as file:
        try:
            slides = [
                FittedItem(row["item_id"], row["case_id"], row["digest"], int(row["n_patches"]))
                for row in csv.DictReader(file)
            ]
        except (KeyError, TypeError, ValueError, csv.Error) as error:
            raise ValueError(
                f"Expected item_id, case_id, digest and n_patches in {path}, got {type(error).__name__} {error}: "
                + remedy
            ) from error
    if not slides:
        raise ValueError(f"Expected the slides that {path.parent} was fitted on in {path}, got an empty list: {remedy}")
    return slides
