"""What a task reads: whether it is there, and how a user comes by what is not."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

# How a user comes by what a task needs.
_REMEDIES = {
    "slides_dir": "give dataset.slides_dir=<folder of slides>",
    "annotations_dir": "give dataset.annotations_dir=<folder of ASAP XML files>",
    "patches_dir": "make it with task=tile",
    "features_dir": "make it with task=embed, or give dataset.features_dir=<folder with h5_files/ or pt_files/>",
    "metadata_csv": "give dataset.metadata_csv=<csv with columns case_id, slide_id, label>, or of tensors make it with "
    "task=metadata",
    "splits_dir": "make it with task=splits, or give dataset.splits_dir=<folder with splits_<k>.csv>",
}
# How conf/dataset spells a path in a folder that was not given.
_NOWHERE = "None/"


def missing_data(config: Mapping[str, Any]) -> Iterator[str]:
    """Yields an error for every file or folder of the dataset that the task needs and that is not there."""
    task, dataset = config["task"], config["dataset"]
    draws = task["name"] == "tile" and dataset.get("generator") is not None
    streams = config["train"]["residency"] == "stream" and "needs_to_stream" in task
    needs = task["needs_to_stream"] if streams else task.get("needs", [])
    for key in needs:
        value = dataset.get(key)
        if key == "features_dir" and dataset.get("tensors") is not None:
            continue  # reading the tensors says which file is missing
        if key == "slides_dir" and draws:
            continue  # the task draws them first
        is_there = Path.is_file if key.endswith("_csv") else Path.is_dir
        if value is None or not is_there(Path(value)):
            remedy = _REMEDIES[key]
            if str(value).startswith(_NOWHERE):
                value, remedy = None, f"give dataset.dir=<folder of the data set>, or {remedy}"
            if streams and key in ("patches_dir", "slides_dir"):
                remedy += "; or train on feature files or tensors, with another train.residency than stream"
            yield f"task={task['name']} needs dataset.{key}: found {_found(value)}; {remedy}"


def wrong_sae_run(sae_run: str | None) -> Iterator[str]:
    """Yields an error when `sae_run` is not the directory of a finished run with an exported SAE."""
    if sae_run is None or (found := _found_instead_of_a_run(Path(sae_run))) is None:
        return
    yield f"sae_run: expected the directory of a finished run of train_sae or convert, got {sae_run}: {found}"


def _found_instead_of_a_run(path: Path) -> str | None:
    if not path.is_dir():
        return "a file" if path.is_file() else "nothing is there"
    if path.name == "export" and (path / "cfg.json").is_file():
        return f"the export in one; give sae_run={path.parent}"
    manifest = path / "manifest.json"
    if not manifest.is_file():
        return "a folder without manifest.json; take an SAE that was trained elsewhere over with task=convert"
    try:
        status = json.loads(manifest.read_text())["status"]
    except (ValueError, KeyError, TypeError):
        return "its manifest.json cannot be read; start the command that made it again"
    if status != "completed":
        return f"its status is {status}; start the command that made it again to finish it"
    return None if (path / "export" / "cfg.json").is_file() else "a run without export/cfg.json"


def wrong_folders(paths: Mapping[str, str]) -> Iterator[str]:
    """Yields an error for every root of data, runs and caches that is a file or lies below one."""
    for name, value in paths.items():
        path = Path(value)
        if file := next((place for place in (path, *path.parents) if place.is_file()), None):
            yield f"paths.{name}: expected a folder, got {value}, where {file} is a file"


def _found(value: str | None) -> str:
    if value is None:
        return "no path"
    path = Path(value)
    return f"a {'folder' if path.is_dir() else 'file'} at {value}" if path.exists() else f"nothing at {value}"
