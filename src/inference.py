"""The one loop that runs a model over batches: device, precision, halving, reading ahead, progress."""

import logging
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, closing, nullcontext
from typing import Any, TypeVar

import torch
from torch import Tensor

from src.prefetch import prefetch
from src.progress import track

_LOGGER = logging.getLogger(__name__)
_AUTOCAST = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
T = TypeVar("T")


def choose_device(accelerator: str, devices: Any = 1) -> torch.device:
    """Returns the device of a trainer's accelerator: CUDA where there is one and it is allowed, else the CPU.

    Args:
        accelerator: of the Trainer: `auto`, `gpu`, `cuda`, `cpu`.
        devices: of the Trainer; the first of a list of indices is taken.
    """
    if accelerator == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", 0 if isinstance(devices, int | str) else devices[0])


class Inference:
    """Runs functions over batches on one device, without gradients.

    When CUDA memory runs out, the rest goes on in batches of half the rows, now and in later calls, with a warning.

    Attributes:
        device: where batches are moved to; the model must be there.
        seconds_waited: how long functions waited for batches to be read, in all runs.

    Args:
        device: see above.
        precision: of the Trainer. `bf16-mixed` and `16-mixed` autocast as it does; others change nothing.
    """

    def __init__(self, device: torch.device | str = "cpu", precision: str | int = "32-true") -> None:
        self.device = torch.device(device)
        self.precision = str(precision)
        self.seconds_waited = 0.0
        self._most_rows: int | None = None

    @property
    def shaping(self) -> tuple[str, str]:
        """What of it may change the last bits of a result."""
        return self.device.type, self.precision

    def run(
        self,
        function: Callable[[Tensor], T],
        reads: Iterable[Callable[[], Tensor]],
        description: str = "",
        total: int | None = None,
        n_workers: int = 1,
    ) -> Iterator[T]:
        """Yields what the function makes of each batch, in order; of a batch that was cut, each piece's.

        Args:
            function: takes rows [n, ...] on the device. It may be called again for rows on which it ran out of memory.
            reads: each reads a batch [n, ...].
            description: what is being done, for the progress; "" shows none.
            total: the number of batches.
            n_workers: threads that read batches while the function runs; 0 reads each when it is asked for.

        Raises:
            torch.cuda.OutOfMemoryError: when a single row does not fit.
        """
        with closing(prefetch(reads, n_workers, n_workers + 1)) as batches:
            timed = self._timed(batches)
            for batch in track(timed, description, total) if description else timed:
                yield from self._apply(function, batch)

    def _timed(self, batches: Iterator[Tensor]) -> Iterator[Tensor]:
        while True:
            started = time.perf_counter()
            batch = next(batches, None)
            self.seconds_waited += time.perf_counter() - started
            if batch is None:
                return
            yield batch

    def _apply(self, function: Callable[[Tensor], T], batch: Tensor) -> Iterator[T]:
        start = 0
        while start < len(batch):
            rows = batch[start : start + (self._most_rows or len(batch))]
            try:
                with torch.no_grad(), self._autocast():
                    result = function(rows.to(self.device))
            except torch.cuda.OutOfMemoryError:
                if len(rows) == 1:
                    raise
                self._most_rows = len(rows) // 2
            else:
                start += len(rows)
                yield result
                continue
            # Here the exception is gone, and with it what its frames held.
            torch.cuda.empty_cache()
            _LOGGER.warning("Out of GPU memory: going on with batches of %d rows.", self._most_rows)

    def _autocast(self) -> AbstractContextManager[Any]:
        dtype = _AUTOCAST.get(self.precision)
        return nullcontext() if dtype is None else torch.autocast(self.device.type, dtype)
