"""What a folder of whole-slide images holds."""

from pathlib import Path

from src.data.images.image_folder import find_cases
from src.data.listing import Listing
from src.data.slides.slide_files import list_slides


def list_slide_folder(folder: str | Path | None, case_pattern: str | None = None) -> Listing:
    """Lists the slides of a folder, sorted by id: the file name without suffix.

    Args:
        folder: of files that OpenSlide reads.
        case_pattern: finds the patient in an id, see `find_cases`; None: each slide is its own.

    Returns:
        Columns `case_id`, `slide_id` and `label`, which is empty: give labels in a csv of your own.

    Raises:
        FileNotFoundError: when there is no slide.
        ValueError: when two files have one id, or the pattern is wrong.
    """
    if folder is None:
        raise FileNotFoundError("Expected a folder of slides, got none: give dataset.dir=<folder>.")
    ids = list(list_slides(folder))
    return Listing({"case_id": find_cases(ids, case_pattern), "slide_id": ids, "label": [""] * len(ids)})
