"""The peers of the SAE step benchmark, each in the fastest setting it offers."""

import importlib
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

_LR = 1e-3
# With dead latents nothing may learn, or they would not stay dead.
_NO_LR = 1e-12
_DEAD_ROW_LENGTH = 0.05


@dataclass(frozen=True)
class Shape:
    """Sizes of one comparison."""

    d_in: int
    n_latents: int
    k: int
    batch_size: int
    dead_share: float = 0.0

    @property
    def n_dead(self) -> int:
        """How many neurons are declared dead; the first ones."""
        return round(self.dead_share * self.n_latents)

    @property
    def lr(self) -> float:
        """The learning rate."""
        return _NO_LR if self.n_dead else _LR


@torch.no_grad()
def shorten_rows_(weights: Tensor, n_rows: int) -> None:
    """Shortens the first encoder rows, so that their neurons are above zero but never among the largest."""
    weights[:n_rows] *= _DEAD_ROW_LENGTH


# Runs that many optimizer steps of a peer and returns the seconds of each.
Steps = Callable[[int], list[float]]
Clock = Callable[[], float]


def require(module: str) -> Any:
    """Imports a peer.

    Raises:
        ImportError: when it is missing, with the command that brings it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(
            f"Expected the peer {module.split('.')[0]} in this environment, got: {error}. The peers have their own: "
            "make bench-env && .venv-bench/bin/python -m experiments.benchmarks.sae_step"
        ) from error


def peers(shape: Shape, batches: list[Tensor], clock: Clock) -> dict[str, Steps]:
    """Returns every peer by name. They get finished batches from memory: their data loading costs nothing."""
    return {
        "dictionary-learning": timed_loop(_dictionary_learning(shape), batches, clock),
        "SAELens": timed_loop(_saelens(shape, use_sparse_activations=False), batches, clock),
        "SAELens, sparse activations": timed_loop(_saelens(shape, use_sparse_activations=True), batches, clock),
        "overcomplete": _overcomplete(shape, batches, clock),
    }


def timed_loop(step: Callable[[int, Tensor], Any], batches: list[Tensor], clock: Clock) -> Steps:
    """Returns a runner of `step(number, batch)` that goes round the batches."""
    done = 0

    def steps(n_steps: int) -> list[float]:
        nonlocal done
        seconds = []
        for _ in range(n_steps):
            start = clock()
            step(done, batches[done % len(batches)])
            seconds.append(clock() - start)
            done += 1
        return seconds

    return steps


def _dictionary_learning(shape: Shape) -> Callable[[int, Tensor], Any]:
    module = require("dictionary_learning.trainers.batch_top_k")
    # Its data-dependent start (a geometric median) belongs to step 0, so counting starts at 1.
    trainer = module.BatchTopKTrainer(
        steps=10**6,
        activation_dim=shape.d_in,
        dict_size=shape.n_latents,
        k=shape.k,
        layer=0,
        lm_name="none",
        lr=shape.lr,
        device="cpu",
        seed=0,
    )
    trainer.num_tokens_since_fired[: shape.n_dead] = 10**12
    shorten_rows_(trainer.ae.encoder.weight, shape.n_dead)
    return lambda step, batch: trainer.update(step + 1, batch)


def _saelens(shape: Shape, use_sparse_activations: bool) -> Callable[[int, Tensor], Any]:
    require("sae_lens")
    saes = require("sae_lens.saes.batchtopk_sae")
    configuration = saes.BatchTopKTrainingSAEConfig(
        d_in=shape.d_in,
        d_sae=shape.n_latents,
        k=shape.k,
        use_sparse_activations=use_sparse_activations,
        rescale_acts_by_decoder_norm=False,  # one product less
    )
    n_rows = 10**6 * shape.batch_size
    trainer = require("sae_lens.training.sae_trainer").SAETrainer(
        cfg=require("sae_lens.config").SAETrainerConfig(n_rows, shape.batch_size, lr=shape.lr, lr_end=shape.lr),
        sae=saes.BatchTopKTrainingSAE(configuration),
        data_provider=iter(()),
    )

    trainer.n_forward_passes_since_fired[: shape.n_dead] = 10**6
    shorten_rows_(trainer.sae.W_enc.T, shape.n_dead)

    def step(_: int, batch: Tensor) -> None:
        # The body of its fit() without wandb, progress and checkpoints.
        trainer.maybe_reset_sparsity()
        trainer.step(batch)
        trainer.n_training_steps += 1

    return step


def _overcomplete(shape: Shape, batches: list[Tensor], clock: Clock) -> Steps:
    package = require("overcomplete.sae")
    encoder = require("overcomplete.sae.modules").MLPEncoder(shape.d_in, shape.n_latents, norm_layer=torch.nn.Identity)
    sae = package.BatchTopKSAE(
        shape.d_in,
        shape.n_latents,
        top_k=shape.k * shape.batch_size,  # its top_k counts the batch
        encoder_module=encoder,
        dictionary_params={"normalization": "identity"},
    )
    optimizer = torch.optim.Adam(sae.parameters(), lr=shape.lr, fused=True)

    def criterion(x: Tensor, x_hat: Tensor, *_: Tensor) -> Tensor:
        return (x - x_hat).square().mean()

    def steps(n_steps: int) -> list[float]:
        starts: list[float] = []

        def stamped() -> Iterator[Tensor]:
            for index in range(n_steps + 1):
                starts.append(clock())
                if index < n_steps:
                    yield batches[index % len(batches)]

        package.train_sae(sae, stamped(), criterion, optimizer, nb_epochs=1, monitoring=0)
        return [stop - start for start, stop in itertools.pairwise(starts)]

    return steps
