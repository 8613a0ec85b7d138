"""ReLU with a penalty on the Lp norm of latents whose p falls during training."""

import functools
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from src.models.saes.options import at_least, one_of
from src.models.saes.relu_l1 import ReLUL1
from src.models.saes.shapes import Batch, PerNeuron
from src.models.saes.step import Losses, TrainingProgress
from src.ops.dense_latents import Latents
from src.ops.lp import mean_power_sum
from src.ops.shapes import Scalar

SparsityFunction = Literal["Lp^p", "Lp"]

# Of all optimizer steps; the encoder first learns under a convex penalty.
_START_SHARE = 0.2

# Stands for a next p, and for penalties in the queue, that are not there yet.
_NONE = -1.0


class PAnneal(ReLUL1):
    """SAE with p-annealing (Karvonen et al. 2024, "Measuring Progress in Dictionary Learning", arXiv 2408.00113).

    The penalty starts as L1 and comes closer to counting latents as p falls. When p changes, the penalty's
    coefficient is multiplied by the mean penalty at the old p over that at the new one, both of the last batches, so
    that its weight in the loss stays.

    Args:
        d_in: dimension of the activations.
        n_latents: number of neurons; `expansion * d_in` when None.
        expansion: neurons per input dimension.
        sparsity_function: "Lp^p" is the mean over rows of the sum of latents to the power p, "Lp" of its p-th root.
        p_start: p until annealing starts.
        p_end: p that it falls to; the paper's is 0.2.
        n_updates: changes of p between the ends of annealing, both included; None: about every optimizer step.
        anneal_start: optimizer step at which annealing starts; None: after a fifth of all steps.
        anneal_end: optimizer step at which it ends; None: after the last. Without a number of all steps, there is no
            annealing where one of them is None.
        queue_length: batches that the means are taken over.
        count_silent_at_zero: whether at p = 0 silent latents count too, as 0^0 = 1 does; dictionary_learning's defect.
        **options: of `ReLUL1`; `l1_coefficient` is the coefficient at the start.

    Raises:
        ValueError: when an option is unknown or out of its range.
    """

    p: Scalar
    next_p: Scalar
    coefficient: Scalar
    queue: Float[Tensor, "queue_length 2"]

    def __init__(
        self,
        d_in: int,
        n_latents: int | None = None,
        expansion: float = 4,
        *,
        sparsity_function: SparsityFunction = "Lp^p",
        p_start: float = 1.0,
        p_end: float = 0.2,
        n_updates: int | None = None,
        anneal_start: int | None = None,
        anneal_end: int | None = None,
        queue_length: int = 10,
        count_silent_at_zero: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(d_in, n_latents, expansion, **options)
        self.sparsity_function = one_of("sparsity_function", sparsity_function, SparsityFunction)
        self.p_start, self.p_end = at_least("p_start", p_start, 0), at_least("p_end", p_end, 0)
        if sparsity_function == "Lp" and 0 in (p_start, p_end):
            raise ValueError(
                f"Expected sae.p_start and sae.p_end above 0 with sparsity_function=Lp, got {p_start} and {p_end}."
            )
        self.n_updates = None if n_updates is None else at_least("n_updates", n_updates, 1)
        self.anneal_start, self.anneal_end = anneal_start, anneal_end
        self.queue_length = at_least("queue_length", queue_length, 1)
        self.count_silent_at_zero = count_silent_at_zero

        # Doubles: a coefficient that is multiplied at every step must not drift.
        self.register_buffer("p", torch.tensor(p_start, dtype=torch.float64))
        self.register_buffer("next_p", torch.tensor(_NONE, dtype=torch.float64))
        self.register_buffer("coefficient", torch.tensor(self.l1_coefficient, dtype=torch.float64))
        self.register_buffer("queue", torch.full((queue_length, 2), _NONE, dtype=torch.float64))

    def sparsity_losses(self, latents: Latents, norms: PerNeuron | None, progress: TrainingProgress) -> Losses:
        """Returns the Lp term at the present p; see `ReLUL1.sparsity_losses`."""
        weight = float(self.coefficient) * self.sparsity_scale(progress)
        return {"lp": weight * self._penalty(latents, float(self.p), norms)}

    @torch.no_grad()
    def observe_(self, latents: Latents, progress: TrainingProgress) -> None:
        """Moves the counters of silent neurons and the queue of penalties by one batch of latents."""
        super().observe_(latents, progress)
        if not self.training or self.next_p == _NONE:
            return
        norms = torch.linalg.vector_norm(self.W_dec, dim=1) if self.l1_by_atom_norm else None
        pair = torch.stack([self._penalty(latents, float(p), norms) for p in (self.p, self.next_p)])
        self.queue.copy_(torch.cat([self.queue[1:], pair.to(self.queue.dtype).unsqueeze(0)]))

    @torch.no_grad()
    def finish_step_(self, activations: Batch, progress: TrainingProgress, optimizer: torch.optim.Optimizer) -> None:
        """Changes p and the coefficient, and resamples dead neurons, when it is time; see `SAE.finish_step_`."""
        change = self._changes(progress).get(progress.step)
        if change is not None:
            present, following = self.queue[self.queue[:, 0] != _NONE].sum(0)
            if following > 0:
                self.coefficient.mul_(present / following)
            self.p.fill_(change[0])
            self.next_p.fill_(change[1])
        super().finish_step_(activations, progress, optimizer)

    def _changes(self, progress: TrainingProgress) -> dict[int, tuple[float, float]]:
        total, start, end = progress.total_steps, self.anneal_start, self.anneal_end
        if total is not None:
            start = round(_START_SHARE * total) if start is None else start
            end = total if end is None else end
        if start is None or end is None:
            return {}
        return annealing_steps(start, end, self.n_updates, self.p_start, self.p_end)

    def _penalty(self, latents: Latents, p: float, norms: Tensor | None) -> Tensor:
        if p == 0 and self.count_silent_at_zero:
            return latents.values.new_tensor(float(self.n_latents))
        return mean_power_sum(latents, p, norms, rooted=self.sparsity_function == "Lp")


@functools.lru_cache(maxsize=8)
def annealing_steps(
    start: int, end: int, n_updates: int | None, p_start: float, p_end: float
) -> dict[int, tuple[float, float]]:
    """Returns the optimizer steps after which p changes, with the new p and the one after it.

    `n_updates` steps and values are evenly spaced from the first to the last (dictionary_learning); None takes one
    per step. Nothing changes where the end lies before the start.
    """
    if end < start:
        return {}
    n_updates = max(end - start, 1) if n_updates is None else n_updates
    steps = torch.linspace(start, end, n_updates, dtype=torch.int64).unique().tolist()
    values = [*torch.linspace(p_start, p_end, n_updates).tolist(), p_end]
    return {step: (values[index], values[index + 1]) for index, step in enumerate(steps)}
