"""Activations as one tensor for many images, for programs that cache them so."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from src.files import write_atomically
from src.progress import track
from src.stores.activations.store import ActivationStore

FORMATS = ("pt", "npy")


def export_tensor(
    store: ActivationStore,
    item_ids: Sequence[str],
    path: Path,
    beside: dict[str, Sequence[str | None]] | None = None,
) -> tuple[int, ...]:
    """Writes [n_items, d_in], or [n_items, n_tokens, d_in] where items have several rows, and lists beside it.

    Rows are copied item by item; memory stays small.

    Args:
        store: the activations.
        item_ids: the order of the items.
        path: the file, `.npy` or `.pt`; its type is that of the store.
        beside: lists of a value an item, by name: `labels` goes into `<path without suffix>_labels.json`.

    Returns:
        The shape.

    Raises:
        ValueError: when items have different numbers of rows, or there are none.
    """
    lengths = {stop - start for start, stop in store.row_ranges(item_ids)}
    if len(lengths) != 1:
        raise ValueError(
            f"Expected items of equally many rows for one tensor, got {sorted(lengths)[:5]}: bags of patches do "
            "not fit into one; give backbone.tokens=mean, or read the store itself."
        )
    (n_rows,) = lengths
    shape = (len(item_ids), *([n_rows] if n_rows > 1 else []), store.d_in)
    with write_atomically(path.with_suffix(".npy"), int(np.prod(shape)) * store.dtype.itemsize) as temporary:
        values = np.lib.format.open_memmap(temporary, mode="w+", dtype=store.dtype, shape=shape)
        for place, item_id in enumerate(track(item_ids, f"Writing {path.name}")):
            values[place] = store.rows(item_id).reshape(shape[1:])
        values.flush()
        if path.suffix == ".pt":
            _write_pt(values, path)
    if path.suffix == ".pt":
        path.with_suffix(".npy").unlink()
    for name, entries in (beside or {}).items():
        with write_atomically(path.with_name(f"{path.stem}_{name}.json")) as temporary:
            temporary.write_text(json.dumps(list(entries)))
    return shape


def _write_pt(values: np.ndarray, path: Path) -> None:
    import torch

    with write_atomically(path, values.nbytes) as temporary, open(temporary, "wb") as file:
        torch.save(torch.from_numpy(values), file)
