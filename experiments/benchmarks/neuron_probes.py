"""Time of the rules of single neurons, a threshold and logistic regression, beside a loop of scikit-learn.

Run: python -m experiments.benchmarks.neuron_probes [--quick]
"""

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_curve
from sklearn.preprocessing import StandardScaler

from src.analysis.neuron_probes import fit_neuron_probes, score_neuron_probes

N_ITEMS, N_NEURONS, N_LOOPED, N_REPEATS = 20_000, 4096, 16, 3
LIMIT = 10.0


def make_values(n_items: int, n_neurons: int, density: float) -> tuple[np.ndarray, np.ndarray]:
    """Returns latents [n_items, n_neurons], of which a share is not 0, and whether items are of a class [n_items, 1]."""
    rng = np.random.default_rng(0)
    is_member = rng.random(n_items) < 0.2
    values = rng.standard_exponential((n_items, n_neurons), dtype=np.float32)
    values *= 1 + rng.random(n_neurons, dtype=np.float32) * is_member[:, None]
    values *= rng.random((n_items, n_neurons), dtype=np.float32) < density
    return values, is_member[:, None].astype(np.float32)


def loop(values: np.ndarray, is_member: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns best balanced accuracies and logits' slopes, neuron by neuron, as scikit-learn finds them."""
    scores, weights = [], []
    for column in values.T:
        fpr, tpr, _ = roc_curve(is_member, column, drop_intermediate=False)
        scores.append(((1 + tpr - fpr) / 2).max())
        scaler = StandardScaler().fit(column[:, None].astype(np.float64))
        model = LogisticRegression(tol=1e-8).fit(scaler.transform(column[:, None].astype(np.float64)), is_member)
        weights.append(model.coef_[0, 0] / scaler.scale_[0])
    return np.array(scores), np.array(weights)


def seconds(work: Callable[[], object], n_repeats: int) -> float:
    """Returns the median time of a piece of work."""
    times = []
    for _ in range(n_repeats):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true", help="a tenth of the neurons, once")
    is_quick = parser.parse_args().quick
    n_neurons, n_repeats = (N_NEURONS // 10, 1) if is_quick else (N_NEURONS, N_REPEATS)
    print(f"{n_neurons} neurons, {N_ITEMS} items, one class, {torch.get_num_threads()} threads; limit {LIMIT:g} s")
    heads = ("fit", "score", "scikit-learn", "times", "accuracy off", "weight off")
    print(f"{'':16}" + "".join(f"{head:>14}" for head in heads))
    for name, density in (("dense", 1.0), ("5 % not zero", 0.05)):
        values, members = make_values(N_ITEMS, n_neurons, density)
        probes = fit_neuron_probes(values, members)
        fit = seconds(lambda values=values, members=members: fit_neuron_probes(values, members), n_repeats)
        score = seconds(
            lambda probes=probes, values=values, members=members: score_neuron_probes(probes, values, members), n_repeats
        )
        started = time.perf_counter()
        best, weights = loop(values[:, :N_LOOPED], members[:, 0])
        looped = (time.perf_counter() - started) * n_neurons / N_LOOPED
        found = score_neuron_probes(probes, values, members)["balanced_accuracy"][0, :N_LOOPED]
        off = np.abs(found - best).max(), np.abs(probes.weights[0, :N_LOOPED] / weights - 1).max()
        line = f"{fit:14.2f}{score:14.2f}{looped:14.0f}{looped / fit:14.0f}{off[0]:14.1e}{off[1]:14.1e}"
        print(f"{name:16}{line}", flush=True)
    print(f"Seconds. scikit-learn: roc_curve and LogisticRegression of {N_LOOPED} neurons, scaled up. Off: at most, from it.")


if __name__ == "__main__":
    main()
