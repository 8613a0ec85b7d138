"""How well each neuron alone tells each class from the rest: a threshold, and logistic regression, all at once."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np
import pandas as pd
import torch

THRESHOLD_METRICS = ("balanced_accuracy", "f1")
SCORES = (*THRESHOLD_METRICS, "log_loss")
# Values of a chunk of neurons: a megabyte, so that the passes over it stay in the cache.
_CHUNK_VALUES = 1 << 18
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
    rules = np.empty((3, members.shape[1], values.shape[1]))
    for columns, rows in _groups(members):
        is_member = members[rows][:, columns] > 0
        n_members, n_items = is_member.sum(axis=0), len(is_member)
        for column, n in zip(columns, n_members, strict=True):
            if n in (0, n_items):
                raise ValueError(
                    f"Expected items with and without class {column}, got {n} with it of {n_items}: leave it out, or "
                    "use another split."
                )
        fit = partial(_fit_rules, is_member=is_member, metric=metric, l2=1 / n_items if l2 is None else l2)
        rules[:, columns] = _by_chunks(values if rows.all() else values[rows], fit)
    return NeuronProbes(*rules)


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
    rules = np.stack([probes.thresholds, probes.weights, probes.biases])
    for columns, rows in _groups(members):
        if rows.any():
            work = partial(_score_rules, is_member=members[rows][:, columns] > 0)
            found = _by_chunks(values if rows.all() else values[rows], work, rules[:, columns])
            for name, of_columns in zip(SCORES, found, strict=True):
                scores[name][columns] = of_columns
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


def _groups(members: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields columns and the rows that are known of them, bool; those of which all is known go together."""
    known = ~np.isnan(members)
    is_whole = known.all(axis=0)
    for columns in (np.flatnonzero(is_whole), *np.flatnonzero(~is_whole)[:, None]):
        if len(columns):
            yield columns, known[:, columns[0]]


