"""Finds and opens whole-slide images."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from src.files import list_files

# What OpenSlide reads by suffix; formats that are folders or need companions are named by their main file.
SUFFIXES = (".svs", ".tif", ".tiff", ".ndpi", ".mrxs", ".scn", ".vms", ".vmu", ".bif", ".svslide", ".czi", ".dcm")


def list_slides(slides_dir: str | Path) -> dict[str, Path]:
    """Returns the slides of a folder by slide id, the file name without suffix, sorted.

    Names that start with a dot are no slides.

    Raises:
        FileNotFoundError: when the folder does not exist or holds no slide.
        ValueError: when two files have one id.
    """
    folder = Path(slides_dir)
    found: dict[str, Path] = {}
    for path in list_files(folder):
        if path.suffix.lower() in SUFFIXES:
            if path.stem in found:
                raise ValueError(
                    f"Expected one file a slide in {folder}, got {found[path.stem].name} and {path.name}: remove one."
                )
            found[path.stem] = path
    if not found:
        raise FileNotFoundError(
            f"Expected slides ({', '.join(SUFFIXES)}) in {folder}, found none. Give dataset.slides_dir=<folder>."
        )
    return found


def find_slide(slides_dir: str | Path, slide_id: str) -> Path:
    """Returns the file of a slide.

    Raises:
        FileNotFoundError: when there is none.
    """
    for suffix in SUFFIXES:
        path = Path(slides_dir) / f"{slide_id}{suffix}"
        if path.is_file() and not path.name.startswith("."):
            return path
    raise FileNotFoundError(
        f"Expected slide {slide_id!r} in {slides_dir} with one of the suffixes {', '.join(SUFFIXES)}, found none."
    )


@contextmanager
def open_slide(path: str | Path) -> Iterator[Any]:
    """Opens a slide with OpenSlide.

    Raises:
        ImportError: when OpenSlide is not installed.
        ValueError: when OpenSlide cannot read the file.
    """
    try:
        import openslide
    except ImportError as error:
        raise ImportError(
            "Expected OpenSlide to read slides, found it not installed: pip install openslide-python openslide-bin."
        ) from error
    try:
        slide = openslide.OpenSlide(path)
    except openslide.OpenSlideError as error:
        raise ValueError(f"Expected a slide that OpenSlide reads at {path}, got {error}. Copy it again.") from error
    with slide:
        yield slide
