import errno
import shutil
from collections import namedtuple

import numpy as np
import pytest
import torch

from src.files import digest_file
from src.ops.sparse_latents import SparseLatents
from src.stores.latents import shards
from src.stores.latents import writer as writers
from src.stores.latents.index import LatentItem
from src.stores.latents.store import LatentStore
from src.stores.latents.writer import LatentWriter
from tests.latents import make_dense, write_latents

N_ROWS, N_LATENTS = 50, 20
DENSE = make_dense(N_ROWS, N_LATENTS)
COORDS = np.arange(2 * N_ROWS).reshape(-1, 2)


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(writers, "SHARD_BYTES", 500)


def open_writer(path, n_rows=N_ROWS, made_by="sae", digest="d"):
    return LatentWriter(
        path, N_LATENTS, [LatentItem("a", 0, 7, digest), LatentItem("b", 0, n_rows - 7, digest)], made_by
    )


def append(writer, start, stop, **arguments):
    writer.append(SparseLatents.from_dense(DENSE[start:stop]), COORDS[start:stop], **arguments)


def digests(path):
    return {file.name: digest_file(file) for file in path.iterdir()}


def test_shards_do_not_depend_on_the_pieces(tmp_path):
    for n in (1, 7, N_ROWS):
        writer = open_writer(tmp_path / str(n))
        for start in range(0, N_ROWS, n):
            append(writer, start, min(start + n, N_ROWS))
        writer.finish()
    assert digests(tmp_path / "1") == digests(tmp_path / "7") == digests(tmp_path / str(N_ROWS))
    sizes = [path.stat().st_size for path in (tmp_path / "1").glob("shard_*")]
    assert len(sizes) > 5
    assert max(sizes) < 1000


@pytest.mark.parametrize("n_taken", [0, 5, 20, 49, 50])
def test_a_killed_writing_goes_on_and_ends_with_the_same_bytes(tmp_path, n_taken):
    whole = open_writer(tmp_path / "whole")
    append(whole, 0, N_ROWS)
    whole.finish()
    killed = open_writer(tmp_path / "killed")
    append(killed, 0, n_taken)
    assert not (tmp_path / "killed" / "index.json").exists()
    (tmp_path / "killed" / ".shard_00001.x1.partial.safetensors").touch()
    resumed = open_writer(tmp_path / "killed")
    assert (n_taken - 10 < resumed.n_kept_rows <= n_taken) if n_taken > 10 else resumed.n_kept_rows <= n_taken
    kept = resumed.n_kept_rows
    if kept:
        torch.testing.assert_close(resumed.kept(0, kept).to_dense(), DENSE[:kept], rtol=0, atol=0)
    first = max(0, kept - 3)  # a batch that was written in part is encoded again whole
    append(resumed, first, N_ROWS, first=first)
    resumed.finish()
    assert digests(tmp_path / "killed") == digests(tmp_path / "whole")


def test_a_finished_store_that_is_begun_again_has_no_index(tmp_path):
    writer = open_writer(tmp_path)
    append(writer, 0, N_ROWS)
    writer.finish()
    assert open_writer(tmp_path).n_kept_rows == N_ROWS
    with pytest.raises(FileNotFoundError, match="task=encode"):
        LatentStore(tmp_path)


@pytest.mark.parametrize("arguments", [{"made_by": "other"}, {"made_by": ""}, {"digest": "other"}, {"n_rows": 60}])
def test_latents_of_another_sae_or_of_other_items_are_not_kept(tmp_path, arguments):
    append(open_writer(tmp_path), 0, 40)
    assert len(list(tmp_path.glob("shard_*"))) > 3
    assert open_writer(tmp_path, **arguments).n_kept_rows == 0
    assert not list(tmp_path.glob("shard_*"))


def test_what_comes_after_a_damaged_shard_is_made_again(tmp_path):
    append(open_writer(tmp_path), 0, 40)
    cut = sorted(tmp_path.glob("shard_*"))[2]
    cut.write_bytes(cut.read_bytes()[:-1])
    writer = open_writer(tmp_path)
    assert [path.name for path in sorted(tmp_path.glob("shard_*"))] == [f"shard_0000{i}.safetensors" for i in (0, 1)]
    append(writer, writer.n_kept_rows, N_ROWS)
    store = writer.finish()
    together = torch.cat([store.rows("a").to_dense(), store.rows("b").to_dense()])
    torch.testing.assert_close(together, DENSE, rtol=0, atol=0)


def test_a_full_disk_leaves_no_half_file_and_no_index(tmp_path, monkeypatch):
    writer = open_writer(tmp_path)
    append(writer, 0, 10)
    before = sorted(path.name for path in tmp_path.iterdir())
    monkeypatch.setattr(shutil, "disk_usage", lambda _: namedtuple("Usage", "free")(300))
    with pytest.raises(OSError, match=r"shard_0000\d.*needs at least \d+ B, and 300 B of the disk is free") as caught:
        append(writer, 10, N_ROWS)
    assert caught.value.errno == errno.ENOSPC
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_a_full_disk_that_shows_while_writing_leaves_no_half_file(tmp_path, monkeypatch):
    writer = open_writer(tmp_path)

    class Full:
        def __init__(self, path, mode):
            self.file = open(path, mode)  # noqa: SIM115 closed on leaving

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.file.close()

        def write(self, content):
            if self.file.tell() > 200:
                raise OSError(errno.ENOSPC, "No space left on device")
            self.file.write(content)

    monkeypatch.setattr(shards, "open", Full, raising=False)
    with pytest.raises(OSError, match="No space left") as caught:
        append(writer, 0, N_ROWS)
    assert caught.value.errno == errno.ENOSPC
    assert [path.name for path in tmp_path.iterdir()] == ["made_by.txt"]


def test_shapes_are_checked(tmp_path):
    writer = open_writer(tmp_path)
    with pytest.raises(ValueError, match=r"Expected 20 latents .*, got 4"):
        writer.append(SparseLatents.from_dense(torch.ones(2, 4)))
    with pytest.raises(ValueError, match=r"coords of shape \(2, 2\), got \(3, 2\)"):
        writer.append(SparseLatents.from_dense(DENSE[:2]), COORDS[:3])
    append(writer, 0, 2)
    writer.append(SparseLatents.from_dense(DENSE[2:3]))
    with pytest.raises(ValueError, match="coords of all rows or of none"):
        append(writer, 3, N_ROWS)
    with pytest.raises(ValueError, match=r"latents of 50 rows .*, got"):
        open_writer(tmp_path).finish()
    with pytest.raises(ValueError, match="rows of items to encode, got 0"):
        LatentWriter(tmp_path, 4, [])


@pytest.mark.slow
def test_many_items_are_few_files(tmp_path, monkeypatch):
    monkeypatch.setattr(writers, "SHARD_BYTES", 1 << 18)
    dense = make_dense(20_000, N_LATENTS)
    store = write_latents(tmp_path, {f"{i:05d}": dense[i : i + 1] for i in range(len(dense))})
    assert len(list(tmp_path.iterdir())) < 12
    assert store.items["00042"].start == 42
    torch.testing.assert_close(store.rows("19999").to_dense(), dense[19_999:], rtol=0, atol=0)
