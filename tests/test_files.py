import contextlib
import errno
import os
import subprocess
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from src.files import digest_array, is_leftover, list_files, remove_leftovers, write_atomically, write_even_when_full


def test_file_appears_whole_or_not_at_all(tmp_path):
    path = tmp_path / "folder" / "file.txt"
    with write_atomically(path) as temporary:
        temporary.write_text("new")
        assert not path.exists()
    assert path.read_text() == "new"

    def write_half():
        with write_atomically(path) as temporary:
            temporary.write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        write_half()
    assert path.read_text() == "new"
    assert list(path.parent.iterdir()) == [path]


def test_full_disk_is_an_error_that_names_the_file(tmp_path):
    with (
        pytest.raises(OSError, match=r"Could not write .*file\.txt: No space left"),
        write_atomically(tmp_path / "file.txt"),
    ):
        raise OSError(28, "No space left on device")
    assert list(tmp_path.iterdir()) == []


def test_digest_is_of_values_and_shape_not_of_layout():
    array = np.arange(12, dtype=np.float32).reshape(3, 4)
    assert digest_array(array) == digest_array(array.astype(np.float16)) == digest_array(np.asfortranarray(array))
    assert digest_array(array) != digest_array(array.reshape(4, 3))
    changed = array.copy()
    changed[2, 3] += 1
    assert digest_array(array) != digest_array(changed)


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        RuntimeError("Can't decrement id ref count (file write failed: errno = 28, error message = 'No space left')"),
        Exception("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
)
def test_a_full_disk_is_one_kind_of_error_whatever_the_writer_raises(tmp_path, error):

    def write():
        with write_atomically(tmp_path / "file.pt") as temporary:
            temporary.write_bytes(bytes(3000))
            raise error

    with pytest.raises(
        OSError, match=r"file\.pt: No space left on device: it needs at least 3 kB, and .*B .*free"
    ) as told:
        write()
    assert told.value.errno == errno.ENOSPC
    assert list(tmp_path.iterdir()) == []


def test_other_errors_of_writers_stay_what_they_are(tmp_path):
    with pytest.raises(RuntimeError, match="no such key"), write_atomically(tmp_path / "file.pt"):
        raise RuntimeError("no such key")


def test_a_file_that_cannot_fit_is_not_begun(tmp_path):
    with pytest.raises(OSError, match="needs at least 1e\\+12 TB"), write_atomically(tmp_path / "a", n_bytes=10**24):
        pytest.fail("was begun")


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 4 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "none", folder], capture_output=True, text=True)
    if done.returncode != 0:
        pytest.skip(f"mounting is refused: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def by_torch(path):
    torch.save(torch.ones(3 << 20), path)


def by_numpy(path):
    np.save(path, np.ones(3 << 20))


def by_safetensors(path):
    save_file({"a": torch.ones(3 << 20)}, path)


def by_h5py(path):
    with h5py.File(path, "w") as file:
        file.create_dataset("features", data=np.ones((3, 1 << 20)), chunks=(1, 1 << 20))


def by_text(path):
    path.write_text("0" * (5 << 20))


@pytest.mark.parametrize("write", [by_torch, by_numpy, by_safetensors, by_h5py, by_text])
def test_every_writer_on_a_disk_that_is_full(small_disk, write):
    with (
        pytest.raises(
            OSError, match=r"file\.npy: No space left on device: it needs .*, and 4.19 MB of the disk"
        ) as told,
        write_atomically(small_disk / "file.npy") as temporary,
    ):
        write(temporary)
    assert told.value.errno == errno.ENOSPC
    assert list(small_disk.iterdir()) == []


def test_leftovers_of_killed_writers_are_removed_and_nothing_else(tmp_path):
    kept = [tmp_path / name for name in (".lock", ".hidden.tif", "a.partial.h5", "sub/.hydra/config.yaml")]
    for path in kept:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    for path in (
        tmp_path / "slide.1.h5",
        tmp_path / "no_suffix",
        tmp_path / ("n" * 240),
        tmp_path / "sub" / "last.ckpt",
    ):
        with write_atomically(path) as temporary:
            # What a kill leaves: the file under its temporary name.
            temporary.with_name(temporary.name.replace(".partial", "x.partial")).touch()
    remove_leftovers(tmp_path)
    assert [path.parent.name for path in tmp_path.rglob("*") if is_leftover(path)] == ["sub"]
    remove_leftovers(tmp_path, recursive=True)
    remove_leftovers(tmp_path / "missing")
    assert not [path for path in tmp_path.rglob("*") if is_leftover(path)]
    assert all(path.exists() for path in kept)
    assert (tmp_path / "sub" / "last.ckpt").exists()


def test_small_files_and_durable_ones_are_on_the_disk_before_they_have_their_name(tmp_path, monkeypatch):
    done = []
    fsync, replace = os.fsync, Path.replace
    monkeypatch.setattr(
        os, "fsync", lambda handle: (done.append(os.readlink(f"/proc/self/fd/{handle}")), fsync(handle))
    )
    monkeypatch.setattr(Path, "replace", lambda path, target: (done.append("renamed"), replace(path, target)))
    for n_bytes, durable, n_syncs in ((10, False, 2), (9 << 20, False, 0), (9 << 20, True, 2)):
        done.clear()
        with write_atomically(tmp_path / "file", durable=durable) as temporary:
            temporary.write_bytes(bytes(n_bytes))
        assert done == ([str(temporary), "renamed", str(tmp_path)] if n_syncs else ["renamed"])


def test_a_small_text_is_written_over_the_old_one_where_the_disk_is_full(small_disk):
    path = small_disk / "manifest.json"
    path.write_text('{"status": "running"}')
    with open(small_disk / "filler", "wb", buffering=0) as filler, contextlib.suppress(OSError):
        while filler.write(bytes(4096)):
            pass
    with pytest.raises(OSError, match="No space left"), write_atomically(path) as temporary:
        temporary.write_text("{}")
    write_even_when_full(path, '{"status": "failed", "error": "full"}')
    assert path.read_text() == '{"status": "failed", "error": "full"}'
    write_even_when_full(path, "{}")
    assert path.read_text() == "{}"
    with pytest.raises(OSError, match="No space left"):
        write_even_when_full(small_disk / "new.json", "{}")


def test_names_that_start_with_a_dot_are_not_listed(tmp_path):
    for name in ("b.h5", "a.h5", ".a.h5", "a.pt"):
        (tmp_path / name).touch()
    assert [path.name for path in list_files(tmp_path)] == ["a.h5", "a.pt", "b.h5"]
    assert [path.name for path in list_files(tmp_path, "*.h5")] == ["a.h5", "b.h5"]
    assert list_files(tmp_path / "missing") == []