def _by_chunks(values: np.ndarray, work: Callable[..., np.ndarray], rules: np.ndarray | None = None) -> np.ndarray:
    """Applies a function of values [n_chunk, n_items] (and the chunk's rules) to all neurons; joins the results."""
    size = max(1, _CHUNK_VALUES // max(len(values), 1))

    def of_chunk(start: int) -> np.ndarray:
        chunk = np.ascontiguousarray(values[:, start : start + size].T, np.float32)
        return work(chunk) if rules is None else work(chunk, rules=rules[..., start : start + size])

    with ThreadPoolExecutor(torch.get_num_threads()) as pool:  # numpy's loops run without the interpreter's lock
        return np.concatenate(list(pool.map(of_chunk, range(0, values.shape[1], size))), axis=-1)


def _fit_rules(values: np.ndarray, is_member: np.ndarray, metric: str, l2: float) -> np.ndarray:
    """Returns threshold, weight and bias [3, n_classes, n_chunk] of values [n_chunk, n_items]."""
    n_items = len(is_member)
    values, items = _sorted(values)
    # Items on which every neuron of the chunk has its lowest value, 0 of most latents, are one item of their weight.
    n_lowest = int((values == values[:, :1]).sum(axis=1).min())
    values, items = values[:, n_lowest - 1 :], items[:, n_lowest:]
    mean = _mean(values.astype(np.float64), n_lowest)
    scale = np.sqrt(_mean((values - mean[:, None]) ** 2, n_lowest))
    is_constant = values[:, 0] == values[:, -1]
    scale[is_constant] = 1.0
    inputs = ((values - mean[:, None]) / scale[:, None]).astype(np.float32)
    inputs[is_constant] = 0.0
    rules = []
    for of_class in is_member.T:
        n_members = int(of_class.sum())
        counts = np.empty(values.shape, np.int64)  # members among the items of each place
        counts[:, 1:] = of_class[items]
        counts[:, 0] = n_members - counts[:, 1:].sum(axis=1)
        thresholds = _best_thresholds(values, counts, n_members, n_items, metric)
        targets = counts.astype(np.float32)
        targets[:, 0] /= n_lowest
        weight, bias = _fit_logistic(inputs, targets, n_lowest, n_members / n_items, l2)
        weight = np.where(is_constant, 0.0, weight / scale)
        rules.append(np.stack([thresholds, weight, bias - weight * mean]))
    return np.stack(rules, axis=1)


def _sorted(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns values [n_chunk, n_items] ascending, and the items that they are of."""
    bits = (values + np.float32(0)).view(np.uint32)  # -0 becomes 0
    # Floats as whole numbers of the same order above the item's number: these are sorted far faster than places.
    ordered = np.where(bits >> 31, ~bits, bits | np.uint32(1 << 31)).astype(np.uint64)
    keys = np.sort(ordered << np.uint64(32) | np.arange(values.shape[1], dtype=np.uint64), axis=1)
    ordered = (keys >> np.uint64(32)).astype(np.uint32)
    bits = np.where(ordered >> 31, ordered & np.uint32((1 << 31) - 1), ~ordered)
    return bits.view(np.float32), (keys & np.uint64((1 << 32) - 1)).astype(np.int64)


def _mean(values: np.ndarray, n_first: int) -> np.ndarray:
    """Returns the mean of each row, of whose first value there are `n_first`; float64."""
    n_values = n_first - 1 + values.shape[1]
    return (values.sum(axis=1).astype(np.float64) + (n_first - 1.0) * values[:, 0]) / n_values


def _score_rules(values: np.ndarray, rules: np.ndarray, is_member: np.ndarray) -> np.ndarray:
    """Returns the scores [3, n_classes, n_chunk] of rules of that shape on values [n_chunk, n_items]."""
    thresholds, weights, biases = rules
    of_classes = zip(thresholds, weights, biases, is_member.T, strict=True)
    scores = [_score_rule(values, *of_class) for of_class in of_classes]
    return np.stack(scores, axis=1)


def _score_rule(
    values: np.ndarray, threshold: np.ndarray, weight: np.ndarray, bias: np.ndarray, is_member: np.ndarray
) -> np.ndarray:
    n_members, n_items = int(is_member.sum()), len(is_member)
    is_above = values > threshold[:, None]
    n_above, hits = np.count_nonzero(is_above, axis=1), np.count_nonzero(is_above & is_member, axis=1)
    undefined = np.full(len(values), np.nan)
    f1 = 2 * hits / (n_above + n_members) if n_members else undefined
    balanced = undefined
    if 0 < n_members < n_items:
        balanced = (hits / n_members + 1 - (n_above - hits) / (n_items - n_members)) / 2
    logits = values * weight.astype(np.float32)[:, None] + bias.astype(np.float32)[:, None]
    wrongly = np.where(is_member, -logits, logits)
    losses = np.maximum(wrongly, 0) + np.log(1 + np.exp(-np.abs(wrongly)))
    return np.stack([balanced, f1, losses.mean(axis=1, dtype=np.float64)])


def _best_thresholds(values: np.ndarray, counts: np.ndarray, n_members: int, n_items: int, metric: str) -> np.ndarray:
    """Returns the best threshold of each neuron [n_chunk] float64, given ascending values and the members at each."""
    last = values.shape[1] - 1
    hits, n_above = n_members - counts.cumsum(axis=1), np.arange(last, -1, -1)  # above each place
    scores = _score(hits, n_above, n_members, n_items, metric)
    scores[:, :-1][values[:, 1:] == values[:, :-1]] = -np.inf
    best = scores.argmax(axis=1)[:, None]
    low, high = (np.take_along_axis(values, at, 1)[:, 0] for at in (best, np.minimum(best + 1, last)))
    of_all = _score(np.array(n_members), np.array(n_items), n_members, n_items, metric)
    is_better = np.take_along_axis(scores, best, 1)[:, 0] > of_all
    return np.where(is_better, (low.astype(np.float64) + high) / 2, -np.inf)


def _score(hits: np.ndarray, n_above: np.ndarray, n_members: int, n_items: int, metric: str) -> np.ndarray:
    """Returns F1, or a whole number that grows with the balanced accuracy, so that equal ones are equal."""
    if metric == "f1":
        return 2 * hits / (n_above + n_members)
    return (hits * n_items - n_above * n_members).astype(np.float64)


def _fit_logistic(
    inputs: np.ndarray, targets: np.ndarray, n_first: int, share: float, l2: float
) -> tuple[np.ndarray, np.ndarray]:
    """Returns weight and bias of the regression on each neuron's standardised values, both [n_chunk] float64."""
    rule = np.stack([np.zeros(len(inputs)), np.full(len(inputs), np.log(share / (1 - share)))])
    loss, slope, step = _newton(inputs, targets, rule, n_first, l2)
    active = np.flatnonzero(slope > _TOLERANCE)
    for _ in range(_MAX_STEPS):
        if not len(active):
            break
        tried = rule[:, active] + step[:, active]
        new_loss, new_slope, new_step = _newton(inputs[active], targets[active], tried, n_first, l2)
        descends = new_loss <= loss[active] + _TOLERANCE
        moved = active[descends]
        rule[:, moved], loss[moved], slope[moved] = tried[:, descends], new_loss[descends], new_slope[descends]
        step[:, active] = np.where(descends, new_step, step[:, active] / 2)
        active = active[slope[active] > _TOLERANCE]
    return rule[0], rule[1]


def _newton(
    inputs: np.ndarray, targets: np.ndarray, rule: np.ndarray, n_first: int, l2: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the loss of each neuron's regression, its largest slope [n_chunk], and Newton's step [2, n_chunk]."""
    weight, bias = rule
    logits = inputs * weight.astype(np.float32)[:, None] + bias.astype(np.float32)[:, None]
    decayed = np.exp(-np.abs(logits))
    probability = np.where(logits > 0, 1, decayed) / (1 + decayed)
    loss = _mean(np.maximum(logits, 0) - logits * targets + np.log(1 + decayed), n_first) + l2 / 2 * weight**2
    error, spread = probability - targets, probability * (1 - probability)
    slopes = np.stack([_mean(error * inputs, n_first) + l2 * weight, _mean(error, n_first)])
    tilted = spread * inputs
    # The ridge keeps the matrix invertible where a neuron is constant or splits the classes.
    ww, wb, bb = _mean(tilted * inputs, n_first) + l2 + 1e-9, _mean(tilted, n_first), _mean(spread, n_first) + 1e-9
    determinant = ww * bb - wb**2
    step = np.stack([wb * slopes[1] - bb * slopes[0], wb * slopes[0] - ww * slopes[1]]) / determinant
    return loss, np.abs(slopes).max(0), step
