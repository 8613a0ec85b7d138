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
    steps = gap * np.arange(len(positions))
    # Less its steps, a sequence is far enough apart when it does not fall.
    moved = np.maximum.accumulate(np.asarray(positions, dtype=float)[order] - steps)
    moved = np.minimum(moved, high - gap * (len(positions) - 1))
    # Too many labels for the height: start at the bottom and let the last ones stand above.
    moved += max(low - moved.min(initial=high), 0)
    result = np.empty_like(moved)
    result[order] = moved + steps
    return result
