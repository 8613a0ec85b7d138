"""What passes between an SAE and its training: where training stands, what a batch was coded as, what a step gave."""

from dataclasses import dataclass
from typing import NamedTuple

import torch

from src.ops.dense_latents import Latents
from src.ops.shapes import Columns, Rows, Scalar

Losses = dict[str, Scalar]
"""Named, weighted terms of a loss."""


class TrainingProgress(NamedTuple):
    """Where a training stands.

    Attributes:
        step: optimizer steps made so far.
        total_steps: of the whole training, when known.
        steps_per_epoch: when known.
    """

    step: int = 0
    total_steps: int | None = None
    steps_per_epoch: int | None = None


@dataclass(frozen=True)
class Code:
    """A batch as the sparsifier left it.

    Attributes:
        pre_latents: the pre-latents that the sparsifier looked at, with their gradient; what is not listed is not
            kept and receives no gradient.
        latents: what it made of them, in the same pattern.
        columns: pre-latents of the neurons that were asked for, dense [n_rows, n_asked], with their gradient.
    """

    pre_latents: Latents
    latents: Latents
    columns: Columns | None = None


@dataclass(frozen=True)
class SAEStep:
    """One pass over a batch, in the space the SAE works in (after all input normalisation).

    Attributes:
        latents: what the sparsifier kept; the values carry the gradient.
        reconstruction: [n_rows, d_in].
        losses: named terms, already weighted; their sum is the loss.
        metrics: named 0-d tensors to log, without gradient.
    """

    latents: Latents
    reconstruction: Rows
    losses: Losses
    metrics: dict[str, Scalar]

    @property
    def loss(self) -> Scalar:
        """The sum of the named losses."""
        return torch.stack(list(self.losses.values())).sum()
