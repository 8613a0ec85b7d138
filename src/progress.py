"""Progress of long loops: a bar on a terminal, plain log lines elsewhere."""

import logging
import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

_LOGGER = logging.getLogger(__name__)
_SECONDS_BETWEEN_LINES = 15.0
T = TypeVar("T")


def track(iterable: Iterable[T], description: str, total: int | None = None) -> Iterator[T]:
    """Yields the items of `iterable` while telling how far it is.

    Args:
        iterable: what to go through.
        description: what is being done, as a person would say it.
        total: the number of items, when `len(iterable)` is not to be had.

    Yields:
        The items, unchanged.
    """
    if total is None and hasattr(iterable, "__len__"):
        total = len(iterable)  # pyright: ignore[reportArgumentType]
    if sys.stderr.isatty():
        from rich.progress import track as rich_track  # only where it is drawn

        yield from rich_track(iterable, description, total=total, transient=True)
        return
    started = last = time.monotonic()
    for done, item in enumerate(iterable, start=1):
        yield item
        now = time.monotonic()
        if now - last >= _SECONDS_BETWEEN_LINES:
            last = now
            share = f"{done}/{total}" if total else str(done)
            _LOGGER.info("%s: %s after %.0f s", description, share, now - started)
