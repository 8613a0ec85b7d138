"""Times an epoch of MIL training: ours inside Lightning with its data module, and a plain loop over bags.

    python -m experiments.benchmarks.mil        # 40 bags of 5,000 patches of 512 values, 2 threads

The plain loop is the same layers as torch has them, a step a bag. Both train in one process, epoch by epoch in turn, so
that a busy moment of the machine hits both; reported are the fastest and the median epoch, in wall and in CPU time.
"""

import argparse
import logging
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from typing import NamedTuple

import lightning
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from src.data.feeding.bags import BagDataModule
from src.models.mil.attention import AttentionMIL
from src.models.mil.base import MILModel
from src.models.mil.max_pool import MaxMIL
from src.modules.mil import MILModule
from src.split_files import FoldSplit

_LR, _WEIGHT_DECAY = 1e-4, 1e-5


class PlainMax(nn.Module):
    """MaxMIL with torch's layers."""

    def __init__(self, d_in: int) -> None:
        super().__init__()
        self.head = nn.Sequential(nn.Linear(d_in, 512), nn.ReLU(), nn.Dropout(0.25), nn.Linear(512, 2))

    def forward(self, bag: Tensor) -> Tensor:
        """Returns the logits [1, 2] of a bag [n_patches, d_in]."""
        return self.head(bag).max(0, keepdim=True).values


class PlainAttention(nn.Module):
    """ABMIL with torch's layers."""

    def __init__(self, d_in: int) -> None:
        super().__init__()
        self.feature = nn.Sequential(nn.Linear(d_in, 512), nn.ReLU(), nn.Dropout(0.25))
        self.attention = nn.Sequential(nn.Linear(512, 128), nn.Tanh(), nn.Linear(128, 1))
        self.classifier = nn.Linear(512, 2)

    def forward(self, bag: Tensor) -> Tensor:
        """Returns the logits [1, 2] of a bag [n_patches, d_in]."""
        hidden = self.feature(bag)
        return self.classifier(self.attention(hidden).softmax(0).T @ hidden)


class Seconds(NamedTuple):
    """Wall and CPU seconds of each epoch."""

    wall: list[float]
    cpu: list[float]


class _InTurn(lightning.Callback):
    """Runs an epoch of the plain loop before each of ours, and times both."""

    def __init__(self, plain_epoch: Callable[[], None]) -> None:
        self.plain, self.ours = Seconds([], []), Seconds([], [])
        self._plain_epoch = plain_epoch

    def on_train_epoch_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:  # noqa: ARG002
        self._start()
        self._plain_epoch()
        self._stop(self.plain)
        self._start()

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:  # noqa: ARG002
        self._stop(self.ours)

    def _start(self) -> None:
        self._started = time.perf_counter(), time.process_time()

    def _stop(self, seconds: Seconds) -> None:
        seconds.wall.append(time.perf_counter() - self._started[0])
        seconds.cpu.append(time.process_time() - self._started[1])


def compare(model: MILModel, plain: nn.Module, bags: list[Tensor], n_epochs: int) -> _InTurn:
    """Trains both on the same bags; the first epoch warms up and is not counted."""
    labels = {str(i): i % 2 for i in range(len(bags))}
    by_id = {str(i): bag for i, bag in enumerate(bags)}
    data = BagDataModule(by_id.__getitem__, FoldSplit(0, tuple(by_id), (), ()), labels, seed=0)
    optimizer = torch.optim.Adam(plain.parameters(), _LR, weight_decay=_WEIGHT_DECAY, fused=True)

    def plain_epoch() -> None:
        for index in torch.randperm(len(bags)).tolist():
            optimizer.zero_grad()
            F.cross_entropy(plain(bags[index]), torch.tensor([index % 2])).backward()
            optimizer.step()

    in_turn = _InTurn(plain_epoch)
    with tempfile.TemporaryDirectory() as folder:
        trainer = lightning.Trainer(
            accelerator="cpu",
            max_epochs=n_epochs + 1,
            limit_val_batches=0,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=[in_turn],
            default_root_dir=folder,
        )
        trainer.fit(MILModule(model, _LR, _WEIGHT_DECAY), data)
    for seconds in (*in_turn.plain, *in_turn.ours):
        del seconds[0]
    return in_turn


def main() -> None:
    """Prints one table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--bags", type=int, default=40)
    parser.add_argument("--patches", type=int, default=5000)
    parser.add_argument("--d-in", type=int, default=512)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--models", nargs="+", choices=("max", "attention"), default=("max", "attention"))
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    d_in = arguments.d_in
    bags = [torch.randn(arguments.patches, d_in) for _ in range(arguments.bags)]
    pairs = {
        "max": (MaxMIL(d_in, 2), PlainMax(d_in)),
        "attention": (AttentionMIL(d_in, 2), PlainAttention(d_in)),
    }
    print(
        f"{arguments.bags} bags x {arguments.patches:,} x {d_in}, batch 1, dropout 0.25, float32, "
        f"{arguments.threads} threads, {arguments.epochs} epochs; seconds an epoch"
    )
    print(f"{'':<12}{'time':<6}{'':<9}{'plain loop':>11}{'ours':>8}{'ratio':>8}")
    for name in arguments.models:
        model, plain = pairs[name]
        found = compare(model, plain, bags, arguments.epochs)
        for kind in Seconds._fields:
            theirs, ours = getattr(found.plain, kind), getattr(found.ours, kind)
            for what, pick in (("fastest", min), ("median", statistics.median)):
                row = f"{pick(theirs):>11.2f}{pick(ours):>8.2f}{pick(theirs) / pick(ours):>8.2f}"
                print(f"{name:<12}{kind:<6}{what:<9}{row}")


if __name__ == "__main__":
    main()
