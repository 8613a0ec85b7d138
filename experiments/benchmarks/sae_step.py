"""Times one optimizer step of BatchTopK training: ours inside Lightning with its data module, and the peers'.

    .venv-bench/bin/python -m experiments.benchmarks.sae_step       # four shapes, without and with dead latents
    .venv-bench/bin/python -m experiments.benchmarks.sae_step --shapes 512,2048,16,4096 --dead-shares 0

All run in one process, in turn, round by round, so that a busy moment of the machine hits all of them. Reported are
medians over all steps of all rounds.

AuxK keeps d_in / 2 dead latents in every system that has it (overcomplete has none, and does less). With a dead share,
that many neurons are declared dead before each step, in every system by its own counter; their encoder rows are short
and the learning rate is next to nothing, so that they stay what they are. Without, none is ever dead.
"""

import argparse
import itertools
import logging
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning
import torch
from torch import Tensor

from experiments.benchmarks.sae_peers import Clock, Shape, Steps, peers, shorten_rows_, timed_loop
from src.data.feeding.activations import ActivationDataModule
from src.data.feeding.rows import StoreRows
from src.data.packing import pack_activations
from src.data.readers.features import FeatureFolder
from src.memory import keep_freed_memory
from src.models.saes.batch_topk import BatchTopK
from src.modules.sae import SAEModule
from src.ops.dense_products import matmul
from src.ops.screening import is_worthwhile
from src.stores.activations.store import ActivationStore

_SHAPES = ("512,2048,16,4096", "768,12288,32,2048", "1024,4096,32,4096", "768,49152,64,1024")
_N_BATCHES = 8
_BLOCK_SIZE = 4
_DEAD_AFTER = 10**6


def main() -> None:
    """Runs the comparisons and prints a table for each."""
    arguments = _parse()
    keep_freed_memory()  # as the command does; the product and the peers have it too
    torch.set_num_threads(arguments.threads)
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    kind = "CPU milliseconds" if arguments.cpu_time else "milliseconds"
    print(f"float32, {arguments.threads} threads, torch {torch.__version__}; {kind} per step")
    for sizes in arguments.shapes:
        for dead_share in arguments.dead_shares:
            shape = Shape(*(int(size) for size in sizes.split(",")), dead_share=dead_share)
            print(f"\n{shape}\n{_compare(shape, arguments)}", flush=True)


def _compare(shape: Shape, arguments: argparse.Namespace) -> str:
    """Times all systems on one shape, in turn, and returns the table."""
    clock = time.process_time if arguments.cpu_time else time.perf_counter
    rows = _activations(shape)
    batches = [batch.contiguous() for batch in rows.split(shape.batch_size)]
    with tempfile.TemporaryDirectory() as folder:
        ours = _Ours(shape, _store(Path(folder), rows), clock, arguments.screening)
        systems: dict[str, Steps] = {
            "bare encoder product": timed_loop(_encoder_product(shape, torch.matmul), batches, clock),
            "the same by dense_products": timed_loop(_encoder_product(shape, matmul), batches, clock),
            "Loupe": ours.steps,
        }
        if ours.screens:
            systems["Loupe, train.screening=off"] = _Ours(shape, ours.store, clock, "off").steps
        if not arguments.without_peers:
            systems |= peers(shape, batches, clock)
        seconds: dict[str, list[float]] = {name: [] for name in systems}
        for round_ in range(arguments.rounds + 1):
            for name, steps in systems.items():
                measured = steps(arguments.steps)
                if round_:  # the first round warms up
                    seconds[name] += measured
    return f"{_table(seconds)}\nDead latents of ours at the end: {ours.n_dead} of {shape.n_latents}."


