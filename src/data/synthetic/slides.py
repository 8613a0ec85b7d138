"""A built-in data set of H&E-like whole-slide images with known tumour, drawn from a seed."""

import csv
import json
import logging
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from src.data.slides.annotations import Polygon, write_asap_xml
from src.data.slides.slide_writer import write_slide
from src.data.synthetic.drawing import MICRONS_PER_PIXEL, STAINS, draw_slide
from src.files import list_files, remove_leftovers, write_atomically
from src.progress import track

_LOGGER = logging.getLogger(__name__)
# Raised whenever the drawing changes, so that slides of an older version are not taken for this one's.
_VERSION = 1
# Drawing needs about 0.4 GB a slide; numpy and scipy leave the interpreter's lock, so threads run side by side.
_N_THREADS = 2


@dataclass(frozen=True)
class PlannedSlide:
    """A slide to draw: whose it is, whether it holds tumour, the seed of its pixels, and its centre's number."""

    slide_id: str
    case_id: str
    positive: bool
    seed: int
    center: int = 0


def generate_slides(
    out_dir: str | Path,
    n_slides: int = 60,
    n_cases: int = 40,
    size: int = 2048,
    seed: int = 0,
    center_skew: float | None = None,
) -> None:
    """Draws a data set, or what is missing of it.

    Writes `slides/<slide_id>.tif`, `annotations/<slide_id>.xml` of positive slides (ASAP XML, level-0 pixels), and last
    `dataset.csv` (case_id, slide_id, label: normal or tumor). Every file appears whole; a second call draws only slides
    that are not there, and removes what a killed one left half written.

    Args:
        out_dir: the folder; nobody else may be drawing there.
        n_slides: how many slides.
        n_cases: how many cases they come from; every second case has tumour, in all of its slides.
        size: mean edge of a slide in level-0 pixels.
        seed: the same seed gives the same pixels.
        center_skew: draws slides of two centres that stain differently, in a column `center` of the csv: this share of
            the cases with tumour is of the second centre, and of the others this share of the first. None: one centre.

    Raises:
        ValueError: when there are fewer slides than cases or fewer than two cases, or the folder holds a data set of
            other settings.
    """
    out_dir = Path(out_dir)
    planned = plan_slides(n_slides, n_cases, seed, center_skew)
    settings = {"version": _VERSION, "n_slides": n_slides, "n_cases": n_cases, "size": size, "seed": seed}
    _claim(out_dir, settings if center_skew is None else settings | {"center_skew": center_skew})
    for folder in (out_dir, out_dir / "slides", out_dir / "annotations"):
        remove_leftovers(folder)

    def draw(slide: PlannedSlide) -> None:
        path = out_dir / "slides" / f"{slide.slide_id}.tif"
        if path.is_file():
            return
        image, outlines = draw_slide(slide.seed, slide.positive, size, STAINS[slide.center])
        if slide.positive:
            polygons = [Polygon(outline, "Tumor") for outline in outlines]
            write_asap_xml(out_dir / "annotations" / f"{slide.slide_id}.xml", polygons)
        write_slide(path, image, MICRONS_PER_PIXEL)

    with ThreadPoolExecutor(_N_THREADS) as pool:
        for _ in track(pool.map(draw, planned), "Drawing slides", total=n_slides):
            pass
    with write_atomically(out_dir / "dataset.csv") as temporary, open(temporary, "w", newline="") as file:
        writer = csv.writer(file)
        centers = () if center_skew is None else ("center",)
        writer.writerow(("case_id", "slide_id", "label", *centers))
        for slide in planned:
            of_center = (f"center_{slide.center + 1}",) if centers else ()
            writer.writerow((slide.case_id, slide.slide_id, "tumor" if slide.positive else "normal", *of_center))
    _LOGGER.info("%d synthetic slides of %d cases in %s", n_slides, n_cases, out_dir)


def plan_slides(n_slides: int, n_cases: int, seed: int, center_skew: float | None = None) -> list[PlannedSlide]:
    """Returns the slides of a data set, case by case; every case has one, and the first ones have more.

    Of the cases of each class, those of the centre that has more of it come first; see `generate_slides`.

    Raises:
        ValueError: when there are fewer slides than cases, or fewer than two cases.
    """
    if not 2 <= n_cases <= n_slides:
        raise ValueError(f"Expected 2 <= n_cases <= n_slides, got n_cases {n_cases} and n_slides {n_slides}.")
    owners = sorted(index % n_cases for index in range(n_slides))
    seeds = np.random.SeedSequence(seed).generate_state(n_slides)
    digits = len(str(n_cases))
    planned: list[PlannedSlide] = []
    for index, owner in enumerate(owners):
        case_id = f"case_{owner + 1:0{digits}d}"
        number = index - owners.index(owner) + 1
        positive = owner % 2 == 1
        center = 0
        if center_skew is not None:
            n_of_class = (n_cases + 1 - positive) // 2
            center = int(positive) if owner // 2 < round(center_skew * n_of_class) else int(not positive)
        planned.append(PlannedSlide(f"{case_id}_{number}", case_id, positive, int(seeds[index]), center))
    return planned


def _claim(out_dir: Path, settings: dict[str, Any]) -> None:
    """Notes in the folder what is drawn there, and refuses a folder that holds something else."""
    path = out_dir / "generator.json"
    if not path.is_file():
        if list_files(out_dir / "slides"):
            raise ValueError(f"Expected {out_dir} to be empty or drawn by this generator, got other slides in it.")
        with write_atomically(path) as temporary:
            temporary.write_text(json.dumps(settings, indent=2) + "\n")
        return
    found = json.loads(path.read_text())
    if found != settings:
        raise ValueError(
            f"Expected the slides in {out_dir} to be drawn with {settings}, got {found}. "
            "Remove the folder, or give another dataset.root=<folder>."
        )
