"""How well each neuron alone tells each class from the rest: a threshold, and logistic regression, all at once."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np
import pandas as pd
import torch

THRESHOLD_METRICS = ("balanced_accuracy", "f1")
SCORES = (*THRESHOLD_METRICS, "log_loss")
# Values of a chunk of neurons: a few megabytes, so that the passes over it stay in the cache.
_CHUNK_VALUES = 1 << 19
_MAX_STEPS = 100
# Of the mean loss of standardised values in float32, whose rounding is a hundredth of it.
_TOLERANCE = 1e-6


@dataclass(frozen=True)
class NeuronProbes:
    """Rules of one neuron for one class against the rest; every array is [n_classes, n_neurons] float64.

    Attributes:
        thresholds: an item is of the class where the neuron is above; -inf: always.
        weights: of the logistic regression on the value itself; 0 of neurons that are constant.
        biases: its intercepts.
    """

    thresholds: np.ndarray
    weights: np.ndarray
    biases: np.ndarray


def fit_neuron_probes(
    values: np.ndarray, members: np.ndarray, metric: str = "balanced_accuracy", l2: float | None = None
) -> NeuronProbes:
    """Fits a threshold and a logistic regression for every neuron and class.

    The threshold is the best of all: values are sorted, and what lies above every gap is counted. An item is of the
    class where the neuron is above, never where it is below: a neuron that is silent says little. Of equally good
    thresholds the lowest is taken, midway between two values. The regression is on standardised values with the penalty
    `l2 / 2 w^2` beside the mean loss, fitted by Newton's steps (McCullagh and Nelder, "Generalized linear models",
    1989, section 2.5) for all neurons together, halved where the loss would grow.

    Args:
        values: [n_items, n_neurons] float32, finite.
        members: [n_items, n_classes] float: 1 of the class, 0 not, NaN where nobody knows.
        metric: what a threshold is best by: `balanced_accuracy` or `f1`.
        l2: see above; None: one over the number of items, which is scikit-learn's C = 1.

    Raises:
        ValueError: when the metric is unknown, or a class has no item, or nothing else.
    """
    if metric not in THRESHOLD_METRICS:
        raise ValueError(f"Expected a metric among {', '.join(THRESHOLD_METRICS)}, got {metric!r}.")
    results = []
    for index, column in enumerate(members.T):
        known = ~np.isnan(column)
        is_member = column[known] > 0
        if is_member.all() or not is_member.any():
            raise ValueError(
                f"Expected items with and without class {index}, got {is_member.sum()} with it of {len(is_member)}: "
                "leave it out, or use another split."
            )
        of_class = values if known.all() else values[known]
        strength = 1 / len(is_member) if l2 is None else l2
        fit = partial(_fit_rules, is_member=is_member, metric=metric, l2=strength)
        results.append(_by_chunks(of_class, fit))
    thresholds, weights, biases = np.stack(results, axis=1)
    return NeuronProbes(thresholds, weights, biases)


def score_neuron_probes(probes: NeuronProbes, values: np.ndarray, members: np.ndarray) -> dict[str, np.ndarray]:
    """Scores the rules on items.

    Args:
        probes: of all neurons.
        values: [n_items, n_neurons].
        members: as for `fit_neuron_probes`.

    Returns:
        `balanced_accuracy` and `f1` of the thresholds, `log_loss` of the regressions (natural logarithm): each
        [n_classes, n_neurons] float64, NaN where the items do not define it.
    """
    scores = {name: np.full(probes.thresholds.shape, np.nan) for name in SCORES}
    for index, column in enumerate(members.T):
        known = ~np.isnan(column)
        is_member = column[known] > 0
        if not len(is_member):
            continue
        rules = np.stack([probes.thresholds[index], probes.weights[index], probes.biases[index]])
        found = _by_chunks(values if known.all() else values[known], partial(_score_rules, is_member=is_member), rules)
        for name, of_class in zip(SCORES, found, strict=True):
            scores[name][index] = of_class
    return scores


def tabulate_neuron_probes(
    probes: NeuronProbes, classes: Sequence[str], scores: dict[str, dict[str, np.ndarray]]
) -> pd.DataFrame:
    """Returns a row a class and neuron: class, neuron_id, threshold, weight, bias, and `<split>_<score>`.

    Args:
        probes: of all neurons.
        classes: their names.
        scores: of `score_neuron_probes`, by split.
    """
    n_neurons = probes.thresholds.shape[1]
    columns = {
        "class": np.repeat(np.array(classes, dtype=object), n_neurons),
        "neuron_id": np.tile(np.arange(n_neurons), len(classes)),
        "threshold": probes.thresholds.ravel(),
        "weight": probes.weights.ravel(),
        "bias": probes.biases.ravel(),
    }
    of_splits = {f"{split}_{name}": array.ravel() for split, by in scores.items() for name, array in by.items()}
    return pd.DataFrame(columns | of_splits)


def _by_chunks(values: np.ndarray, work: Callable[..., np.ndarray], rules: np.ndarray | None = None) -> np.ndarray:
    """Applies a function of values [n_chunk, n_items] (and the chunk's rules) to all neurons; joins the results."""
    size = max(1, _CHUNK_VALUES // max(len(values), 1))

    def of_chunk(start: int) -> np.ndarray:
        chunk = np.ascontiguousarray(values[:, start : start + size].T, np.float32)
        return work(chunk) if rules is None else work(chunk, rules=rules[:, start : start + size])

    with ThreadPoolExecutor(torch.get_num_threads()) as pool:  # numpy's loops run without the interpreter's lock
        return np.concatenate(list(pool.map(of_chunk, range(0, values.shape[1], size))), axis=-1)


def _fit_rules(values: np.ndarray, is_member: np.ndarray, metric: str, l2: float) -> np.ndarray:
    return np.stack([_best_thresholds(values, is_member, metric), *_fit_logistic(values, is_member, l2)])


def _score_rules(values: np.ndarray, rules: np.ndarray, is_member: np.ndarray) -> np.ndarray:
    threshold, weight, bias = rules[:, :, None]
    n_members, n_items = is_member.sum(), len(is_member)
    is_above = values > threshold
    n_above, hits = is_above.sum(1), is_above[:, is_member].sum(1)
    undefined = np.full(len(values), np.nan)
    f1 = 2 * hits / (n_above + n_members) if n_members else undefined
    balanced = undefined
    if 0 < n_members < n_items:
        balanced = (hits / n_members + 1 - (n_above - hits) / (n_items - n_members)) / 2
    logits = values * weight + bias
    return np.stack([balanced, f1, np.logaddexp(0, np.where(is_member, -logits, logits)).mean(1)])


def _best_thresholds(values: np.ndarray, is_member: np.ndarray, metric: str) -> np.ndarray:
    """Returns the best threshold of each neuron [n_chunk] float64."""
    n_items, n_members = len(is_member), int(is_member.sum())
    bits = (values + np.float32(0)).view(np.uint32)  # -0 becomes 0
    # Floats as whole numbers of the same order, which are sorted far faster than places; the last bit is the label.
    ordered = np.where(bits >> 31, ~bits, bits | np.uint32(1 << 31)).astype(np.uint64)
    keys = np.sort(ordered << np.uint64(1) | is_member.astype(np.uint64), axis=1)
    ordered = (keys >> np.uint64(1)).astype(np.uint32)
    # What a threshold right above each place gives.
    hits = n_members - np.cumsum(keys & np.uint64(1), axis=1, dtype=np.int64)
    n_above = np.arange(n_items - 1, -1, -1)
    scores = _score(hits, n_above, n_members, n_items, metric)
    scores[:, :-1][ordered[:, 1:] == ordered[:, :-1]] = -np.inf
    best = scores.argmax(axis=1)[:, None]
    low, high = (np.take_along_axis(ordered, at, 1)[:, 0] for at in (best, np.minimum(best + 1, n_items - 1)))
    of_all = _score(np.array(n_members), np.array(n_items), n_members, n_items, metric)
    is_better = np.take_along_axis(scores, best, 1)[:, 0] > of_all
    return np.where(is_better, (_floats(low) + _floats(high)) / 2, -np.inf)


def _score(hits: np.ndarray, n_above: np.ndarray, n_members: int, n_items: int, metric: str) -> np.ndarray:
    """Returns F1, or a whole number that grows with the balanced accuracy, so that equal ones are equal."""
    if metric == "f1":
        return 2 * hits / (n_above + n_members)
    return (hits * n_items - n_above * n_members).astype(np.float64)


def _floats(ordered: np.ndarray) -> np.ndarray:
    bits = np.where(ordered >> 31, ordered & np.uint32((1 << 31) - 1), ~ordered)
    return bits.view(np.float32).astype(np.float64)


def _fit_logistic(values: np.ndarray, is_member: np.ndarray, l2: float) -> tuple[np.ndarray, np.ndarray]:
    """Returns weight and bias of the regression on each neuron, both [n_chunk] float64."""
    mean, scale = values.mean(axis=1, dtype=np.float64), values.std(axis=1, dtype=np.float64)
    is_constant = values.max(axis=1) == values.min(axis=1)
    scale[is_constant] = 1.0
    inputs = (values - mean.astype(np.float32)[:, None]) / scale.astype(np.float32)[:, None]
    inputs[is_constant] = 0.0
    targets, share = is_member.astype(np.float32), is_member.mean()
    rule = np.stack([np.zeros(len(values)), np.full(len(values), np.log(share / (1 - share)))])
    loss, slope, step = _newton(inputs, targets, rule, l2)
    active = np.flatnonzero(slope > _TOLERANCE)
    for _ in range(_MAX_STEPS):
        if not len(active):
            break
        tried = rule[:, active] + step[:, active]
        new_loss, new_slope, new_step = _newton(inputs[active], targets, tried, l2)
        descends = new_loss <= loss[active] + _TOLERANCE
        moved = active[descends]
        rule[:, moved], loss[moved], slope[moved] = tried[:, descends], new_loss[descends], new_slope[descends]
        step[:, active] = np.where(descends, new_step, step[:, active] / 2)
        active = active[slope[active] > _TOLERANCE]
    weight = np.where(is_constant, 0.0, rule[0] / scale)
    return weight, rule[1] - weight * mean


def _newton(
    inputs: np.ndarray, targets: np.ndarray, rule: np.ndarray, l2: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the loss of each neuron's regression, its largest slope [n_chunk], and Newton's step [2, n_chunk]."""
    weight, bias = rule
    logits = inputs * weight.astype(np.float32)[:, None] + bias.astype(np.float32)[:, None]
    decayed = np.exp(-np.abs(logits))
    probability = np.where(logits > 0, 1, decayed) / (1 + decayed)
    loss = (np.maximum(logits, 0) - logits * targets + np.log(1 + decayed)).mean(1) + l2 / 2 * weight**2
    error, spread = probability - targets, probability * (1 - probability)
    slopes = np.stack([(error * inputs).mean(1) + l2 * weight, error.mean(1)])
    tilted = spread * inputs
    # The ridge keeps the matrix invertible where a neuron is constant or splits the classes.
    ww, wb, bb = (tilted * inputs).mean(1) + l2 + 1e-9, tilted.mean(1, dtype=np.float64), spread.mean(1) + 1e-9
    determinant = ww * bb - wb**2
    step = np.stack([wb * slopes[1] - bb * slopes[0], wb * slopes[0] - ww * slopes[1]]) / determinant
    return loss, np.abs(slopes).max(0), step
