import errno

import pytest
import torch

from src.modules.atomic_checkpoints import AtomicCheckpointIO


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
