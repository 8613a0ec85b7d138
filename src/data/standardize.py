"""Per-feature mean and scale, fitted on the slides of one fold and never baked into the stored activations."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from src.data.activation_store import ActivationStore

_CHUNK_ROWS = 16384
RELATIVE_FLOOR = 0.0


@dataclass(frozen=True)
class Standardizer:
    """Shifts and scales features: `(activations - mean) / scale`, with mean and scale [d_in] float32."""

    mean: np.ndarray
    scale: np.ndarray

    def __call__(self, activations: np.ndarray) -> np.ndarray:
        """Standardises activations [..., d_in]."""
        return (activations - self.mean) / self.scale


def fit_standardizer(store: ActivationStore, slide_ids: Iterable[str]) -> Standardizer:
    """Fits mean and population standard deviation per feature, as scikit-learn's StandardScaler does.

    Sums run in float64 over chunks of rows, and the chunks' means and squared deviations are merged (Chan, Golub and
    LeVeque, "Updating formulae and a pairwise algorithm for computing sample variances", 1979), which keeps features
    with a mean far from zero exact. A feature that is constant gets scale 1.

    Args:
        store: packed activations.
        slide_ids: the slides to fit on: the train slides of a fold.

    Raises:
        ValueError: when there are no rows.
    """
    n_rows = 0
    mean = np.zeros(store.d_in)
    squares = np.zeros(store.d_in)
    low, high = np.full(store.d_in, np.inf), np.full(store.d_in, -np.inf)
    for start, stop in store.row_ranges(slide_ids):
        for first in range(start, stop, _CHUNK_ROWS):
            chunk = store.read(first, min(first + _CHUNK_ROWS, stop)).astype(np.float64)
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
    deviation = np.sqrt(squares / n_rows)
    is_constant = low == high
    typical = float(np.median(deviation[~is_constant])) if not is_constant.all() else 1.0
    scale = np.where(is_constant, 1.0, np.maximum(deviation, RELATIVE_FLOOR * typical))
    return Standardizer(mean.astype(np.float32), scale.astype(np.float32))
