import pickle

import numpy as np
import pytest

from src.data.images.array_listings import list_cifar, list_npz
from src.data.images.arrays import ImageArrays, image_key, read_batch
from src.data.images.errors import ImageFileError


class Hostile:
    def __reduce__(self):
        return print, ("run",)


@pytest.fixture
def cifar(tmp_path):
    """CIFAR-10 as it is published, of two images a batch; pixel [0, 0] is red, the rest black."""
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    pixels = np.zeros((2, 3, 32, 32), np.uint8)
    pixels[:, 0, 0, 0] = 255
    pixels[:, 2, 31, 0] = 9
    for number, name in enumerate([*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]):
        content = {b"data": pixels.reshape(2, 3072), b"labels": [number % 2, 1], b"filenames": [b"a", b"b"]}
        (folder / name).write_bytes(pickle.dumps(content, protocol=2))
    (folder / "batches.meta").write_bytes(pickle.dumps({b"label_names": [b"cat", b"dog"]}, protocol=2))
    return tmp_path


@pytest.mark.parametrize("place", ["", "cifar-10-batches-py"])
def test_cifar_is_listed_with_its_parts(cifar, place):
    listing = list_cifar(cifar / place)
    assert listing.columns["image_id"][:3] == ["data_batch_1__00000", "data_batch_1__00001", "data_batch_2__00000"]
    assert listing.columns["label"] == [
        "cat",
        "dog",
        "dog",
        "dog",
        "cat",
        "dog",
        "dog",
        "dog",
        "cat",
        "dog",
        "dog",
        "dog",
    ]
    prefix = "" if place else "cifar-10-batches-py/"
    assert listing.columns["path"][-1] == f"{prefix}test_batch[1]"
    assert {part: len(ids) for part, ids in listing.parts.items()} == {"train": 10, "test": 2}


def test_cifar_pixels_are_in_place(cifar):
    image = ImageArrays().read(cifar / "cifar-10-batches-py" / "test_batch", 1)
    assert image.shape == (32, 32, 3)
    assert image[0, 0].tolist() == [255, 0, 0]
    assert image[31, 0].tolist() == [0, 0, 9]
    assert image.sum() == 264


def test_cifar100_has_classes_and_superclasses(tmp_path):
    for name in ("train", "test"):
        content = {b"data": np.zeros((1, 3072), np.uint8), b"fine_labels": [1], b"coarse_labels": [0]}
        (tmp_path / name).write_bytes(pickle.dumps(content, protocol=2))
    meta = {b"fine_label_names": [b"apple", b"bee"], b"coarse_label_names": [b"insects"]}
    (tmp_path / "meta").write_bytes(pickle.dumps(meta, protocol=2))
    columns = list_cifar(tmp_path, "cifar100").columns
    assert (columns["label"], columns["superclass"]) == (["bee", "bee"], ["insects", "insects"])


def test_a_batch_as_python_2_wrote_it_is_read_without_a_warning(tmp_path):
    # numpy.dtype('u1', 0, 1), as in the published files.
    array = (
        b"\x80\x02}q\x00(U\x04datacnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R(K\x01K\x01"
        b"K\x02\x86cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89"
        b"U\x02\x05\x06tbu."
    )
    (tmp_path / "batch").write_bytes(array)
    assert read_batch(tmp_path / "batch")[b"data"].tolist() == [[5, 6]]


def test_nothing_in_a_pickle_is_run(tmp_path, capsys):
    (tmp_path / "data_batch_1").write_bytes(pickle.dumps({b"data": Hostile()}))
    with pytest.raises(ImageFileError, match=r"data_batch_1, got a pickle that names builtins\.print"):
        read_batch(tmp_path / "data_batch_1")
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("content", [b"", b"\x80\x02}", b"nonsense", pickle.dumps([1])])
def test_a_damaged_batch_is_named(tmp_path, content):
    (tmp_path / "batch").write_bytes(content)
    with pytest.raises(ImageFileError, match=r"Expected a batch of CIFAR at .*batch"):
        read_batch(tmp_path / "batch")


def test_a_folder_without_cifar_says_what_belongs_there(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"cifar-10-batches-py/batches\.meta.*found neither"):
        list_cifar(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"dataset\.dir=<folder>"):
        list_cifar(None)


@pytest.fixture
def npz(tmp_path):
    images = np.arange(3, dtype=np.uint8)[:, None, None, None] * np.ones((3, 4, 5, 3), np.uint8)
    values = {"imgs": images, "labels": np.array([[2], [0], [1]]), "classes": np.array(["a", "b", "c"])}
    np.savez_compressed(tmp_path / "x.npz", **values)
    return tmp_path


def test_an_npz_file_is_listed_with_class_names(npz):
    listing = list_npz("x.npz", npz)
    assert listing.parts is None
    assert listing.columns == {
        "case_id": ["imgs__00000", "imgs__00001", "imgs__00002"],
        "image_id": ["imgs__00000", "imgs__00001", "imgs__00002"],
        "label": ["c", "a", "b"],
        "path": ["x.npz/imgs[0]", "x.npz/imgs[1]", "x.npz/imgs[2]"],
    }


def test_an_npz_file_may_have_parts_and_none_of_labels(tmp_path):
    np.savez(tmp_path / "m.npz", train_images=np.zeros((2, 4, 4), np.uint8), test_images=np.ones((1, 4, 4), np.uint8))
    by_part = {"train": "train_images", "test": "test_images"}
    listing = list_npz("m.npz", tmp_path, by_part, labels=None, classes=None)
    assert listing.parts == {"train": ["train_images__00000", "train_images__00001"], "test": ["test_images__00000"]}
    assert listing.columns["label"] == ["", "", ""]
    assert ImageArrays().read(tmp_path / "m.npz", 0, "test_images").tolist() == np.ones((4, 4, 3)).tolist()


def test_a_label_outside_of_the_classes_is_refused(npz):
    with pytest.raises(ImageFileError, match="labels from 0 to 1"):
        list_npz("x.npz", npz, classes=["a", "b"])


def test_arrays_that_are_missing_or_ambiguous_are_named(npz):
    with pytest.raises(ImageFileError, match=r"\['pixels'\] are missing"):
        list_npz("x.npz", npz, images="pixels")
    assert image_key(npz / "x.npz") == "imgs"
    np.savez(npz / "two.npz", a=np.zeros((1, 2, 2, 3), np.uint8), b=np.zeros((1, 2, 2, 3), np.uint8))
    with pytest.raises(
        ImageFileError, match=r"one array of images .*\['a', 'b'\].*two\.npz|two\.npz, got \['a', 'b'\]"
    ):
        image_key(npz / "two.npz")


def test_a_damaged_npz_file_is_named(npz):
    path = npz / "x.npz"
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(ImageFileError, match=r"Expected whole arrays in .*x\.npz"):
        list_npz("x.npz", npz)


@pytest.mark.realdata
def test_the_sample_of_cifar_is_listed(data_dir):
    columns = list_cifar(data_dir / "images").columns
    assert len(columns["path"]) == 2000
    assert columns["label"].count("truck") == 200
    assert columns["path"][17] == "cifar10_test_2000.npz/imgs[17]"
