"""Speed and memory of feeding activations to SAE training.

Run: python -m experiments.benchmarks.activations

First, rows a second of our loader against two bounds: the peers' common design (an IterableDataset that yields rows,
put together by the default collate of torch's DataLoader) and plain copies of consecutive batches, to one batch again
and again, which stays in the cache, and to the memory of whole blocks, as a loader of blocks hands out. Then training
on a store of 8 times the memory that rows may take, by window, against training from memory; each training in a process
of its own, whose anonymous and shared memory is sampled (pages of the mapped store are the page cache's).

All take turns, round by round, so that a busy moment of the machine hits all of them; reported are medians.
"""

import argparse
import cProfile
import gc
import json
import logging
import os
import pstats
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset

from src.data.feeding.activations import ActivationDataModule
from src.data.feeding.epoch_order import epoch_order
from src.data.feeding.residency import choose_residency
from src.data.feeding.rows import RowSource, StoreRows
from src.models.saes.batch_topk import BatchTopK
from src.modules.sae import SAEModule
from src.stores.activations import writer
from src.stores.activations.store import ActivationStore

N_SLIDES, D_IN, N_LATENTS, K = 100, 512, 2048, 16
BATCH_SIZE, BLOCK_SIZE = 4096, 16
_SHARD_ROWS = 300_000
_PEER_BATCHES = 24
_GIB = 2**30


def main() -> None:
    """Prints both tables, and what holds a bar that was missed."""
    arguments = _parse()
    _be_quiet()
    torch.set_num_threads(arguments.threads)
    if arguments.train is not None:
        print(json.dumps(train(ActivationStore(arguments.store), arguments.train, arguments.steps)))
        return
    with tempfile.TemporaryDirectory() as name:
        store = write_store(Path(name), arguments.rows)
        size = store.n_rows * D_IN * 4 / _GIB
        print(
            f"{store.n_rows:,} x {D_IN} float32 ({size:.2f} GiB), batches of {BATCH_SIZE}, blocks of {BLOCK_SIZE}, ",
            end="",
        )
        print(f"{arguments.threads} threads, torch {torch.__version__}\n")
        compare_loaders(store, arguments.rounds)
        compare_training(store, arguments)


def write_store(path: Path, n_rows: int) -> ActivationStore:
    """Writes random rows as a packed store of several shards."""
    generator = np.random.default_rng(0)
    writer.SHARD_BYTES = _SHARD_ROWS * D_IN * 4
    ends = np.linspace(0, n_rows, N_SLIDES + 1).astype(int)
    with writer.StoreWriter(path) as store:
        for number, (start, stop) in enumerate(pairwise(ends.tolist())):
            rows = generator.standard_normal((stop - start, D_IN), dtype=np.float32)
            item_id = f"slide_{number:03d}"
            item = writer.ItemRows(item_id, path, stop - start, D_IN, rows.dtype, partial(iter, [rows]))
            store.add(item, (item_id, 0, 0))
    return ActivationStore(path)


class RowByRow(IterableDataset):
    """The peers' design: rows of a permutation, one at a time; workers take every n-th."""

    def __init__(self, rows: np.ndarray) -> None:
        self._rows = torch.from_numpy(rows)

    def __iter__(self) -> Iterator[torch.Tensor]:
        worker: Any = torch.utils.data.get_worker_info()
        number, step = (0, 1) if worker is None else (worker.id, worker.num_workers)
        for row_id in epoch_order(len(self._rows), 0, 0)[number::step]:
            yield self._rows[row_id]


class ReadyRows(RowSource):
    """A source that computes nothing: what `stream` costs beside the backbone."""

    def __init__(self, rows: np.ndarray) -> None:
        self._rows = rows
        self.n_rows, self.d_in, self.dtype, self.identity = *rows.shape, rows.dtype, "ready"
        self.slide_starts = np.zeros(1, dtype=np.int64)

    def read(self, start: int, stop: int) -> np.ndarray:
        """Returns rows [stop - start, d_in]."""
        return self._rows[start:stop]


def _rate(batches: Iterable[torch.Tensor], n_skipped: int, n_batches: int | None) -> float:
    """Returns rows a second of the batches after the first ones, which start workers and fill buffers."""
    batches = iter(batches)
    for _ in islice(batches, n_skipped):
        pass
    started, n_rows = time.perf_counter(), 0
    for batch in islice(batches, n_batches):
        n_rows += len(batch)
        del batch
    return n_rows / (time.perf_counter() - started)


