import gzip

import pytest

from src.data.images.errors import ImageFileError
from src.data.images.tars import list_tars, read_member
from tests.data.images import miniatures


@pytest.fixture
def shard(tmp_path):
    miniatures.cc3m(tmp_path, {"a.tar": 3})
    return tmp_path / "a.tar"


def test_a_member_is_read_as_it_was_written(shard):
    assert read_member(shard, "000000001.txt") == b"a picture"
    with pytest.raises(ImageFileError, match=r"Expected z\.jpg in .*a\.tar, got 9 files"):
        read_member(shard, "z.jpg")


def test_a_changed_file_is_read_anew(shard):
    assert "000000002.txt" in read_names(shard)
    miniatures.cc3m(shard.parent, {"a.tar": 2})
    assert "000000002.txt" not in read_names(shard)


def read_names(shard):
    return " ".join(list_tars(shard.parent, {"all": "*.tar"}).columns["path"]).replace(".jpg", ".txt")


@pytest.mark.parametrize("n_bytes", [100, 700, 1024, 2000, 3072])
def test_a_file_that_is_cut_off_is_refused(shard, n_bytes):
    shard.write_bytes(shard.read_bytes()[:n_bytes])
    with pytest.raises(ImageFileError, match=r"whole tar file .*a\.tar"):
        list_tars(shard.parent, {"all": "*.tar"})


def test_a_compressed_file_is_refused(shard):
    shard.write_bytes(gzip.compress(shard.read_bytes()))
    with pytest.raises(ImageFileError, match="not compressed"):
        list_tars(shard.parent, {"all": "*.tar"})


def test_a_pattern_without_files_is_told(shard):
    with pytest.raises(FileNotFoundError, match=r"like b-\*\.tar .* for train"):
        list_tars(shard.parent, {"train": "b-*.tar"})
