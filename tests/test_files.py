import numpy as np
import pytest

from src.files import digest_array, list_files, remove_leftovers, write_atomically


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


def test_leftovers_of_killed_writers_are_removed_and_nothing_else(tmp_path):
    for name in (".lock", ".hidden.tif", "a.partial.h5"):
        (tmp_path / name).touch()
    with write_atomically(tmp_path / "slide.1.tif") as temporary:
        temporary.with_name(temporary.name.replace(".partial", "x.partial")).touch()  # what a kill leaves
    remove_leftovers(tmp_path)
    remove_leftovers(tmp_path / "missing")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".hidden.tif", ".lock", "a.partial.h5", "slide.1.tif"]


def test_names_that_start_with_a_dot_are_not_listed(tmp_path):
    for name in ("b.h5", "a.h5", ".a.h5", "a.pt"):
        (tmp_path / name).touch()
    assert [path.name for path in list_files(tmp_path)] == ["a.h5", "a.pt", "b.h5"]
    assert [path.name for path in list_files(tmp_path, "*.h5")] == ["a.h5", "b.h5"]
    assert list_files(tmp_path / "missing") == []