def _loaders(store: ActivationStore) -> dict[str, Callable[[], float]]:
    rows = np.concatenate([store.rows(item_id) for item_id in store.item_ids])

    def copies(n_places: int) -> Iterator[torch.Tensor]:
        places = np.empty((n_places, BATCH_SIZE, D_IN), dtype=np.float32)
        for number, start in enumerate(range(0, len(rows) - BATCH_SIZE, BATCH_SIZE)):
            place = places[number % n_places]
            np.copyto(place, rows[start : start + BATCH_SIZE])
            yield torch.from_numpy(place)

    def peer(n_workers: int) -> Callable[[], float]:
        loader = DataLoader(RowByRow(rows), batch_size=BATCH_SIZE, num_workers=n_workers)
        return lambda: _rate(loader, 2 + 2 * n_workers, _PEER_BATCHES)

    def ours(residency: str, n_workers: int) -> Callable[[], float]:
        def measure() -> float:
            source = ReadyRows(rows) if residency == "stream" else StoreRows(store, store.item_ids)
            data = ActivationDataModule(
                source, StoreRows(store, []), BATCH_SIZE, BLOCK_SIZE, 0, residency=residency, n_workers=n_workers
            )
            rate = 0.0
            for _ in range(2):  # the first epoch loads rows and makes the buffers
                rate = _rate((batch for block in data.train_dataloader() for batch in block), BLOCK_SIZE, None)
            return rate

        return measure

    loaders = {
        "copy to one batch": lambda: _rate(copies(1), 1, None),
        "copy to blocks": lambda: _rate(copies(2 * BLOCK_SIZE), 2 * BLOCK_SIZE, None),
    }
    loaders |= {f"row by row, {n_workers} workers": peer(n_workers) for n_workers in (0, 2)}
    for residency in ("ram", "mmap", "stream"):
        loaders |= {f"{residency}, {n_workers} workers": ours(residency, n_workers) for n_workers in (0, 1, 2)}
    return loaders


def compare_loaders(store: ActivationStore, n_rounds: int) -> None:
    """Prints rows a second of each loader, and whether the bars are met."""
    loaders = _loaders(store)
    rates: dict[str, list[float]] = {name: [] for name in loaders}
    for round_ in range(n_rounds + 1):
        for name, measure in loaders.items():
            rate = measure()
            gc.collect()  # data modules hold their rows in a circle of references
            if round_:  # the first round fills the page cache
                rates[name].append(rate)
    medians = {name: statistics.median(values) for name, values in rates.items()}
    copies = medians["copy to one batch"], medians["copy to blocks"]
    peer = max(rate for name, rate in medians.items() if name.startswith("row"))
    print(f"{'':<24}{'million rows/s':>15}{'fastest':>9}{'x row by row':>14}{'of copy':>9}{'of copy to blocks':>19}")
    for name, rate in medians.items():
        shares = f"{rate / copies[0]:>9.0%}{rate / copies[1]:>19.0%}"
        print(f"{name:<24}{rate / 1e6:>15.2f}{max(rates[name]) / 1e6:>9.2f}{rate / peer:>14.1f}{shares}")
    best = {kind: max(rate for name, rate in medians.items() if name.startswith(kind)) for kind in ("ram", "mmap")}
    bars = (
        ("ram", best["ram"] / peer >= 5, "5 x row by row"),
        ("ram", best["ram"] / copies[0] >= 0.5, "50 % of the copy to one batch"),
        ("ram", best["ram"] / copies[1] >= 0.5, "50 % of the copy to blocks"),
        ("mmap", best["mmap"] / peer >= 3, "3 x row by row"),
    )
    for kind, is_met, bar in bars:
        print(f"{kind}, its fastest: {bar}: {'met' if is_met else 'MISSED'}")
        if not is_met:
            _profile(loaders[f"{kind}, 0 workers"])


def _profile(measure: Callable[[], float]) -> None:
    profile = cProfile.Profile()
    profile.runcall(measure)
    pstats.Stats(profile).sort_stats("tottime").print_stats(8)


