"""Trains several SAEs on one stream of blocks."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import lightning
import torch
from torch import Tensor

from src.modules.divergence import require_finite_state
from src.modules.sae import SAEModule


class MemberError(Exception):
    """A user's mistake in one member, its cause.

    Attributes:
        member: the member's number.
    """

    def __init__(self, member: int) -> None:
        super().__init__(f"SAE {member} of the group failed.")
        self.member = member


class SAEGroup(lightning.LightningModule):
    """Gives each block of batches to all its members, one after the other, each as if it were trained alone.

    Members begin at one place of the stream and draw no random numbers as they train. What is logged of member i has
    keys `<i>.<key>`; `src.training.members` hands it, and the member's part of a checkpoint, to the member's own run.

    Args:
        members: the modules of single SAEs, as each would be trained alone.
        columns: for each, which columns of a batch it is trained on: those of its layer. All columns when None.
    """

    def __init__(self, members: Sequence[SAEModule], columns: Sequence[slice] | None = None) -> None:
        super().__init__()
        self._columns = [slice(None)] * len(members) if columns is None else list(columns)
        self.automatic_optimization = False
        for number, member in enumerate(members):
            self.add_module(str(number), member)  # a child itself: Lightning gives the trainer to children
        self._checked_at = -1

    @property
    def members(self) -> list[SAEModule]:
        """The modules of the single SAEs."""
        return list(self.children())  # pyright: ignore[reportReturnType]

    @property
    def n_steps(self) -> int:
        """Optimizer steps that each member has made: all make as many."""
        return self.global_step // len(self.members)

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        """Returns each member's optimizer."""
        return [member.configure_optimizers() for member in self.members]

    def on_fit_start(self) -> None:
        """Compiles the steps of members that ask for it."""
        for member in self.members:
            member.on_fit_start()

    def training_step(self, block: list[Tensor], batch_idx: int) -> None:  # noqa: ARG002 - Lightning's signature
        """Trains all members on a block.

        Raises:
            MemberError: when a member's loss is infinite or NaN.
        """
        if not block:
            return
        optimizers: Any = self.optimizers()
        optimizers = optimizers if isinstance(optimizers, list) else [optimizers]
        n_steps_before = self.n_steps
        for number, (member, optimizer) in enumerate(zip(self.members, optimizers, strict=True)):
            with failing_as(number):
                own = [batch[..., self._columns[number]].contiguous() for batch in block]
                values = member.train_block(own, optimizer, n_steps_before)
            self.log_dict({f"{number}.{key}": value for key, value in values.items()})
        self.log("step", float(self.n_steps))

    def on_validation_epoch_start(self) -> None:
        """Starts the metrics anew."""
        for member in self.members:
            member.on_validation_epoch_start()

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        """Adds a batch [n_rows, d_in] to the metrics of all members."""
        for member, columns in zip(self.members, self._columns, strict=True):
            member.validation_step(batch[..., columns].contiguous(), batch_idx)

    def on_validation_epoch_end(self) -> None:
        """Logs the metrics of the whole validation set."""
        self.log("step", float(self.n_steps))
        for number, member in enumerate(self.members):
            self.log_dict({f"{number}.{key}": value for key, value in member.validation_metrics().items()})

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuses to save what is not finite; looked at once a step, however many files are written of it.

        Raises:
            MemberError: when a state of a member is infinite or NaN.
        """
        if self._checked_at == self.global_step:
            return
        for number in range(len(self.members)):
            with failing_as(number):
                require_finite_state(member_state(checkpoint, number), f"weights after optimizer step {self.n_steps}")
        self._checked_at = self.global_step

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuses to go on from what is not finite.

        Raises:
            MemberError: when a state of a member is infinite or NaN.
        """
        for number, member in enumerate(self.members):
            with failing_as(number):
                member.on_load_checkpoint(member_state(checkpoint, number))


def member_state(checkpoint: dict[str, Any], number: int) -> dict[str, Any]:
    """Returns a member's weights and its optimizer's state, named as when it is trained alone."""
    return {
        "state_dict": of_member(checkpoint["state_dict"], number),
        "optimizer_states": [checkpoint["optimizer_states"][number]],
    }


def of_member(values: dict[str, Any], number: int) -> dict[str, Any]:
    """Returns the values whose keys begin with a member's number, without it."""
    prefix = f"{number}."
    return {key.removeprefix(prefix): value for key, value in values.items() if key.startswith(prefix)}


@contextmanager
def failing_as(number: int) -> Iterator[None]:
    """Says which member an error is of.

    Raises:
        MemberError: for a ValueError, its cause.
    """
    try:
        yield
    except ValueError as error:
        raise MemberError(number) from error
