import os
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from omegaconf import OmegaConf
from PIL import Image

from src.data.images.errors import ImageFileError
from src.data.images.source import open_images


@pytest.fixture
def folder(tmp_path):
    """Three images of one colour each, and an array of two."""
    root = tmp_path / "images"
    (root / "sub").mkdir(parents=True)
    for name, level in (("a.png", 1), ("sub/b.png", 2), ("c.png", 3)):
        Image.new("RGB", (4, 3), (level,) * 3).save(root / name)
    levels = np.array([7, 8], np.uint8)
    np.savez(root / "array.npz", imgs=np.broadcast_to(levels[:, None, None, None], (2, 5, 6, 3)), labels=levels)
    return root


def source(folder, *rows, header="image_id,path", **options):
    path = folder.parent / "dataset.csv"
    path.write_text("\n".join([header, *rows]) + "\n")
    return open_images(OmegaConf.create({"metadata_csv": str(path), "dir": str(folder)} | options))


def test_images_are_read_by_id_in_the_order_of_the_csv(folder):
    images = source(folder, "z,a.png", "007,sub/b.png", "c,c.png")
    assert images.item_ids == ["z", "007", "c"]
    assert [images.read(item_id)[0, 0, 0] for item_id in images.item_ids] == [1, 2, 3]
    assert images.read("z").shape == (3, 4, 3)
    assert images.path("007") == folder / "sub" / "b.png"


def test_the_identity_changes_with_the_file_and_not_with_the_folder(folder, tmp_path):
    identity = source(folder, "z,sub/b.png").identity("z")
    status = os.stat(folder / "sub" / "b.png")
    assert identity == ("sub/b.png", status.st_size, status.st_mtime_ns)
    moved = folder.rename(tmp_path / "moved")
    assert source(moved, "z,sub/b.png").identity("z") == identity
    os.utime(moved / "sub" / "b.png", ns=(0, 5))
    assert source(moved, "z,sub/b.png").identity("z") != identity


@pytest.mark.parametrize("place", ["array.npz[1]", "array.npz/imgs[1]"])
def test_an_image_of_an_array_is_one_entry(folder, place):
    images = source(folder, "x,array.npz[0]", f"y,{place}")
    assert images.read("x").shape == (5, 6, 3)
    assert (images.read("y") == 8).all()
    assert images.identity("y")[0] == place
    assert images.path("y") == folder / "array.npz"


def test_several_threads_read_one_array(folder):
    images = source(folder, *(f"i{i},array.npz[{i % 2}]" for i in range(200)))
    with ThreadPoolExecutor(8) as pool:
        levels = [int(image[0, 0, 0]) for image in pool.map(images.read, images.item_ids)]
    assert levels == [7, 8] * 100


def test_the_limit_of_pixels_and_the_window_are_those_of_the_data_set(folder):
    with pytest.raises(ImageFileError, match="Expected at most 11 pixels"):
        source(folder, "z,a.png", max_pixels=11).read("z")
    Image.fromarray(np.full((2, 2), 1000, np.uint16)).save(folder / "deep.png")
    assert source(folder, "z,deep.png").read("z")[0, 0, 0] == 4
    assert source(folder, "z,deep.png", window=[1000, 10]).read("z")[0, 0, 0] > 100


@pytest.mark.parametrize("path", ["../secret.png", "sub/../../secret.png", "/etc/hosts", ""])
def test_a_path_that_leaves_the_folder_is_refused_at_once(folder, path):
    with pytest.raises(ValueError, match=r"below dataset\.dir in .*dataset\.csv, line 3"):
        source(folder, "a,a.png", f"b,{path}")


def test_a_path_with_dots_that_stays_inside_is_taken(folder):
    Image.new("RGB", (1, 1)).save(folder / "a..b.png")
    assert source(folder, "a,a..b.png").read("a").shape == (1, 1, 3)


def test_a_link_out_of_the_folder_is_refused(folder, tmp_path):
    Image.new("RGB", (1, 1)).save(tmp_path / "secret.png")
    (folder / "link.png").symlink_to(tmp_path / "secret.png")
    (folder / "out").symlink_to(tmp_path)
    (folder / "in.png").symlink_to(folder / "a.png")
    images = source(folder, "a,link.png", "b,out/secret.png", "c,in.png")
    for item_id in ("a", "b"):
        with pytest.raises(ValueError, match=r"below dataset\.dir.*a link to"):
            images.read(item_id)
    assert images.read("c")[0, 0, 0] == 1


def test_a_folder_that_is_itself_a_link_is_followed(folder, tmp_path):
    (tmp_path / "link").symlink_to(folder)
    assert source(tmp_path / "link", "a,sub/b.png").read("a")[0, 0, 0] == 2


def test_a_missing_file_is_named_with_its_line(folder):
    images = source(folder, "a,a.png", "b,gone.png")
    for look in (images.read, images.identity, images.path):
        with pytest.raises(FileNotFoundError, match=r"gone\.png, as .*dataset\.csv, line 3 says"):
            look("b")


@pytest.mark.parametrize(
    ("rows", "header", "said"),
    [
        (["a,a.png", "a,c.png"], "image_id,path", "'a' more than once"),
        (["a,a.png"], "image_id,file", "Expected a column path"),
        (["a,a.png"], "name,path", "Expected one of the columns slide_id"),
    ],
)
def test_a_wrong_csv_is_refused(folder, rows, header, said):
    with pytest.raises(ValueError, match=said):
        source(folder, *rows, header=header)


def test_an_item_or_entry_that_is_not_there_is_told(folder):
    images = source(folder, "a,array.npz[2]")
    with pytest.raises(FileNotFoundError, match="Expected an image 'b'"):
        images.read("b")
    with pytest.raises(ImageFileError, match=r"place 2 of .*array\.npz, got 2 images"):
        images.read("a")


def test_no_csv_and_no_folder_are_told(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.csv.*task=metadata"):
        open_images(OmegaConf.create({"metadata_csv": str(tmp_path / "none.csv"), "dir": str(folder)}))
    with pytest.raises(ValueError, match=r"dataset\.dir=<folder>"):
        open_images(OmegaConf.create({"metadata_csv": str(tmp_path / "none.csv"), "dir": None}))


def test_200_000_images_open_within_two_seconds(folder):
    rows = [f"image_{i:07d},class_{i % 100}/image_{i:07d}.jpg" for i in range(200_000)]
    started = time.process_time()
    assert len(source(folder, *rows).item_ids) == 200_000
    assert time.process_time() - started < 2


@pytest.mark.realdata
def test_photographs_are_read(data_dir):
    images = open_images(
        OmegaConf.create({"metadata_csv": str(data_dir / "images/bccd_images.csv"), "dir": str(data_dir / "images")})
    )
    assert images.read(images.item_ids[0]).shape == (480, 640, 3)
