"""Rows of items become the vectors that probes see: one an item, or every row, in one pass over a store."""

import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from src.data.feeding.rows import DEFAULT_RAM_BYTES, StoreRows
from src.models.probes import POOLS
from src.ops.sparse_latents import SparseLatents
from src.progress import track
from src.stores.activations.store import ActivationStore
from src.stores.latents.source import PIECE_ROWS, LatentSource

Pieces = Iterable[tuple[np.ndarray, SparseLatents | Tensor]]
"""Rows of items as `LatentSource.read` gives them: the position of each row's item [n], and the values [n, d]."""


@dataclass(frozen=True)
class ItemVectors:
    """What a probe sees of some items.

    Attributes:
        values: [n_vectors, d] float32, in memory or mapped.
        items: [n_vectors] int64, the position of each vector's item, ascending; `0, 1, ...` of pooled items.
    """

    values: np.ndarray
    items: np.ndarray

    def of(self, items: range) -> slice:
        """Returns the vectors of consecutive items, given their positions."""
        first, last = np.searchsorted(self.items, [items.start, items.stop]).tolist()
        return slice(first, last)


def activation_pieces(
    store: ActivationStore, item_ids: Sequence[str], n_rows: int = PIECE_ROWS
) -> Iterator[tuple[np.ndarray, Tensor]]:
    """Yields the activations of items, `n_rows` rows at a time, in the order of the store."""
    ranges = store.row_ranges(item_ids)
    order = sorted(range(len(ranges)), key=ranges.__getitem__)
    rows = StoreRows(store, [item_ids[position] for position in order])
    positions = np.repeat(order, [ranges[position][1] - ranges[position][0] for position in order])
    for start in range(0, rows.n_rows, n_rows):
        stop = min(start + n_rows, rows.n_rows)
        yield positions[start:stop], torch.from_numpy(np.array(rows.read(start, stop), np.float32))


def latent_pieces(
    source: LatentSource, item_ids: Sequence[str], neuron_ids: Sequence[int] | None = None
) -> Iterator[tuple[np.ndarray, SparseLatents | Tensor]]:
    """Yields the latents of items: sparse of all neurons, or dense of some, in the order given."""
    for positions, latents in source.read(item_ids):
        yield positions, latents if neuron_ids is None else latents.columns(neuron_ids)


def pool_vectors(
    pieces: Pieces, n_rows: Sequence[int], d: int, pool: str, folder: Path, ram_bytes: int = DEFAULT_RAM_BYTES
) -> ItemVectors:
    """Pools the rows of items in one pass, sparse ones without making them dense.

    Args:
        pieces: all rows of the items, those of an item in order; its pieces may come apart.
        n_rows: of each item.
        d: width of a row.
        pool: see `src.models.probes.pool_rows`.
        folder: where the vectors lie, in a file without a name that goes with them, when they are more than fit into
            memory.
        ram_bytes: how much may be held in memory.

    Raises:
        ValueError: when the pool is unknown, or an item has no row or others than said.
    """
    if pool not in POOLS:
        raise ValueError(f"Expected a pool among {', '.join(POOLS)}, got {pool!r}.")
    lengths, seen = np.asarray(n_rows, np.int64), np.zeros(len(n_rows), np.int64)
    starts = np.cumsum(lengths) - lengths
    items = np.repeat(np.arange(len(lengths)), lengths if pool == "none" else 1)
    values = _allocate((len(items), d), folder, ram_bytes)
    out = torch.from_numpy(values)
    for positions, rows in track(pieces, "Pooling"):
        within = _places_within(positions, seen)
        seen += np.bincount(positions, minlength=len(seen))
        targets = torch.from_numpy(starts[positions] + within if pool == "none" else positions)
        is_first = torch.from_numpy(within == 0)
        if pool == "max":
            _keep_largest(out, targets, rows, is_first)
        else:
            _add(out, targets, rows, is_first if pool == "cls" else None)
    if wrong := np.flatnonzero((seen != lengths) | (lengths == 0)).tolist():
        raise ValueError(
            f"Expected {lengths[wrong[0]]} rows, at least one, of item {wrong[0]}, got {seen[wrong[0]]}: take it out "
            "of the split, or encode it again."
        )
    if pool == "mean":
        out /= torch.from_numpy(lengths)[:, None]
    return ItemVectors(values, items)


def _allocate(shape: tuple[int, int], folder: Path, ram_bytes: int) -> np.ndarray:
    if 4 * shape[0] * shape[1] <= ram_bytes:
        return np.zeros(shape, np.float32)
    with tempfile.TemporaryFile(dir=folder) as file:  # the map holds on to it
        return np.memmap(file, np.float32, "w+", shape=shape)


def _places_within(positions: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """Returns the place of each row within its item, given how many of the item's rows came before."""
    is_first = np.append(True, positions[1:] != positions[:-1])[: len(positions)]
    starts = np.flatnonzero(is_first)
    return np.arange(len(positions)) - starts[np.cumsum(is_first) - 1] + seen[positions]


def _add(out: Tensor, targets: Tensor, rows: SparseLatents | Tensor, kept: Tensor | None) -> None:
    if isinstance(rows, SparseLatents):
        rows = rows if kept is None else rows.where(kept[rows.row_ids])
        out.view(-1).index_add_(0, targets[rows.row_ids] * rows.n_latents + rows.neuron_ids, rows.values)
    else:
        places = slice(None) if kept is None else kept
        out.index_add_(0, targets[places], rows[places])


def _keep_largest(out: Tensor, targets: Tensor, rows: SparseLatents | Tensor, is_first: Tensor) -> None:
    if isinstance(rows, SparseLatents):  # what is not listed is 0, and so `out` begins: latents are not negative
        places = targets[rows.row_ids] * rows.n_latents + rows.neuron_ids
        out.view(-1).scatter_reduce_(0, places, rows.values, "amax")
    else:
        out[targets[is_first]] = -torch.inf
        out.scatter_reduce_(0, targets[:, None].expand_as(rows), rows, "amax")
