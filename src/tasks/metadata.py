"""Writes the csv, and where parts come in separate files the split, of a dataset that comes as tensors."""

import logging
from pathlib import Path
from typing import Any

import pandas as pd

from src.data.current_inputs import CurrentInputs
from src.data.fold import open_features
from src.data.readers.tensor_folder import TensorFolder
from src.data.splits import write_folds
from src.files import remove_leftovers, write_atomically
from src.records import PARTS, FoldSplit, check_split
from src.runs.rundir import RunDir

_LOGGER = logging.getLogger(__name__)


def run(cfg: Any, rundir: RunDir) -> dict[str, float]:
    """Writes `dataset.metadata_csv`, and `splits_0.csv` into `dataset.splits_dir` unless one file holds all images.

    Without a file of validation images nothing is validated on; without one of test images what is measured on test
    slides must be asked for on another split.

    Returns:
        The number of images, and those of each part.

    Raises:
        ValueError: when the dataset does not come as tensors, or a case has images in files of two parts.
    """
    if reasons := missing_inputs(cfg):
        raise ValueError(f"Expected dataset.tensors to name files, got none: {reasons[0]}.")
    folder = open_features(cfg.dataset)
    if not isinstance(folder, TensorFolder):
        raise ValueError(f"Expected tensors, got the feature files of {folder.path}.")
    if not folder.has_cases:
        _LOGGER.warning(
            "No dataset.tensor_cases: each image counts as a case of its own. Where patients have several "
            "images, name them, or splits may leak."
        )
    split = FoldSplit(0, **{part: tuple(folder.parts.get(part, ())) for part in PARTS})
    if "all" not in folder.parts:
        check_split(split, folder.items, "dataset.tensors", needed=())
    remove_leftovers(Path(cfg.dataset.metadata_csv).parent)
    rows = [(item.case_id, item.item_id, item.label) for item in folder.items]
    with write_atomically(cfg.dataset.metadata_csv) as temporary:
        pd.DataFrame(rows, columns=["case_id", "item_id", "label"]).to_csv(temporary, index=False)
    rundir.record(*CurrentInputs(cfg).read("tensors"))
    if "all" not in folder.parts:
        Path(cfg.dataset.splits_dir).mkdir(parents=True, exist_ok=True)
        remove_leftovers(Path(cfg.dataset.splits_dir))
        write_folds([split], folder.items, cfg.dataset.splits_dir)
    return {"n_images": float(len(folder.items))} | {f"n_{part}": float(len(ids)) for part, ids in folder.parts.items()}


def missing_inputs(cfg: Any) -> list[str]:
    """Returns why a pipeline need not write a csv: the dataset has one."""
    return [] if cfg.dataset.get("tensors") is not None else ["the dataset is not made of tensors"]
