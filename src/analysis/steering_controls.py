"""Random sets of neurons to compare a chosen set with: as many of them, with as much activation on the class."""

import numpy as np

_BISECTIONS = 50
# Of the mass; and how often a neuron is exchanged at most to get there, for one of so many that fit best.
_TOLERANCE, _MOST_SWAPS, _CANDIDATES = 0.02, 100, 10


def draw_matched(chosen: np.ndarray, mass: np.ndarray, n_draws: int, rng: np.random.Generator) -> np.ndarray:
    """Draws sets of neurons of the size and the activation mass of a chosen set.

    A set of k is drawn without replacement with weights `exp(t * mass)`: the k largest of `t * mass + Gumbel noise`
    (W. Kool, H. van Hoof and M. Welling, "Stochastic beams and where to find them", ICML 2019). For given noise its
    mass grows with t, and t is bisected until it meets that of the chosen set; t = 0 would draw uniformly. What is
    missing to 2 % of the mass is made up by exchanging single neurons. Neurons are drawn among those that are not
    chosen; where these cannot reach the mass, among all, so that a control then shares neurons with the chosen set.

    Args:
        chosen: [k] distinct neuron ids.
        mass: [n_latents], each neuron's mean activation on the class; not negative.
        n_draws: how many sets.
        rng: of the draws.

    Returns:
        Neuron ids [n_draws, k] int64.
    """
    k, target = len(chosen), float(mass[chosen].sum())
    pool = np.setdiff1d(np.arange(len(mass)), chosen)
    if len(pool) < k or np.sort(mass[pool])[len(pool) - k :].sum() < target:
        pool = np.arange(len(mass))
    if k in (0, len(pool)):
        return np.tile(pool[:k], (n_draws, 1))
    drawn = (_approach(_draw(mass[pool], k, target, rng), mass[pool], target, rng) for _ in range(n_draws))
    return np.stack([pool[ids] for ids in drawn])


def _draw(mass: np.ndarray, k: int, target: float, rng: np.random.Generator) -> np.ndarray:
    """Returns k positions in `mass`, fewer than there are, with a sum near the target."""
    noise, unit = rng.gumbel(size=len(mass)), mass.max() or 1.0

    def heaviest(t: float) -> np.ndarray:
        # Its weight runs through all numbers while t runs from -1 to 1.
        return np.argpartition(-(t / (1 - abs(t)) * mass / unit + noise), k)[:k]

    low, high = -1 + 1e-9, 1 - 1e-9
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if mass[heaviest(middle)].sum() < target else (low, middle)
    return min((heaviest(low), heaviest(high)), key=lambda ids: abs(mass[ids].sum() - target))


def _approach(ids: np.ndarray, mass: np.ndarray, target: float, rng: np.random.Generator) -> np.ndarray:
    """Exchanges neurons of a set until its mass is within the tolerance, or no exchange helps."""
    for _ in range(_MOST_SWAPS):
        missing = target - mass[ids].sum()
        if abs(missing) <= _TOLERANCE * target:
            break
        place = rng.integers(len(ids))
        others = np.setdiff1d(np.arange(len(mass)), ids)
        distance = np.abs(mass[others] - mass[ids[place]] - missing)
        best = np.argsort(distance, kind="stable")[:_CANDIDATES]
        taken = rng.choice(best)
        if distance[taken] < abs(missing):
            ids[place] = others[taken]
    return ids
