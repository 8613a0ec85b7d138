"""Writes the activations of a fold as one tensor a part, as other programs cache them."""

from typing import Any

import pandas as pd

from src.data.fold import open_fold
from src.records import PARTS
from src.report.page import Page
from src.runs.rundir import RunDir
from src.stores.activations.tensor_export import export_tensor


def run(cfg: Any, rundir: RunDir) -> dict[str, float]:
    """Writes `tensors/<backbone>_<layer>_<part>.pt` (or `.npy`), with ids, cases and labels in json files beside each.

    exp=tensors reads them back: dataset.tensors.train=<file>, dataset.tensor_ids.train=<..._ids.json>, and so on.

    Returns:
        The number of items of each part.

    Raises:
        ValueError: when items have different numbers of rows.
    """
    fold = open_fold(cfg)
    rundir.record(*fold.inputs("split train+val+test", "cases train+val+test", "labels train+val+test"))
    rundir.record(*fold.inputs("activations train+val+test"))
    rows, results = [], {}
    for part in PARTS:
        if not (item_ids := fold.split.item_ids(part)):
            continue
        items = [fold.items[item_id] for item_id in item_ids]
        known = [item.label for item in items]
        beside = {"ids": item_ids, "cases": [item.case_id for item in items]}
        if None not in known:
            beside["labels"] = known
        path = rundir.path / "tensors" / f"{cfg.backbone.name}_{fold.spec.layer}_{part}.{cfg.tensors.format}"
        shape = export_tensor(fold.store, item_ids, path, beside)
        rows.append((path.name, part, "x".join(map(str, shape)), fold.store.dtype.name))
        results[f"n_{part}"] = float(len(item_ids))
    table = pd.DataFrame(rows, columns=["file", "split", "shape", "dtype"])
    rundir.add_table("tensors", table, "Files in tensors/, each with _ids, _cases and, where all are known, _labels.")
    rundir.write_page(Page("Activations as tensors", [f"Of {fold.spec}."]))
    return results
