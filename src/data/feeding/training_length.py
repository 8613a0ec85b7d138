"""How long training lasts, in items, batches and epochs."""

from dataclasses import dataclass


@dataclass(frozen=True)
class TrainingLength:
    """The length of a training that visits all items in each epoch, in batches of which an epoch's last may be short.

    Attributes:
        n_items: rows (or images) of an epoch.
        batch_size: items of a batch.
        n_total: items of the whole training; the last epoch ends where they do.
    """

    n_items: int
    batch_size: int
    n_total: int

    @property
    def steps_per_epoch(self) -> int:
        """Batches of a whole epoch."""
        return -(-self.n_items // self.batch_size)

    @property
    def n_epochs(self) -> int:
        """Epochs, the last one whole or not."""
        return -(-self.n_total // self.n_items)

    @property
    def n_steps(self) -> int:
        """Batches of the whole training."""
        n_whole, rest = divmod(self.n_total, self.n_items)
        return n_whole * self.steps_per_epoch + -(-rest // self.batch_size)

    def place(self, step: int) -> tuple[int, int]:
        """Returns the epoch that training is in after some batches, and the items of it that were trained on."""
        epoch, within = divmod(step, self.steps_per_epoch)
        return epoch, within * self.batch_size

    def evenly(self, n: int) -> list[int]:
        """Returns `n` steps (fewer in a shorter training) at equal distances, the last one the end."""
        return sorted({max(1, round(self.n_steps * i / n)) for i in range(1, n + 1)})
