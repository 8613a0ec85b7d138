"""How the process's memory is asked for."""

import ctypes
import os
import sys

# Of glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_LARGEST_MMAP_THRESHOLD = 32 << 20  # glibc takes no larger one on 64 bits
_NEVER = (1 << 31) - 1


def keep_freed_memory() -> None:
    """Lets glibc keep the memory of tensors below 32 MiB that were freed, for those to come.

    By default it hands memory back and asks for it again several times a step, and the kernel fills each page with
    zeros anew: a tenth of a training step on the CPU. The most that is held at once stays the same. Nothing is done
    where the allocator is another one, or was set up by its environment variables.
    """
    if sys.platform != "linux" or any(name.startswith("MALLOC_") for name in os.environ):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:  # musl has none
        mallopt(_M_MMAP_THRESHOLD, _LARGEST_MMAP_THRESHOLD)
        mallopt(_M_TRIM_THRESHOLD, _NEVER)
