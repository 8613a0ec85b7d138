"""Points that a data set's activations lie around."""

import logging
from collections.abc import Callable

import numpy as np
from sklearn.cluster import MiniBatchKMeans

_LOGGER = logging.getLogger(__name__)
# Rows the centres are found on; more move them little and cost time in proportion.
_MOST_ROWS = 100_000
_BATCH_ROWS = 4096


def kmeans_centres(
    gather: Callable[[np.ndarray], np.ndarray], rows: np.ndarray, n_centres: int, seed: int
) -> np.ndarray:
    """Finds k-means centres of activations (mini-batch k-means, Sculley 2010), on at most 100,000 of the rows.

    Args:
        gather: returns activations [n, d_in] by the ids of their rows [n].
        rows: ids of the rows to use.
        n_centres: number of centres.
        seed: of the sample of rows and of k-means.

    Returns:
        [n_centres, d_in] float32.

    Raises:
        ValueError: when there are fewer of these rows than centres.
    """
    if len(rows) > _MOST_ROWS:
        rows = np.sort(np.random.default_rng(seed).choice(rows, _MOST_ROWS, replace=False))
    if len(rows) < n_centres:
        raise ValueError(
            f"Expected at least {n_centres} train rows for as many k-means centres, got {len(rows)}: set sae.n_points "
            "lower."
        )
    _LOGGER.info("Finding %d k-means centres of %d train rows.", n_centres, len(rows))
    # One start, as sklearn's default is for k-means++.
    kmeans = MiniBatchKMeans(n_centres, batch_size=max(_BATCH_ROWS, n_centres), random_state=seed, max_iter=20)
    kmeans.fit(gather(rows))
    return np.asarray(kmeans.cluster_centers_, dtype=np.float32)