class _Ours:
    """Our training as a user has it: Trainer, data module, blocks; one `fit` a round on the same module."""

    def __init__(self, shape: Shape, store: ActivationStore, clock: Clock, screening: str) -> None:
        self._clock, self.store = clock, store
        # Only the neurons that are declared dead are: in a short run a neuron may be silent for some batches.
        self._sae = BatchTopK(shape.d_in, shape.n_latents, k=shape.k, dead_after=_DEAD_AFTER)
        worthwhile = is_worthwhile(torch.device("cpu"), shape.d_in, shape.n_latents)
        self._sae.screening = worthwhile if screening == "auto" else screening == "on"
        self._sae.silent_for[: shape.n_dead] = _DEAD_AFTER
        shorten_rows_(self._sae.W_enc, shape.n_dead)
        self._module = SAEModule(self._sae, lr=shape.lr)
        rows, none = StoreRows(store, store.item_ids), StoreRows(store, [])
        self._data = ActivationDataModule(rows, none, shape.batch_size, _BLOCK_SIZE, seed=0)

    @property
    def screens(self) -> bool:
        """Whether the SAE screens."""
        return self._sae.screens

    @property
    def n_dead(self) -> int:
        """Neurons that AuxK trained in the last step."""
        return int((self._sae.silent_for >= _DEAD_AFTER).sum())

    def steps(self, n_steps: int) -> list[float]:
        """Returns the seconds per step of each block, of at least `n_steps` steps.

        The first block is left out, it makes Adam's state: the peers' optimizers live on from round to round.
        """
        stamps = _Stamps(self._clock)
        n_blocks = -(-n_steps // _BLOCK_SIZE) + 2  # the last one has no start after it
        trainer = lightning.Trainer(
            accelerator="cpu",
            max_epochs=-(-n_blocks * _BLOCK_SIZE // _N_BATCHES),
            logger=False,
            callbacks=[stamps],
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(self._module, datamodule=self._data)
        return [(stop - start) / _BLOCK_SIZE for start, stop in itertools.pairwise(stamps.starts[1:])]


class _Stamps(lightning.Callback):
    def __init__(self, clock: Clock) -> None:
        self.starts: list[float] = []
        self._clock = clock

    def on_train_batch_start(self, *_: Any) -> None:
        self.starts.append(self._clock())


def _encoder_product(shape: Shape, product: Callable[[Tensor, Tensor], Tensor]) -> Callable[[int, Tensor], Tensor]:
    weights = torch.randn(shape.n_latents, shape.d_in)
    return lambda _, batch: product(batch, weights.T)


def _activations(shape: Shape) -> Tensor:
    """Sums of a few of `n_latents` random directions and noise: something to learn, with no neuron left dead."""
    generator = torch.Generator().manual_seed(0)
    directions = torch.nn.functional.normalize(torch.randn(shape.n_latents, shape.d_in, generator=generator), dim=1)
    n_rows = _N_BATCHES * shape.batch_size
    chosen = torch.randint(shape.n_latents, (n_rows, shape.k), generator=generator)
    strengths = torch.rand(n_rows, shape.k, generator=generator) + 0.5
    rows = torch.nn.functional.embedding_bag(chosen, directions, per_sample_weights=strengths, mode="sum")
    return rows + 0.02 * torch.randn(rows.shape, generator=generator)


def _store(folder: Path, rows: Tensor) -> ActivationStore:
    features = folder / "features"
    features.mkdir()
    torch.save(rows, features / "all.pt")
    return pack_activations(FeatureFolder(features), ["all"], folder / "cache")


def _table(seconds: dict[str, list[float]]) -> str:
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    floor, ours = medians["bare encoder product"], medians["Loupe"]
    lines = [f"{'':<30}{'median':>10}{'fastest':>10}{'/ product':>12}{'/ Loupe':>10}"]
    for name, median in medians.items():
        fastest = min(seconds[name])
        lines.append(
            f"{name:<30}{1e3 * median:>10.1f}{1e3 * fastest:>10.1f}{median / floor:>12.2f}{median / ours:>10.2f}"
        )
    return "\n".join(lines)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", default=_SHAPES, help="d_in,n_latents,k,batch_size")
    parser.add_argument("--dead-shares", nargs="+", type=float, default=(0.0, 0.1))
    parser.add_argument("--steps", type=int, default=4, help="of each system in each round")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument(
        "--cpu-time",
        action="store_true",
        help="processor time instead of wall time, for a busy machine; with one thread",
    )
    parser.add_argument("--screening", choices=("auto", "on", "off"), default="auto", help="as train.screening")
    parser.add_argument("--without-peers", action="store_true", help="ours and the bare encoder product only")
    return parser.parse_args()


if __name__ == "__main__":
    main()
