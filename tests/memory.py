"""Anonymous memory of a piece of work, measured in a process of its own."""

import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from pathlib import Path

GIB = 2**30


def anonymous_bytes() -> int:
    """Returns RssAnon of this process: pages of mapped files are the page cache's, and not counted."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))


def peak_above_start(work: Callable[[], object]) -> int:
    """Returns by how many bytes the anonymous memory grew at most while `work` ran, sampled every 5 ms."""
    start, peaks, done = anonymous_bytes(), [0], threading.Event()

    def watch() -> None:
        while not done.is_set():
            peaks.append(anonymous_bytes())
            time.sleep(0.005)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        work()
    finally:
        done.set()
        watcher.join()
    return max(peaks) - start


def run_script(script: str, *arguments: object) -> int:
    """Runs a script in a new process, and returns the number that it prints last."""
    command = [sys.executable, "-W", "ignore", "-c", textwrap.dedent(script), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    return int(done.stdout.split()[-1])
