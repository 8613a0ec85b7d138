"""Which neuron, and which threshold of its mask, agrees best with boxes: all neurons at once, on the tokens."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch

from src.ops.sparse_latents import SparseLatents

Rows = Callable[[], Iterable[SparseLatents | np.ndarray]]
"""Gives the rows of all items in a fixed order, in pieces; asked twice."""


@dataclass(frozen=True)
class TokenCoverage:
    """How much of each row's token lies in the boxes of each label.

    Attributes:
        labels: of the boxes.
        shares: [n_labels, n_rows] float64 from 0 to 1.
        counted: [n_rows] bool: rows with a place in the image; class and register tokens have none.
    """

    labels: tuple[str, ...]
    shares: np.ndarray
    counted: np.ndarray


def maxima_of(rows: Rows) -> np.ndarray:
    """Returns each neuron's (or channel's) largest value over all rows, [n] float32; of a silent neuron 0."""
    found = np.empty(0, np.float32)
    for piece in rows():
        largest = piece.max_over_rows().numpy() if isinstance(piece, SparseLatents) else piece.max(axis=0)
        found = np.maximum(found, largest) if len(found) else largest.astype(np.float32)
    return found


def token_ious(rows: Rows, levels: np.ndarray, coverage: TokenCoverage) -> np.ndarray:
    """Returns how well the masks of all neurons agree with boxes, counted in tokens over all images together.

    The intersection is the covered area of the tokens above the level, the union the area of those tokens and of the
    boxes. Images without a box of the label count too: tokens above the level there enlarge the union.

    Args:
        rows: latents or activations [n, n_neurons] of all images.
        levels: [n_thresholds, n_neurons] what a token must exceed.
        coverage: of the same rows, in the same order.

    Returns:
        [n_labels, n_thresholds, n_neurons] float64 from 0 to 1.
    """
    shape = len(coverage.labels), *levels.shape
    common, area = np.zeros(shape), np.zeros(levels.shape)
    start = 0
    for piece in rows():
        n_rows = piece.n_rows if isinstance(piece, SparseLatents) else len(piece)
        shares = coverage.shares[:, start : start + n_rows]
        counted = coverage.counted[start : start + n_rows]
        add = _add_sparse if isinstance(piece, SparseLatents) else _add_dense
        add(piece, levels, shares, counted, common, area)
        start += n_rows
    total = (coverage.shares * coverage.counted).sum(axis=1)[:, None, None]
    union = area[None] + total - common
    return np.divide(common, union, out=np.zeros(shape), where=union > 0)


def _add_sparse(
    piece: SparseLatents,
    levels: np.ndarray,
    shares: np.ndarray,
    counted: np.ndarray,
    common: np.ndarray,
    area: np.ndarray,
) -> None:
    neurons, rows, values = piece.neuron_ids, piece.row_ids, piece.values
    has_place = torch.from_numpy(counted)[rows]
    for number, level in enumerate(levels):
        above = (values > torch.from_numpy(level)[neurons]) & has_place
        ids, of_rows = neurons[above].numpy(), rows[above].numpy()
        area[number] += np.bincount(ids, minlength=len(level))
        for label in range(len(shares)):
            common[label, number] += np.bincount(ids, shares[label, of_rows], minlength=len(level))


def _add_dense(
    piece: np.ndarray,
    levels: np.ndarray,
    shares: np.ndarray,
    counted: np.ndarray,
    common: np.ndarray,
    area: np.ndarray,
) -> None:
    for number, level in enumerate(levels):
        above = ((piece > level) & counted[:, None]).astype(np.float32)
        area[number] += above.sum(axis=0, dtype=np.float64)
        common[:, number] += shares.astype(np.float32) @ above
