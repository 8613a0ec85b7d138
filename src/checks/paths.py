"""What a task reads: whether it is there, and how a user comes by what is not."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from src.folder_names import computes_activations
from src.records import ALL
from src.split_files import MADE_BY_LOUPE, given_splits

# How a user comes by what a task needs.
_REMEDIES = {
    "slides_dir": "give dataset.slides_dir=<folder of slides>",
    "annotations_dir": "give dataset.annotations_dir=<folder of outlines (ASAP XML, GeoJSON, boxes.csv) or masks>",
    "images_dir": "give dataset.dir=<folder of images>",
    "patches_dir": "make it with task=tile",
    "features_dir": "make it with task=embed, or give dataset.features_dir=<folder with h5_files/ or pt_files/>",
    "metadata_csv": "give dataset.metadata_csv=<csv with columns case_id, slide_id, label>, or of images and "
    "tensors make it with task=metadata",
    "splits_dir": "make it with task=splits, or give dataset.splits_dir=<folder with splits_<k>.csv or "
    "rep<r>_fold<k>.csv>",
}
_NO_BACKBONE = (
    "give dataset.features_dir=<folder with h5_files/ or pt_files/>, e.g. of CLAM or TRIDENT; backbone={} computes no "
    "activations, so task=embed cannot make them"
)
_NO_WEIGHTS = " before backbone.checkpoint=<file of its weights> or backbone.pretrained=<id of the hub> is given"
_SAE = "export/cfg.json"
# What tells the run of a task that can be named explicitly.
_PRODUCTS = {
    "train_sae": _SAE,
    "select_neurons": "analysis/neurons.csv",
    "train_mil": "export",
    "train_probe": "export",
}
# How conf/dataset spells a path in a folder that was not given.
_NOWHERE = "None/"


def missing_data(config: Mapping[str, Any]) -> Iterator[str]:
    """Yields an error for every file or folder of the dataset that the task needs and that is not there."""
    task, dataset = config["task"], config["dataset"]
    draws = task["name"] == "tile" and dataset.get("generator") is not None
    streams = config["train"]["residency"] == "stream" and "needs_to_stream" in task
    needs = task["needs_to_stream"] if streams else task.get("needs", [])
    if dataset.get("images_dir") is not None and not {"patches_dir", "slides_dir"}.isdisjoint(needs):
        needs = ["images_dir", "metadata_csv", *(key for key in needs if key not in ("patches_dir", "slides_dir"))]
        needs = list(dict.fromkeys(needs))
    for key in task.get("writes", []):
        if dataset.get(key) is None:
            yield f"task={task['name']} writes dataset.{key}: found no path; give dataset.{key}=<folder>"
    if config["fold"] == ALL and task.get("fits"):
        yield f"task={task['name']} needs train items: fold=all has none; give fold=<number>"
    if config["fold"] == ALL:
        needs = [key for key in needs if key != "splits_dir"]
    repeats, folds = {}, dataset.get("splits_dir")
    if config["repeat"] and "splits_dir" in needs and _are_published(folds):
        repeats = given_splits(folds)
    if repeats and config["repeat"] not in repeats:
        yield (
            f"repeat: expected one of {sorted(repeats)}, of which {folds} has files, which task=splits did not make, "
            f"got {config['repeat']}; other repeats have files rep<r>_fold<k>.csv"
        )
    for key in needs:
        value = dataset.get(key)
        if key == "features_dir" and dataset.get("tensors") is not None:
            continue  # reading the tensors says which file is missing
        if key == "slides_dir" and draws:
            continue  # the task draws them first
        is_there = Path.is_file if key.endswith("_csv") else Path.is_dir
        if value is None or not is_there(Path(value)):
            remedy = _REMEDIES[key]
            if key == "features_dir" and not computes_activations(config["backbone"]):
                remedy = _NO_BACKBONE.format(config["backbone"]["name"])
                remedy += _NO_WEIGHTS if "_target_" in config["backbone"] else ""
            if str(value).startswith(_NOWHERE):
                value, remedy = None, f"give dataset.dir=<folder of the data set>, or {remedy}"
            if streams and key in ("patches_dir", "slides_dir"):
                remedy += "; or train on feature files or tensors, with another train.residency than stream"
            yield f"task={task['name']} needs dataset.{key}: found {_found(value)}; {remedy}"


def wrong_run(key: str, task: str, path: str) -> Iterator[str]:
    """Yields an error when a run that was named explicitly is not the directory of a finished run of its task.

    Args:
        key: what names it, e.g. `sae_run`.
        task: that makes such runs.
        path: the directory.
    """
    if (found := _found_instead_of_a_run(Path(path), _PRODUCTS[task])) is not None:
        makers = "train_sae or convert" if task == "train_sae" else task
        yield f"{key}: expected the directory of a finished run of {makers}, got {path}: {found}"


def _found_instead_of_a_run(path: Path, product: str) -> str | None:
    if not path.is_dir():
        return "a file" if path.is_file() else "nothing is there"
    if path.name == "export" and (path / "cfg.json").is_file():
        return f"the export in one; give sae_run={path.parent}"
    manifest = path / "manifest.json"
    if not manifest.is_file():
        hint = "; take an SAE that was trained elsewhere over with task=convert" if product == _SAE else ""
        return f"a folder without manifest.json{hint}"
    try:
        status = json.loads(manifest.read_text())["status"]
    except (ValueError, KeyError, TypeError):
        return "its manifest.json cannot be read; start the command that made it again"
    if status != "completed":
        return f"its status is {status}; start the command that made it again to finish it"
    return None if (path / product).exists() else f"a run without {product}"


def wrong_folders(paths: Mapping[str, str]) -> Iterator[str]:
    """Yields an error for every root of data, runs and caches that is a file or lies below one."""
    for name, value in paths.items():
        path = Path(value)
        if file := next((place for place in (path, *path.parents) if place.is_file()), None):
            yield f"paths.{name}: expected a folder, got {value}, where {file} is a file"


def _are_published(splits_dir: str | None) -> bool:
    return splits_dir is not None and Path(splits_dir).is_dir() and not (Path(splits_dir) / MADE_BY_LOUPE).is_file()


def _found(value: str | None) -> str:
    if value is None:
        return "no path"
    path = Path(value)
    return f"a {'folder' if path.is_dir() else 'file'} at {value}" if path.exists() else f"nothing at {value}"
