"""How well batches mix the slides."""

from collections.abc import Sequence

import numpy as np

_N_DRAWS = 16


def slide_entropy(batches: Sequence[np.ndarray], slide_starts: np.ndarray, n_rows: int) -> float:
    """Returns the mean slide entropy of batches, as a share of that of uniform draws of as many rows.

    The entropy of a batch is -sum_s p_s log2(p_s) bits, p_s the share of its rows that are of slide s. It is compared
    with the mean entropy of 16 seeded draws without replacement, of as many rows as each batch has, out of all rows:
    1 is what a permutation of all rows gives, give or take the spread of a few batches; batches of one slide each have
    0. With one slide there is nothing to mix, and the share is 1.

    Args:
        batches: row numbers [n] each.
        slide_starts: the first row of each slide, ascending.
        n_rows: the number of rows.
    """
    rng = np.random.default_rng(0)
    found = [_entropy(batch, slide_starts) for batch in batches]
    sizes = np.resize([len(batch) for batch in batches], max(_N_DRAWS, len(batches)))
    drawn = [_entropy(rng.choice(n_rows, size, replace=False, shuffle=False), slide_starts) for size in sizes]
    expected = float(np.mean(drawn))
    return float(np.mean(found)) / expected if expected else 1.0


def _entropy(row_ids: np.ndarray, slide_starts: np.ndarray) -> float:
    slides = np.searchsorted(slide_starts, row_ids, side="right")
    shares = np.unique(slides, return_counts=True)[1] / len(row_ids)
    return float(-(shares * np.log2(shares)).sum())
