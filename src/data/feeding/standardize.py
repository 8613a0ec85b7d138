"""Per-feature mean and scale, fitted on the slides of one fold and never baked into the stored activations."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from src.stores.activations.store import ActivationStore

_CHUNK_ROWS = 16384
# A scale is at least this share of the typical one; see `fit_standardizer`.
_LEAST_SHARE = 0.01


@dataclass(frozen=True)
class Standardizer:
    """Shifts and scales features: `(activations - mean) / scale`, with mean and scale [d_in] float32."""

    mean: np.ndarray
    scale: np.ndarray

    def __call__(self, activations: np.ndarray) -> np.ndarray:
        """Standardises activations [..., d_in]."""
        return (activations - self.mean) / self.scale


def fit_standardizer(store: ActivationStore, item_ids: Iterable[str]) -> Standardizer:
    """Fits mean and population standard deviation per feature, as scikit-learn's StandardScaler does.

    Sums run in float64 over chunks of rows, and the chunks' means and squared deviations are merged (Chan, Golub and
    LeVeque, "Updating formulae and a pairwise algorithm for computing sample variances", 1979), which keeps features
    with a mean far from zero exact. A feature that is constant gets scale 1.

    A feature that is nearly constant on the train rows gets the larger of two floors as its scale, where its own
    deviation is below: the rounding of its values (machine epsilon of the stored type times its mean), and 1 % of the
    typical deviation, the median of those of the features that vary. Without, held-out rows in which it is alive are
    multiplied without bound. Among n rows none is further from their mean than sqrt(n - 1) deviations (Samuelson, "How
    deviant can you be?", JASA 63, 1968): with 1 %, a held-out value that is a typical deviation away gets at most 100,
    what a train value among 10,000 rows can get. All other features get what scikit-learn gives.

    Args:
        store: packed activations.
        item_ids: the slides to fit on: the train slides of a fold.

    Raises:
        ValueError: when there are no rows.
    """
    n_rows, epsilon = 0, 0.0
    mean = np.zeros(store.d_in)
    squares = np.zeros(store.d_in)
    low, high = np.full(store.d_in, np.inf), np.full(store.d_in, -np.inf)
    for start, stop in store.row_ranges(item_ids):
        for first in range(start, stop, _CHUNK_ROWS):
            stored = store.read(first, min(first + _CHUNK_ROWS, stop))
            epsilon, chunk = float(np.finfo(stored.dtype).eps), stored.astype(np.float64)
            chunk_mean = chunk.mean(axis=0)
            total = n_rows + len(chunk)
            delta = chunk_mean - mean
            squares += ((chunk - chunk_mean) ** 2).sum(axis=0) + delta**2 * (n_rows * len(chunk) / total)
            mean += delta * (len(chunk) / total)
            low, high = np.minimum(low, chunk.min(axis=0)), np.maximum(high, chunk.max(axis=0))
            n_rows = total
    if n_rows == 0:
        raise ValueError(f"Expected rows to standardise on, got none: no slide of {store.path} was named.")
    # Rounding leaves a constant feature a deviation of 1e-17 or so, hence the extremes and not the deviation.
    deviation, is_constant = np.sqrt(squares / n_rows), low == high
    typical = float(np.median(deviation[~is_constant])) if not is_constant.all() else 0.0
    floor = np.maximum(_LEAST_SHARE * typical, epsilon * np.abs(mean))
    scale = np.where(is_constant, 1.0, np.maximum(deviation, floor))
    return Standardizer(mean.astype(np.float32), scale.astype(np.float32))
