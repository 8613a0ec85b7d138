import errno
import multiprocessing
import random
import time

import pytest
import torch

from src.training.checkpoints import AtomicCheckpointIO


def test_a_save_that_breaks_off_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    path = tmp_path / "last.ckpt"
    checkpoints = AtomicCheckpointIO()
    checkpoints.save_checkpoint({"step": 1}, path)
    save = torch.save

    def full(content, file):
        save(content, file)
        with open(file, "r+b") as half:
            half.truncate(10)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match=r"Could not write .*last\.ckpt: No space left"):
        checkpoints.save_checkpoint({"step": 2}, path)
    assert checkpoints.load_checkpoint(path) == {"step": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["last.ckpt"]


def test_storage_options_are_refused(tmp_path):
    with pytest.raises(TypeError, match="Expected no storage options"):
        AtomicCheckpointIO().save_checkpoint({}, tmp_path / "a.ckpt", storage_options={"a": 1})


def _save_for_ever(path):
    checkpoints, step = AtomicCheckpointIO(), 0
    while True:
        step += 1
        checkpoints.save_checkpoint({"step": step, "weights": torch.full((500_000,), float(step))}, path)


@pytest.mark.slow
def test_killed_while_it_writes_the_checkpoint_stays_whole(tmp_path):
    """Eight kills; the time of each is drawn, so that they fall on all stages of a save."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, "src.training.checkpoints"])
    path, delays = tmp_path / "last.ckpt", random.Random(0)
    seen = set()
    for _ in range(8):
        path.unlink(missing_ok=True)
        process = context.Process(target=_save_for_ever, args=(path,))
        process.start()
        while not path.exists():
            time.sleep(0.001)
        time.sleep(delays.uniform(0, 0.05))
        process.kill()
        process.join()
        checkpoint = AtomicCheckpointIO().load_checkpoint(path)
        assert torch.equal(checkpoint["weights"], torch.full((500_000,), float(checkpoint["step"])))
        seen.add(checkpoint["step"])
    assert len(seen) > 1
