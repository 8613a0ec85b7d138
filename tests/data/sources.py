"""A source of rows in memory, for tests."""

import threading

import numpy as np

from src.data.feeding.rows import RowSource


class NumberedRows(RowSource):
    """Rows [n_rows, d_in] whose first value is their number; notes what was read, and fails at row `fail_at`."""

    def __init__(self, n_rows, d_in=2, slide_starts=(0,), dtype=np.float32, fail_at=None):
        self.n_rows, self.d_in, self.dtype = n_rows, d_in, np.dtype(dtype)
        self.slide_starts = np.array(slide_starts)
        self.identity = f"numbers up to {n_rows}"
        self.fail_at = fail_at
        self.reads = []
        self._lock = threading.Lock()

    def read(self, start, stop):
        with self._lock:
            self.reads.append((start, stop))
        if self.fail_at is not None and start <= self.fail_at < stop:
            raise OSError("disk gone")
        return np.arange(start, stop, dtype=self.dtype)[:, None] * np.ones(self.d_in, self.dtype)
