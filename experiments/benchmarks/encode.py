"""Time, files and memory of encoding: slides, single rows, image tokens, a dense SAE, and looking a neuron up.

Run: python -m experiments.benchmarks.encode [--quick]
"""

import argparse
import json
import shutil
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from src.analysis.pooling import pool_items
from src.memory import keep_freed_memory
from src.models.saes.batch_topk import BatchTopK
from src.ops.screening import is_worthwhile
from src.ops.selection import calibrate_threshold
from src.runs.outputs import describe_outputs
from src.stores.latents.encoded import EncodedLatents
from src.stores.latents.index import LatentItem
from src.stores.latents.store import LatentStore
from src.stores.latents.writer import LatentWriter
from src.tasks.encode import batch_rows

N_PLACES = 50
SECONDS_PER_ITEM = 15e-6
PRODUCT_ROWS = 2048


class Case(NamedTuple):
    """What is encoded: items of so many rows each, so often."""

    name: str
    n_items: int
    n_rows: int
    d_in: int
    n_latents: int
    k: int
    n_runs: int = 1


CASES = (
    Case("slides", 20, 10_000, 512, 2048, 16, 5),
    Case("images, one row each", 200_000, 1, 768, 12_288, 32),
    Case("images, 197 rows each", 5_000, 197, 768, 12_288, 32),
)
DENSE = Case("dense SAE, pooled, not stored", 250, 197, 768, 12_288, 1_500, 3)


def write_rows(path: Path, case: Case) -> np.ndarray:
    """Writes random activations and maps them."""
    n_rows = case.n_items * case.n_rows
    rows = np.lib.format.open_memmap(path, "w+", np.float32, (n_rows, case.d_in))
    block = np.random.default_rng(0).standard_normal((1 << 16, case.d_in), dtype=np.float32)
    for start in range(0, n_rows, len(block)):
        piece = rows[start : start + len(block)]
        piece[:] = np.roll(block[: len(piece)], start, axis=1)
    rows.flush()
    return np.load(path, mmap_mode="r")


def make_sae(rows: np.ndarray, case: Case) -> BatchTopK:
    """Returns an untrained SAE that keeps k latents a row; what it learned would not change the speed."""
    torch.manual_seed(0)
    sae = BatchTopK(case.d_in, case.n_latents, k=case.k).eval()
    sample = torch.from_numpy(np.array(rows[:2048]))
    with torch.no_grad():
        sae.threshold.copy_(calibrate_threshold([sae.pre_latents(sample)], case.k, len(sample)))
    sae.screening = is_worthwhile(torch.device("cpu"), case.d_in, case.n_latents)
    return sae


@torch.no_grad()
def time_product(sae: BatchTopK, rows: np.ndarray) -> tuple[float, float]:
    """Returns seconds and CPU seconds of the bare encoder product, in the batches that are fastest for it."""
    seconds = cpu_seconds = 0.0
    for start in range(0, len(rows), PRODUCT_ROWS):
        activations = torch.from_numpy(np.array(rows[start : start + PRODUCT_ROWS]))
        started, cpu_started = time.perf_counter(), time.process_time()
        torch.nn.functional.linear(activations, sae.W_enc, sae.b_enc)
        seconds += time.perf_counter() - started
        cpu_seconds += time.process_time() - cpu_started
    return seconds, cpu_seconds


def measure(work: Callable[[], object]) -> tuple[float, float, float]:
    """Returns seconds and CPU seconds of a piece of work, and the largest anonymous memory meanwhile, in GiB."""
    peaks, done = [0.0], threading.Event()

    def watch() -> None:
        while not done.wait(0.02):
            lines = Path("/proc/self/status").read_text().splitlines()
            peaks.append(next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / (1 << 20))

    watcher = threading.Thread(target=watch)
    watcher.start()
    started, cpu_started = time.perf_counter(), time.process_time()
    try:
        work()
    finally:
        seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - cpu_started
        done.set()
        watcher.join()
    return seconds, cpu_seconds, max(peaks)


