"""Time of the rules of single neurons, a threshold and logistic regression, beside a loop of scikit-learn.

Run: python -m experiments.benchmarks.neuron_probes [--quick]
"""

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_curve
from sklearn.preprocessing import StandardScaler

from src.analysis.neuron_probes import fit_neuron_probes, score_neuron_probes

N_ITEMS, N_NEURONS, N_LOOPED, N_REPEATS = 20_000, 4096, 16, 3
LIMIT = 10.0


class Case(NamedTuple):
    """What is told by each neuron: classes, from values of which a share is not 0."""

    name: str
    density: float
    n_classes: int


CASES = (Case("dense", 1.0, 1), Case("5 % not zero", 0.05, 1), Case("the same, ten classes", 0.05, 10))


def make_values(n_items: int, n_neurons: int, density: float, n_classes: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Returns latents [n_items, n_neurons] and which items are of which class [n_items, n_classes]."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, max(n_classes, 5), n_items)
    values = rng.standard_exponential((n_items, n_neurons), dtype=np.float32)
    values *= 1 + rng.random(n_neurons, dtype=np.float32) * (labels == 0)[:, None]
    values *= rng.random((n_items, n_neurons), dtype=np.float32) < density
    return values, (labels[:, None] == np.arange(n_classes)).astype(np.float32)


def loop(values: np.ndarray, is_member: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns best balanced accuracies and weights, neuron by neuron, as scikit-learn finds them."""
    scores, weights = [], []
    for column in values.T:
        fpr, tpr, _ = roc_curve(is_member, column, drop_intermediate=False)
        scores.append(((1 + tpr - fpr) / 2).max())
        scaler: Any = StandardScaler().fit(column[:, None].astype(np.float64))
        model = LogisticRegression(tol=1e-8).fit(scaler.transform(column[:, None].astype(np.float64)), is_member)
        weights.append(model.coef_[0, 0] / scaler.scale_[0])
    return np.array(scores), np.array(weights)


def measure(work: Callable[[], object], n_repeats: int = 1) -> tuple[float, float]:
    """Returns the medians of the seconds and CPU seconds of a piece of work."""
    times = []
    for _ in range(n_repeats):
        started, cpu_started = time.perf_counter(), time.process_time()
        work()
        times.append((time.perf_counter() - started, time.process_time() - cpu_started))
    seconds, cpu_seconds = zip(*times, strict=True)
    return statistics.median(seconds), statistics.median(cpu_seconds)


def run(case: Case, n_neurons: int, n_repeats: int) -> str:
    """Returns a line of the table."""
    values, members = make_values(N_ITEMS, n_neurons, case.density, case.n_classes)
    probes = fit_neuron_probes(values, members)
    fit, cpu = measure(partial(fit_neuron_probes, values, members), n_repeats)
    score, _ = measure(partial(score_neuron_probes, probes, values, members), n_repeats)
    first, scaled = values[:, :N_LOOPED], case.n_classes * n_neurons / N_LOOPED
    looped, its_cpu = (one * scaled for one in measure(partial(loop, first, members[:, 0])))
    best, weights = loop(first, members[:, 0])
    balanced = score_neuron_probes(probes, values, members)["balanced_accuracy"][0, :N_LOOPED]
    off = np.abs(balanced - best).max(), np.abs(probes.weights[0, :N_LOOPED] / weights - 1).max()
    times = f"{fit:14.2f}{cpu:14.2f}{score:14.2f}{looped:14.0f}{its_cpu:14.0f}{its_cpu / cpu:14.0f}"
    return f"{times}{off[0]:14.1e}{off[1]:14.1e}"


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true", help="a tenth of the neurons, once")
    is_quick = parser.parse_args().quick
    n_neurons, n_repeats = (N_NEURONS // 10, 1) if is_quick else (N_NEURONS, N_REPEATS)
    print(f"{n_neurons} neurons, {N_ITEMS} items, {torch.get_num_threads()} threads; limit {LIMIT:g} s")
    heads = ("fit", "CPU", "score", "scikit-learn", "its CPU", "CPU ratio", "accuracy off", "weight off")
    print(f"{'':22}" + "".join(f"{head:>14}" for head in heads))
    for case in CASES:
        print(f"{case.name:22}{run(case, n_neurons, n_repeats)}", flush=True)
    print(
        f"Seconds. scikit-learn: roc_curve and LogisticRegression of {N_LOOPED} neurons and a class, scaled up to all."
    )
    print("Off: by how much the best balanced accuracy (absolute) and weight (relative) of these differ from its.")


if __name__ == "__main__":
    main()
