"""What the process does with memory that was freed."""

import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the allocator is glibc's")
SCRIPT = """
import resource, sys
import numpy as np
from src.memory import keep_freed_memory

def work():
    arrays = [np.empty(2 << 20, np.float32) for _ in range(6)]
    for array in arrays:
        array[::1024] = 1

if sys.argv[1] == "keep":
    keep_freed_memory()
work()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    work()
sys.stdout.write(str(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before))
"""


def count_faults(what, **variables):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")} | variables
    command = [sys.executable, "-c", SCRIPT, what]
    return int(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)


def test_freed_memory_is_used_again_without_the_kernel():
    assert count_faults("keep") < 100 < 5000 < count_faults("let go")


def test_a_users_own_settings_of_the_allocator_stay():
    assert count_faults("keep", MALLOC_TRIM_THRESHOLD_="1000000", MALLOC_MMAP_THRESHOLD_="1000000") > 5000
