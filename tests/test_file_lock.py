import logging
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from src import file_lock
from src.file_lock import LockHeldError, hold_lock, wait_for_lock


def test_the_second_waits_and_says_for_whom(tmp_path, caplog, monkeypatch):
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(file_lock, "_POLL_SECONDS", 0.01)
    path, order = tmp_path / ".lock", []

    def second():
        with wait_for_lock(path, "packing"):
            order.append("second")

    with hold_lock(path):
        thread = threading.Thread(target=second)
        thread.start()
        while "Waiting for process" not in caplog.text:
            time.sleep(0.01)
        order.append("first")
    thread.join()
    assert order == ["first", "second"]
    assert "which is packing in" in caplog.text
    assert list(tmp_path.iterdir()) == []


def test_a_lock_taken_over_meanwhile_is_not_removed(tmp_path):
    """Two processes find the same dead holder; the slower must not remove the lock of the faster."""
    path = tmp_path / ".lock"
    with hold_lock(path):
        dead = file_lock.Holder("here", 1, "1", None, 0.0)
        file_lock._remove_stale(path, dead)
        with pytest.raises(LockHeldError, match="holds it"), hold_lock(path):
            pass
    assert list(tmp_path.iterdir()) == []


def test_a_zombie_holds_nothing(tmp_path):
    path = tmp_path / ".lock"
    hold = f"with hold_lock(Path({str(path)!r})): time.sleep(600)"
    imports = "import time; from pathlib import Path; from src.file_lock import hold_lock"
    process = subprocess.Popen([sys.executable, "-c", f"{imports}\n{hold}"])
    while not path.exists():
        time.sleep(0.01)
    with pytest.raises(LockHeldError, match=f"process {process.pid}"), hold_lock(path):
        pass
    os.kill(process.pid, signal.SIGKILL)
    # Waits for its end without taking its exit code: it stays a zombie.
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    try:
        with hold_lock(path):
            assert file_lock._read_holder(path).pid == os.getpid()
    finally:
        process.wait()


@pytest.mark.parametrize("content", [b"", b'{"host": "elsewhe', b"[]", b"null", b'{"host": 1}', b"\xff\xfe\0"])
def test_a_lock_that_cannot_be_read_is_taken_with_a_warning(tmp_path, caplog, content):
    path = tmp_path / ".lock"
    path.write_bytes(content)
    with hold_lock(path):
        assert file_lock._read_holder(path).pid == os.getpid()
    assert "got no such text" in caplog.text
    assert list(tmp_path.iterdir()) == []
