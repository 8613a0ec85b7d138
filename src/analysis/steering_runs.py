"""Runs a head over items under many edits of their latents."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from src.analysis.steering_metrics import Outcome
from src.analysis.steering_trials import Trial
from src.inference import Inference
from src.models.heads import Head
from src.models.saes.core import SAECore
from src.models.steering import Steering
from src.stores.activations.store import ActivationStore


@dataclass(frozen=True)
class SteeredModel:
    """A head, the SAE whose latents are edited, and stored activations.

    Attributes:
        head: of exclusive classes; with the SAE on the device of `inference`.
        sae: of the activations.
        store: holds the activations of the items.
        inference: how it is run.
        donors: items whose latents stand in where edits resample.
        keeps_error: see `Steering`.
        added_constant: see `Steering`.
        batch_size: items of a batch.
        seed: of the choice of donors.
    """

    head: Head
    sae: SAECore
    store: ActivationStore
    inference: Inference
    donors: Sequence[str] = ()
    keeps_error: bool = False
    added_constant: float = 0.0
    batch_size: int = 32
    seed: int = 0

    def run(self, trials: Sequence[Trial], name: str, item_ids: Sequence[str]) -> dict[Trial, Outcome]:
        """Returns what the head says of items of one class under each edit.

        Activations are read and encoded once a batch, and each distinct edit goes through the head once.

        Args:
            trials: the edits.
            name: the class of the items.
            item_ids: the items.
        """
        edits = [trial.edit for trial in trials]
        steering = Steering(self.head, self.sae, edits, self.keeps_error, self.added_constant)
        resamples = any(edit is not None and edit.resamples for edit in edits)

        def function(batch: Tensor) -> list[Tensor]:
            logits = steering(batch[:, 0], batch[:, 1] if resamples else None)
            return [self.head.probabilities(one).cpu() for one in logits]

        reads = list(self._reads(item_ids, resamples))
        description = f"Steering {name}, {steering.n_distinct} edits"
        batches = zip(*self.inference.run(function, reads, description, len(reads)), strict=True)
        return {
            trial: self._outcome(trial, name, torch.cat(probabilities).numpy())
            for trial, probabilities in zip(trials, batches, strict=True)
        }

    def _outcome(self, trial: Trial, name: str, probabilities: np.ndarray) -> Outcome:
        classes = self.head.classes
        own = probabilities[:, classes.index(name)]
        if trial.target in classes:
            return Outcome(probabilities.argmax(1), own, probabilities[:, classes.index(trial.target)], None)
        return Outcome(probabilities.argmax(1), own, None, probabilities)

    def _reads(self, item_ids: Sequence[str], resamples: bool) -> Iterator[Callable[[], Tensor]]:
        """Yields what reads a batch [n_items, 1 or 2, n_rows, d_in]: items of equally many rows, and their donors."""
        by_length = defaultdict(list)
        for (start, stop), item_id in zip(self.store.row_ranges(item_ids), item_ids, strict=True):
            by_length[stop - start].append(item_id)
        for n_rows, of_length in by_length.items():
            for first in range(0, len(of_length), self.batch_size):
                batch = of_length[first : first + self.batch_size]
                parts = [self.store.row_ids(batch).reshape(len(batch), n_rows)]
                if resamples:
                    parts.append(np.stack([self._donor(item_id, n_rows) for item_id in batch]))
                yield partial(self._read, np.stack(parts, axis=1))

    def _read(self, row_ids: np.ndarray) -> Tensor:
        return torch.from_numpy(self.store.gather(row_ids.reshape(-1))).view(*row_ids.shape, -1)

    def _donor(self, item_id: str, n_rows: int) -> np.ndarray:
        """Returns rows of a random donor: position by position, or drawn where it has another number of rows."""
        rng = np.random.default_rng([self.seed, *item_id.encode()])
        ((start, stop),) = self.store.row_ranges([self.donors[int(rng.integers(len(self.donors)))]])
        return np.arange(start, stop) if stop - start == n_rows else rng.integers(start, stop, n_rows)
