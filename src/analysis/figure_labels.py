"""Where labels go so that they do not overlap."""

import numpy as np


def spread(positions: np.ndarray, gap: float, low: float, high: float) -> np.ndarray:
    """Moves positions apart as little as needed, in one pass each way, keeping their order.

    Args:
        positions: where labels would best be, [n].
        gap: the least distance between two.
        low: no label below this.
        high: no label above this, as long as all fit between.

    Returns:
        Positions in the order given, [n].
    """
    order = np.argsort(positions, kind="stable")
    moved = np.asarray(positions, dtype=float)[order]
    for index in range(1, len(moved)):
        moved[index] = max(moved[index], moved[index - 1] + gap)
    limit = high
    for index in reversed(range(len(moved))):
        moved[index] = min(moved[index], limit)
        limit = moved[index] - gap
    # Too many labels for the height: start at the bottom and let the last ones stand above.
    if len(moved) and moved[0] < low:
        moved += low - moved[0]
    result = np.empty_like(moved)
    result[order] = moved
    return result
