"""Time of selecting neurons, of its permutation test, and of a slide's map: stored latents in a running process.

Run: python -m experiments.benchmarks.selection [--quick]
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from src.analysis.figure_style import save_figure
from src.analysis.overlay import PatchMap, plot_overlay
from src.analysis.pooling import pool_items
from src.analysis.selection import rank_neurons
from src.analysis.selection_rule import SelectionRule
from src.models.saes.batch_topk import BatchTopK
from src.ops.selection import calibrate_threshold
from src.ops.sparse_latents import SparseLatents
from src.stores.latents.index import LatentItem
from src.stores.latents.store import LatentStore
from src.stores.latents.writer import LatentWriter

N_SLIDES, N_PATCHES, N_NEURONS, L0 = 400, 2_000, 4_096, 16
N_PERMUTATIONS = 10_000
N_MAP_PATCHES, D_IN = 15_000, 512
LIMITS = {"selection": 2.0, "permutation test": 60.0, "encode and overlay": 2.0}


def write_store(path: Path, n_slides: int) -> LatentStore:
    """Writes random latents of `L0` neurons a patch."""
    rng = np.random.default_rng(0)
    items = [LatentItem(f"{i:04d}", 0, N_PATCHES, "0" * 32) for i in range(n_slides)]
    writer = LatentWriter(path, N_NEURONS, items)
    width = N_NEURONS // L0
    for _ in items:
        ids = np.arange(L0) * width + rng.integers(width, size=(N_PATCHES, L0))
        values = rng.exponential(size=ids.size).astype(np.float32)
        offsets = torch.arange(N_PATCHES + 1) * L0
        latents = SparseLatents(
            offsets, torch.from_numpy(ids.ravel()), torch.from_numpy(values), (N_PATCHES, N_NEURONS)
        )
        writer.append(latents)
    return writer.finish(by_neuron=False)


def measure(work: Callable[[], object]) -> tuple[float, float]:
    """Returns the shorter time of two runs, and its CPU time."""
    times = []
    for _ in range(2):
        started, cpu_started = time.perf_counter(), time.process_time()
        work()
        times.append((time.perf_counter() - started, time.process_time() - cpu_started))
    return min(times)


def draw_map(sae: BatchTopK, activations: torch.Tensor, path: Path) -> None:
    """Encodes the patches of a slide and writes the map of a neuron, without an image of the slide."""
    with torch.no_grad():
        latents = sae.encode(activations)
    side = int(len(activations) ** 0.5)
    coords = np.stack(np.divmod(np.arange(len(activations)), side), axis=1) * 256
    scores = latents.columns([7])[:, 0].numpy()
    save_figure(plot_overlay(None, coords, 256, [PatchMap("Neuron 7", "Activation", scores)], []), path)


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true", help="a tenth of the slides and permutations")
    share = 10 if parser.parse_args().quick else 1
    n_slides = N_SLIDES // share
    labels = np.arange(n_slides) % 2
    case_ids = [str(index) for index in range(n_slides)]
    classes = ("normal", "tumor")
    with tempfile.TemporaryDirectory() as name:
        store = write_store(Path(name) / "latents", n_slides)
        item_ids = list(store.items)

        def select() -> None:
            pooled = pool_items(store.read(item_ids), item_ids)
            rank_neurons(pooled.values, labels, case_ids, classes, pooled.density)

        values = pool_items(store.read(item_ids), item_ids).values
        rule = SelectionRule(correction="max_t", n_permutations=N_PERMUTATIONS // share)
        torch.manual_seed(0)
        sae = BatchTopK(D_IN, N_NEURONS, k=L0).eval()
        activations = torch.randn(N_MAP_PATCHES, D_IN)
        with torch.no_grad():
            sae.threshold.copy_(calibrate_threshold([sae.pre_latents(activations)], L0, N_MAP_PATCHES))
        measured = {
            "selection": measure(select),
            "permutation test": measure(lambda: rank_neurons(values, labels, case_ids, classes, rule=rule)),
            "encode and overlay": measure(lambda: draw_map(sae, activations, Path(name) / "map.png")),
        }
    print(f"{torch.get_num_threads()} threads; {n_slides} slides x {N_PATCHES} patches, {N_NEURONS} neurons, L0 {L0}")
    print(f"{'':24}{'seconds':>9}{'CPU s':>9}{'limit':>9}{'share of it':>13}")
    for what, (took, cpu) in measured.items():
        print(f"{what:24}{took:9.2f}{cpu:9.2f}{LIMITS[what]:9.0f}{took / LIMITS[what]:13.2f}")


if __name__ == "__main__":
    main()
