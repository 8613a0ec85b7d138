"""SAEs that one process and several train on the same batches, step by step in float64."""

import functools
import logging

import lightning
import numpy as np
import torch
from torch.utils.data import DataLoader

from src.models.saes.archetypal import Archetypal
from src.models.saes.batch_topk import BatchTopK
from src.models.saes.gated import Gated
from src.models.saes.jumprelu import JumpReLU
from src.models.saes.matryoshka_batch_topk import MatryoshkaBatchTopK
from src.models.saes.p_anneal import PAnneal
from src.models.saes.relu_l1 import ReLUL1
from src.models.saes.step import TrainingProgress
from src.models.saes.topk import TopK
from src.ops.processes import all_sum_gradients_, gather_rows, n_processes, rank
from src.ops.sparse_latents import SparseLatents

D_IN, N_LATENTS = 12, 48
# The last rows of an epoch are few: uneven shares, and one process without any.
BATCH_SIZES = [32] * 7 + [31, 7, 1]
N_STEPS = 2 * len(BATCH_SIZES)

_GHOSTS = {"ghost_gradients": True, "error_scale": "input_norm"}
CASES = {
    "batch_topk": functools.partial(BatchTopK, k=3),
    "batch_topk, row minima, tokens": functools.partial(
        BatchTopK, k=3, threshold_statistic="mean_of_row_min", dead_unit="tokens", dead_after=60
    ),
    "batch_topk, annealed k, L1": functools.partial(BatchTopK, k=3, k_anneal_steps=9, l1_coefficient=0.01),
    "batch_topk, sae-1n": functools.partial(
        BatchTopK, k=3, detach_residual=False, decoder_constraint="before_step", input_norm="z_score"
    ),
    "matryoshka": functools.partial(MatryoshkaBatchTopK, k=3),
    "topk": functools.partial(TopK, k=3, k_aux=2, inference="threshold"),
    "topk, dictionary_learning": functools.partial(
        TopK, k=3, aux_over_variance=True, error_scale="sum", threshold_statistic="mean_of_row_min"
    ),
    "topk, variance of a moving residual": functools.partial(TopK, k=3, aux_over_variance=True, detach_residual=False),
    "jumprelu": functools.partial(JumpReLU, target_l0=4, aux_coefficient=0.1),
    "jumprelu, L0": functools.partial(
        JumpReLU, penalty="l0", l0_coefficient=0.01, step_on_gated=True, threshold_form="log", threshold_init=0.3
    ),
    "gated": functools.partial(Gated, l1_coefficient=0.02, aux_coefficient=0.1, b_dec_init="geometric_median"),
    "relu_l1": functools.partial(ReLUL1, l1_coefficient=0.5, l1_by_atom_norm=True, aux_coefficient=0.1),
    "relu_l1, ghosts": functools.partial(ReLUL1, l1_coefficient=0.05, **_GHOSTS),
    "relu_l1, resampling": functools.partial(ReLUL1, l1_coefficient=0.05, resample_every=6, resample_silent_for=3),
    "p_anneal": functools.partial(PAnneal, l1_coefficient=0.05, n_updates=5, queue_length=3),
    "p_anneal, roots": functools.partial(PAnneal, l1_coefficient=0.05, n_updates=5, sparsity_function="Lp"),
    "archetypal": functools.partial(Archetypal, k=3, n_points=16),
}
IMAGES = "relu_l1, image blocks"
CASES[IMAGES] = functools.partial(
    ReLUL1, l1_coefficient=0.05, b_dec_init="geometric_median", error_scale="input_norm", class_token_weight=3.0
)


def batches(of_images=False):
    """Returns all batches; the first one's values have exact products, and few of its rows are distinct."""
    generator = torch.Generator().manual_seed(1)
    made = [torch.randn(size, D_IN, generator=generator, dtype=torch.float64) for size in BATCH_SIZES * 2]
    distinct = made[0][:3].mul(4).round() / 4
    made[0] = distinct[torch.tensor([0, 1, 0, 2, 0] * 7)[: BATCH_SIZES[0]]]
    return [batch.unsqueeze(1).repeat(1, 3, 1).cumsum(1) for batch in made] if of_images else made


def build(name):
    """Returns a case's SAE, some of its neurons about to be dead."""
    torch.manual_seed(0)
    sae = CASES[name](D_IN, N_LATENTS, **{"dead_after": 2, **CASES[name].keywords}).double()
    if isinstance(sae, Archetypal):  # rows of the first batch are too few
        sae.set_points(torch.randn(sae.n_points, D_IN, dtype=torch.float64))
    with torch.no_grad():
        sae.W_enc.copy_(sae.W_enc.mul(16).round() / 16)
        if isinstance(sae, ReLUL1 | JumpReLU | Gated):
            sae.b_enc[:6] = -8.0
    return sae


def fired(latents):
    """Returns the positions (row, neuron) of what is above zero in this process's rows, [n, 2]."""
    if isinstance(latents, SparseLatents):
        positive = latents.values > 0
        return torch.stack([latents.row_ids[positive], latents.neuron_ids[positive]], 1)
    return (latents.values > 0).nonzero()


def train(name):
    """Trains a case on this process's share of the batches, as `SAEModule` does.

    Returns:
        Final state; per step the positions that fired in the whole batch, losses, metrics, and silence.
    """
    sae = build(name)
    optimizer = torch.optim.Adam([p for p in sae.parameters() if p.requires_grad], lr=1e-2, fused=True)
    steps = []
    for number, batch in enumerate(batches(name == IMAGES)):
        shares = np.array_split(np.arange(len(batch)), n_processes())
        rows = batch[shares[rank()]]
        if number == 0:
            sae.initialize_from_(gather_rows(rows))
        progress = TrainingProgress(number, N_STEPS, N_STEPS // 2)
        sae.constrain_before_forward_()
        step = sae.step(rows, progress)
        step.loss.backward()
        all_sum_gradients_(sae.parameters())
        sae.constrain_gradient_()
        torch.nn.utils.clip_grad_norm_(sae.parameters(), 1.0)
        sae.constrain_before_step_()
        optimizer.step()
        optimizer.zero_grad()
        sae.constrain_after_step_()
        sae.finish_step_(rows, progress, optimizer)
        positions = fired(step.latents)
        rows_before = sum(len(share) for share in shares[: rank()]) * rows[0:1].shape[:-1].numel() if len(rows) else 0
        positions = gather_rows(positions + torch.tensor([rows_before, 0]))
        numbers = {"loss": step.loss.detach()} | {key: value.detach() for key, value in step.losses.items()}
        numbers |= step.metrics
        steps.append((positions, numbers, sae.silent_for.clone()))
    return {key: value.clone() for key, value in sae.state_dict().items()}, steps


class SharedData(lightning.LightningDataModule):
    """Gives each process its rows of every batch: training in blocks, validation in batches."""

    def __init__(self, block_size):
        super().__init__()
        self.block_size = block_size

    def train_dataloader(self):
        mine = [self._mine(batch) for batch in batches()]
        blocks = [mine[start : start + self.block_size] for start in range(0, len(mine), self.block_size)]
        return DataLoader(blocks, batch_size=None)

    def val_dataloader(self):
        return DataLoader([self._mine(batch * 0.9) for batch in batches()], batch_size=None)

    def _mine(self, batch):
        shares = np.array_split(np.arange(len(batch)), self.trainer.world_size)
        return batch[shares[self.trainer.global_rank]]


class Failing(BatchTopK):
    """Refuses its first batch."""

    def initialize_from_(self, activations):
        logging.getLogger(__name__).warning("about to fail")
        raise ValueError("Expected other activations.")
