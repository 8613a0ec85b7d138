"""The list of items that something was fitted on, which travels with it, and the leakage that it tells."""

import csv
from collections.abc import Iterable
from pathlib import Path

from src.files import write_atomically
from src.records import FittedItem

FILE = "fitted_on.csv"
# Bags of fewer patches may coincide by chance (coarse features, blank images); equal larger ones are copies.
_TINY_BAG = 8


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


def refuse_leakage(fitted: Iterable[FittedItem], held_out: Iterable[FittedItem], what: str) -> list[str]:
    """Refuses to use on held-out slides what was fitted on them, on their cases or on copies of them.

    Args:
        fitted: the slides that something was fitted on.
        held_out: the validation and test slides of the run that uses it.
        what: what was fitted and where, for the message.

    Returns:
        Pairs of tiny bags (fewer than 8 patches) of other cases with equal activations: worth a warning, no proof.

    Raises:
        ValueError: when a slide id, a case id or the activations of `fitted` are held out.
    """
    fitted = list(fitted)
    item_ids = {slide.item_id for slide in fitted}
    case_ids = {slide.case_id for slide in fitted}
    fitted_by_digest = {slide.digest: slide.item_id for slide in fitted}
    twins = []
    for slide in held_out:
        shared = None
        if slide.item_id in item_ids:
            shared = f"slide {slide.item_id!r}"
        elif slide.case_id in case_ids:
            shared = f"case {slide.case_id!r}"
        elif twin := fitted_by_digest.get(slide.digest):
            if slide.n_patches >= _TINY_BAG:
                shared = f"the activations of {slide.item_id!r} (equal to those of {twin!r})"
            else:
                twins.append(f"{slide.item_id} = {twin}")
        if shared:
            raise ValueError(
                f"Expected {what} to be fitted on other cases than this fold's validation and test cases, got "
                f"{shared} in both. Use the run of the same fold, or fit it on train slides only."
            )
    return twins
