"""What a store of latents says of itself and of its items, readable without any latents."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xxhash

from src.activation_spec import ActivationSpec
from src.files import digest_file, digest_text, read_json_object, write_atomically

FORMAT = 2
HEAD_FILE = "index.json"
ITEMS_FILE = "index.csv"
BY_NEURON_FILE, NEURON_OFFSETS_FILE = "by_neuron.npy", "by_neuron_offsets.npy"
_REMEDY = "Make it with task=encode."


@dataclass(frozen=True)
class LatentItem:
    """An item whose rows are encoded.

    Attributes:
        item_id: a slide or an image.
        start: the number of its first row; the others follow.
        n_rows: how many it has.
        digest: of the activations that are encoded.
        patch_size_level0: the edge of its patches in level-0 pixels, None when not known.
    """

    item_id: str
    start: int
    n_rows: int
    digest: str = ""
    patch_size_level0: int | None = None


class ItemRows:
    """The rows of many items laid end to end, so that batches are as large for small items as for large ones.

    Attributes:
        items: in the order given; `start` and `n_rows` say which rows are theirs.
        n_rows: of all items together.
        starts: [n_items] the number of each item's first row.
    """

    def __init__(self, items: Sequence[LatentItem]) -> None:
        self.items = items
        self.starts = np.array([item.start for item in items], np.int64)
        self._lengths = np.array([item.n_rows for item in items], np.int64)
        self._ends = self._lengths.cumsum()
        self.n_rows = int(self._lengths.sum())

    def between(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns of the rows `start:stop`, counted end to end, the positions of their items, and their numbers."""
        positions, within = self.locate(np.arange(start, stop))
        return positions, within + self.starts[positions]

    def locate(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns of rows, counted end to end, the positions of their items, and their places in them."""
        positions = np.searchsorted(self._ends, rows, side="right")
        return positions, rows - (self._ends - self._lengths)[positions]

    def spans(self, n_rows: int) -> Iterator[tuple[int, int]]:
        """Yields (start, stop) of pieces of `n_rows` rows."""
        return ((start, min(start + n_rows, self.n_rows)) for start in range(0, self.n_rows, n_rows))


def write_index(
    path: Path,
    n_latents: int,
    sae: str,
    spec: ActivationSpec,
    shards: Sequence[tuple[str, int]],
    items: Sequence[LatentItem],
) -> None:
    """Writes the index, which makes a store finished; `read_index` says what is in it, `read_items` reads the items."""
    with write_atomically(path / ITEMS_FILE) as temporary:
        # By column: pandas copies each dataclass of a list, which takes seconds for 100,000.
        columns = {field.name: [getattr(item, field.name) for item in items] for field in fields(LatentItem)}
        pd.DataFrame(columns).to_csv(temporary, index=False)
    names = [ITEMS_FILE, *(name for name, _ in shards)]
    names += [name for name in (BY_NEURON_FILE, NEURON_OFFSETS_FILE) if (path / name).is_file()]
    digests = {name: digest_file(path / name, xxhash.xxh3_128()) for name in names}  # see `src.files.digest_array`
    head: dict[str, Any] = {"format": FORMAT, "n_latents": n_latents, "sae": sae, "spec": spec.to_dict()}
    head |= {"shards": list(shards), "digests": digests, "digest": digest_text(json.dumps(digests))}
    with write_atomically(path / HEAD_FILE) as temporary:
        temporary.write_text(json.dumps(head, indent=1) + "\n")


def read_index(path: Path) -> dict[str, Any]:
    """Returns what a store says of itself.

    Returns:
        `n_latents`, `sae` (its digest), `spec` (of the activations), `shards` (file and first row, in the order of the
        rows), `digests` (by file) and `digest` (of those).

    Raises:
        FileNotFoundError: when there is no finished store.
        ValueError: when the store is of another version.
    """
    if not (path / HEAD_FILE).is_file():
        raise FileNotFoundError(
            f"Expected a finished store of latents at {path}, found no {HEAD_FILE}: make it with task=encode."
        )
    head = read_json_object(path / HEAD_FILE, _REMEDY)
    if head.get("format") != FORMAT:
        raise ValueError(f"Expected latents of format {FORMAT} at {path}, got {head.get('format')}. {_REMEDY}")
    return head


def read_items(path: Path) -> dict[str, LatentItem]:
    """Returns the items of a store by id, in the order of their rows."""
    table = pd.read_csv(path / ITEMS_FILE, dtype={"item_id": str, "digest": str}, keep_default_na=False)
    ids, starts, n_rows, digests, sizes = (table[field.name].tolist() for field in fields(LatentItem))
    items = map(LatentItem, ids, starts, n_rows, digests, (size or None for size in sizes))
    return dict(zip(ids, items, strict=True))