def compare_training(store: ActivationStore, arguments: argparse.Namespace) -> None:
    """Prints throughput and memory of training by window and from memory."""
    n_bytes = store.n_rows * D_IN * 4
    residency, reason = choose_residency("auto", n_bytes, n_bytes // 8, None)
    print(
        f"\nTraining {D_IN} -> {N_LATENTS}, k {K}, {arguments.steps} steps. Rows with an eighth of their memory free: ",
        end="",
    )
    print(f"{residency}, {reason}.")
    results: dict[str, list[dict[str, float]]] = {"ram": [], residency: []}
    for _ in range(arguments.training_rounds):
        for name, measured in results.items():
            command = [sys.executable, "-m", "experiments.benchmarks.activations", "--train", name]
            command += ["--store", str(store.path), "--steps", str(arguments.steps)]
            command += ["--threads", str(arguments.threads)]
            measured.append(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
    print(f"{'':<8}{'thousand rows/s':>16}{'fastest':>10}{'peak RssAnon + RssShmem above the model, GiB':>48}")
    for name, measured in results.items():
        rates = [result["rows_per_second"] / 1e3 for result in measured]
        peak = max(result["peak_bytes"] for result in measured) / _GIB
        print(f"{name:<8}{statistics.median(rates):>16.1f}{max(rates):>10.1f}{peak:>48.2f}")
    ram, windows = (statistics.median(r["rows_per_second"] for r in measured) for measured in results.values())
    peak = max(result["peak_bytes"] for result in results[residency]) / _GIB
    print(
        f"{residency} against ram: {windows / ram:.2f}, at least 0.75: {'met' if windows / ram >= 0.75 else 'MISSED'}"
    )
    print(f"{residency}: peak {peak:.2f} GiB, at most 1.5: {'met' if peak <= 1.5 else 'MISSED'}")


def train(store: ActivationStore, residency: str, n_steps: int) -> dict[str, float]:
    """Trains for some steps; returns rows a second after the first block, and the peak of memory above the model."""
    torch.manual_seed(0)
    module = SAEModule(BatchTopK(D_IN, N_LATENTS, k=K))
    # A step on nothing makes the libraries take what they take, whatever feeds them.
    module.sae.step(torch.randn(BATCH_SIZE, D_IN)).loss.backward()
    module.zero_grad()
    rows, none = StoreRows(store, store.item_ids), StoreRows(store, [])
    data = ActivationDataModule(rows, none, BATCH_SIZE, BLOCK_SIZE, 0, residency=residency, n_workers=1)
    stamps = _Stamps()
    with _PeakMemory() as memory:
        lightning.Trainer(
            accelerator="cpu",
            max_steps=n_steps,
            logger=False,
            callbacks=[stamps],
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        ).fit(module, datamodule=data)
    seconds = statistics.median(stop - start for start, stop in pairwise(stamps.ends))
    return {"rows_per_second": BATCH_SIZE * BLOCK_SIZE / seconds, "peak_bytes": memory.peak - memory.before}


class _Stamps(lightning.Callback):
    """When each whole block was done."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:  # noqa: ARG002
        if len(batch) == BLOCK_SIZE:
            self.ends.append(time.perf_counter())


class _PeakMemory:
    """Samples what a process tree holds in RssAnon and RssShmem, every 20 ms."""

    def __enter__(self) -> "_PeakMemory":
        self.before = self.peak = _held_bytes()
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._sample)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._thread.join()

    def _sample(self) -> None:
        while not self._is_over.wait(0.02):
            self.peak = max(self.peak, _held_bytes())


def _held_bytes() -> int:
    held, processes = 0, [os.getpid()]
    while processes:
        process = Path(f"/proc/{processes.pop()}")
        try:
            status = dict(line.split(":", 1) for line in (process / "status").read_text().splitlines())
            children = " ".join(path.read_text() for path in process.glob("task/*/children"))
        except (FileNotFoundError, ProcessLookupError):
            continue  # a child that ended meanwhile
        held += sum(1024 * int(status[name].split()[0]) for name in ("RssAnon", "RssShmem"))
        processes += [int(child) for child in children.split()]
    return held


def _be_quiet() -> None:
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=320)
    parser.add_argument("--training-rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--train", help="train once with this residency, and print what was measured")
    parser.add_argument("--store", help="packed store for --train")
    return parser.parse_args()


if __name__ == "__main__":
    main()
