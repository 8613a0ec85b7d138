"""Finds the density of latents below which sparse products are faster: a ReLU SAE's step both ways.

    python -m experiments.benchmarks.density [--d-in 512 --n-latents 2048 --batch-size 4096]

The encoder bias sets the density. Both ways run in turn, round by round; reported are medians of forward and backward.
"""

import argparse
import statistics
import time

import torch

from src.memory import keep_freed_memory
from src.models.saes.relu_l1 import ReLUL1

_DENSITIES = (0.005, 0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5)


def main() -> None:
    """Runs the comparison and prints its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--d-in", type=int, default=512)
    parser.add_argument("--n-latents", type=int, default=2048)
    parser.add_argument("--batch-size", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    keep_freed_memory()  # as the command does
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    batch = torch.randn(arguments.batch_size, arguments.d_in)
    sae = ReLUL1(arguments.d_in, arguments.n_latents)
    print(f"{'density':>8}{'dense ms':>12}{'sparse ms':>12}{'dense / sparse':>16}")
    for density in _DENSITIES:
        # Pre-latents of unit rows and normal inputs are normal with variance 1.
        sae.b_enc.data.fill_(float(torch.distributions.Normal(0.0, 1.0).icdf(torch.tensor(density))))
        seconds: dict[float, list[float]] = {1.0: [], 0.0: []}
        for round_ in range(arguments.rounds + 1):
            for forced in seconds:
                measured = _step(sae, batch, forced)
                if round_:  # the first round warms up
                    seconds[forced].append(measured)
        dense, sparse = (1e3 * statistics.median(seconds[forced]) for forced in (1.0, 0.0))
        print(f"{density:>8}{dense:>12.1f}{sparse:>12.1f}{dense / sparse:>16.2f}", flush=True)


def _step(sae: ReLUL1, batch: torch.Tensor, density: float) -> float:
    """Returns the seconds of a step that goes the dense way for a density of 1, the sparse way for 0."""
    sae.density.fill_(density)
    sae.zero_grad()
    start = time.perf_counter()
    sae.step(batch).loss.backward()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
