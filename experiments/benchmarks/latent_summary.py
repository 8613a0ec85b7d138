"""Time and memory of one pass of statistics over latents: stored ones, and an SAE over activations.

Run: python -m experiments.benchmarks.latent_summary [--quick]
"""

import argparse
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from experiments.benchmarks.encode import Case, make_sae, measure, write_rows
from src.analysis.latent_summary import add_up
from src.analysis.latent_sums import CaseSums, ClassSums, NeuronSums
from src.analysis.top_items import TopItemLists
from src.ops.sparse_latents import SparseLatents
from src.stores.latents.encoded import EncodedLatents
from src.stores.latents.index import LatentItem
from src.stores.latents.source import LatentSource
from src.stores.latents.writer import LatentWriter
from src.tasks.encode import batch_rows

N_CLASSES, ITEMS_A_CASE = 10, 10
MOST_ITEMS_OF_CASES = 10_000  # single rows are single images here, each its own case


class Shape(NamedTuple):
    """What is summarised: items of so many rows each, of so many active neurons each."""

    name: str
    n_items: int
    n_rows: int
    n_latents: int
    l0: int


STORED = (
    Shape("images, 200 rows each", 5_000, 200, 49_152, 32),
    Shape("slides, 10,000 rows each", 100, 10_000, 49_152, 32),
    Shape("images, one row each", 1_000_000, 1, 49_152, 32),
)
COMPUTED = (
    Case("SAE over images, L0 32", 150, 197, 768, 12_288, 32),
    Case("SAE over images, L0 32, wide", 40, 197, 768, 49_152, 32),
    Case("dense SAE over images", 150, 197, 768, 12_288, 1_500),
)


def draw(shape: Shape, n_rows: int, generator: torch.Generator) -> SparseLatents:
    """Returns random rows: one neuron of each of `l0` equal ranges."""
    width = shape.n_latents // shape.l0
    ids = torch.randint(width, (n_rows, shape.l0), generator=generator) + torch.arange(shape.l0) * width
    values = torch.rand(n_rows * shape.l0, generator=generator) + 0.01
    offsets = torch.arange(n_rows + 1) * shape.l0
    return SparseLatents(offsets, ids.reshape(-1), values, (n_rows, shape.n_latents))


def write(path: Path, shape: Shape) -> LatentSource:
    """Writes random latents."""
    items = [LatentItem(f"{index:07d}", 0, shape.n_rows) for index in range(shape.n_items)]
    writer = LatentWriter(path, shape.n_latents, items)
    generator, left = torch.Generator().manual_seed(0), shape.n_items * shape.n_rows
    while left:
        n = min(left, 1 << 14)
        writer.append(draw(shape, n, generator))
        left -= n
    return writer.finish(by_neuron=False)


class Timed:
    """Times how long the pieces of a source take to come."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def read(self, source: LatentSource, item_ids: list[str]) -> Iterator[tuple[np.ndarray, SparseLatents]]:
        """Yields the pieces."""
        pieces = iter(source.read(item_ids))
        while True:
            started = time.perf_counter()
            piece = next(pieces, None)
            self.seconds += time.perf_counter() - started
            if piece is None:
                return
            yield piece


def summarize(source: LatentSource, timed: Timed) -> None:
    """Makes every sum that task=summarize_latents makes by default."""
    item_ids, n_latents = list(source.items), source.n_latents
    labels = np.arange(len(item_ids)) % (2 * N_CLASSES)
    top = TopItemLists(n_latents)
    sums = [NeuronSums(n_latents), top, ClassSums(labels, 2 * N_CLASSES, n_latents)]
    if len(item_ids) <= MOST_ITEMS_OF_CASES:
        cases = np.arange(len(item_ids)) // ITEMS_A_CASE
        sums.append(CaseSums(cases, int(cases.max()) + 1, n_latents))
    add_up(timed.read(source, item_ids), 0.2, *sums)
    top.compute()


def line(name: str, n_rows: int, source: LatentSource) -> str:
    """Returns a line of the table."""
    timed = Timed()
    seconds, cpu_seconds, memory = measure(lambda: summarize(source, timed))
    times = f"{seconds:9.1f}{cpu_seconds:9.1f}{timed.seconds:9.1f}{seconds / timed.seconds:8.2f}"
    return f"{name:34}{n_rows:>10,}{times}{memory:8.2f}"


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true", help="a twentieth of the items")
    share = 20 if parser.parse_args().quick else 1
    print(f"{torch.get_num_threads()} threads; reading: of stored latents, or encoding")
    heads = ("rows", "seconds", "CPU", "reading", "ratio", "GiB")
    print(f"{'':34}" + "".join(f"{head:>{w}}" for head, w in zip(heads, (10, 9, 9, 9, 8, 8), strict=True)))
    for shape in STORED:
        with tempfile.TemporaryDirectory() as name:
            of_share = shape._replace(n_items=max(1, shape.n_items // share))
            source = write(Path(name), of_share)
            print(line(shape.name, of_share.n_items * shape.n_rows, source), flush=True)
    for case in COMPUTED:
        with tempfile.TemporaryDirectory() as name:
            of_share = case._replace(n_items=max(1, case.n_items // share))
            rows = write_rows(Path(name) / "rows.npy", of_share)
            sae = make_sae(rows, of_share)
            items = [LatentItem(f"{i:06d}", i * case.n_rows, case.n_rows) for i in range(of_share.n_items)]
            source = EncodedLatents(sae, items, rows.__getitem__, most_rows=batch_rows(sae))
            print(line(case.name, len(rows), source), flush=True)
    print("GiB: largest anonymous memory, of the process as a whole.")


if __name__ == "__main__":
    main()
