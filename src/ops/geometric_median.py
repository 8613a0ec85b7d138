"""The point with the least sum of distances to given points."""

import torch
from jaxtyping import Float
from torch import Tensor

# Of the reference systems: their largest number of passes; the relative change below which nothing moves any more.
_N_ITERATIONS = 100
_LEAST_DISTANCE = 1e-6


@torch.no_grad()
def geometric_median(points: Float[Tensor, " n_points *point"]) -> Float[Tensor, " *point"]:
    """Finds the geometric median by Weiszfeld's iteration from the mean (Weiszfeld 1937), in float64.

    At most 100 iterations (dictionary_learning, PatchSAE), fewer when the median has stopped moving by more than a
    1e-12th of the points' spread. A distance below 1e-6 counts as 1e-6 (PatchSAE), so a point on the median does not
    divide by zero.

    Args:
        points: [n_points, ...]; all further dimensions make one point (PatchSAE's image blocks [n_images, T, d_in]).

    Returns:
        The median, of the shape of a point.

    Raises:
        ValueError: when there are no points.
    """
    if points.shape[0] == 0:
        raise ValueError("Expected points to find the geometric median of, got none.")
    flat = points.reshape(points.shape[0], -1).double()
    median = flat.mean(0)
    tolerance = 1e-12 * float(torch.linalg.vector_norm(flat - median, dim=1).mean())
    for _ in range(_N_ITERATIONS):
        weights = torch.linalg.vector_norm(flat - median, dim=1).clamp_min(_LEAST_DISTANCE).reciprocal()
        moved = weights @ flat / weights.sum()
        step = float(torch.linalg.vector_norm(moved - median))
        median = moved
        if step <= tolerance:
            break
    return median.to(points.dtype).reshape(points.shape[1:])
