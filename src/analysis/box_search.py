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
        for number, level in enumerate(levels):
            if isinstance(piece, SparseLatents):
                added = _sum_sparse(piece, level, shares, counted)
            else:
                added = _sum_dense(piece, level, shares, counted)
            area[number] += added[0]
            common[:, number] += added[1]
        start += n_rows
    total = (coverage.shares * coverage.counted).sum(axis=1)[:, None, None]
    union = area[None] + total - common
    return np.divide(common, union, out=np.zeros(shape), where=union > 0)


def _sum_sparse(
    piece: SparseLatents, level: np.ndarray, shares: np.ndarray, counted: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Returns how many tokens are above each level [n_neurons], and their covered area [n_labels, n_neurons]."""
    above = (piece.values > piece.per_neuron(torch.from_numpy(level))) & torch.from_numpy(counted)[piece.row_ids]
    ids, of_rows = piece.neuron_ids[above].numpy(), piece.row_ids[above].numpy()
    covered = [np.bincount(ids, of_label[of_rows], minlength=len(level)) for of_label in shares]
    return np.bincount(ids, minlength=len(level)), np.stack(covered)


def _sum_dense(
    piece: np.ndarray, level: np.ndarray, shares: np.ndarray, counted: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the same of dense values [n_rows, n_neurons]."""
    above = ((piece > level) & counted[:, None]).astype(np.float32)
    return above.sum(axis=0, dtype=np.float64), shares.astype(np.float32) @ above