def store(source: EncodedLatents, path: Path, sae: BatchTopK) -> None:
    """Encodes everything into a finished store."""
    writer = LatentWriter(path, sae.n_latents, list(source.items.values()))
    source.write(writer, batch_rows(sae))
    writer.finish()


def pool(source: EncodedLatents, sae: BatchTopK) -> None:
    """Max-pools every item; nothing is stored."""
    pool_items(source.read(list(source.items), batch_rows(sae)), list(source.items))


def time_places(path: Path) -> str:
    """Returns the median and the slowest of 100 questions for the first places of a neuron, in ms."""
    opened, times = LatentStore(path), []
    opened.places(0, 1)
    for neuron_id in np.random.default_rng(0).integers(0, opened.n_latents, 100).tolist():
        started = time.perf_counter()
        opened.places(neuron_id, N_PLACES)
        times.append(1e3 * (time.perf_counter() - started))
    return f"{statistics.median(times):.2f}, {max(times):.1f}"


def run(case: Case, root: Path, is_stored: bool) -> str:
    """Returns a line of the table."""
    rows = write_rows(root / "rows.npy", case)
    sae = make_sae(rows, case)
    items = [LatentItem(f"{i:06d}", i * case.n_rows, case.n_rows, "0" * 32) for i in range(case.n_items)]
    coords = np.zeros((case.n_rows, 2), np.int32)
    source = EncodedLatents(sae, items, rows.__getitem__, (lambda _: coords) if case.name == "slides" else None)
    path = root / "run" / "latents" / "all"
    products, encodings = [time_product(sae, rows)], []
    for _ in range(case.n_runs):
        shutil.rmtree(path, ignore_errors=True)
        encodings.append(measure(partial(store, source, path, sae) if is_stored else partial(pool, source, sae)))
        products.append(time_product(sae, rows))  # by turns: both see the same machine
    product, cpu_product = (statistics.median(times) for times in zip(*products, strict=True))
    seconds, cpu_seconds = (statistics.median(times[i] for times in encodings) for i in range(2))
    memory = max(times[2] for times in encodings)
    limit = 1.15 * product + SECONDS_PER_ITEM * case.n_items
    line = f"{case.name:30}{seconds:9.1f}{product:9.1f}{seconds / product:7.2f}{limit:9.1f}"
    line += f"{cpu_seconds / cpu_product:11.2f}{memory:8.2f}"
    if not is_stored:
        return line
    outputs = describe_outputs(root / "run")
    manifest = len(json.dumps([asdict(output) for output in outputs], indent=2))
    n_bytes = sum(output.bytes for output in outputs)
    return line + f"{len(outputs):7}{n_bytes / 1e6:9.0f}{manifest / 1e3:10.1f}{time_places(path):>12}"


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true", help="a twentieth of the items")
    keep_freed_memory()  # as the command does
    share = 20 if parser.parse_args().quick else 1
    print(
        f"{torch.get_num_threads()} threads; product: the bare encoder's; limit: 1.15 times it + 15 s per million items"
    )
    heads = ("seconds", "product", "ratio", "limit", "CPU ratio", "GiB", "files", "MB", "manifest", f"first {N_PLACES}")
    print(
        f"{'':30}" + "".join(f"{head:>{w}}" for head, w in zip(heads, (9, 9, 7, 9, 11, 8, 7, 9, 10, 12), strict=True))
    )
    for case in (*CASES, DENSE):
        with tempfile.TemporaryDirectory() as name:
            of_share = case._replace(n_items=max(1, case.n_items // share))
            print(run(of_share, Path(name), case is not DENSE), flush=True)
    print("Medians of 1 to 5 runs, by turns with the product. GiB: largest anonymous memory.")
    print("Manifest: kB of the files' entries. First places: median and slowest, ms.")


if __name__ == "__main__":
    main()
