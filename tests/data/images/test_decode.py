"""Pixels are compared with what went into the file, not with another decoder."""

import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from src.data.images.decode import read_image
from src.data.images.errors import ImageFileError

RED, WHITE = [255, 0, 0], [255, 255, 255]


def checked(pixels):
    assert pixels.dtype == np.uint8
    assert pixels.ndim == 3
    assert pixels.shape[2] == 3
    return pixels


def test_png_is_read_as_it_is(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    np.testing.assert_array_equal(checked(read_image(tmp_path / "a.png")), pixels)


@pytest.mark.parametrize("suffix", ["tif", "bmp", "webp", "ppm"])
def test_other_formats_are_read_as_they_are(tmp_path, suffix):
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / f"a.{suffix}", **({"lossless": True} if suffix == "webp" else {}))
    np.testing.assert_array_equal(checked(read_image(tmp_path / f"a.{suffix}")), pixels)


def test_the_content_decides_and_not_the_name(tmp_path):
    Image.new("RGB", (3, 2), "red").save(tmp_path / "a.jpg", format="PNG")
    assert read_image(tmp_path / "a.jpg")[0, 0].tolist() == RED


@pytest.mark.parametrize(("orientation", "corner"), [(1, (0, 0)), (3, (-1, -1)), (6, (0, -1)), (8, (-1, 0))])
def test_a_turned_jpeg_is_set_upright(tmp_path, orientation, corner):
    pixels = np.zeros((16, 32, 3), np.uint8)
    pixels[:8, :8] = 255
    exif = Image.Exif()
    exif[274] = orientation
    Image.fromarray(pixels).save(tmp_path / "a.jpg", quality=95, exif=exif)
    upright = checked(read_image(tmp_path / "a.jpg"))
    assert upright.shape[:2] == ((16, 32) if orientation in (1, 3) else (32, 16))
    assert (upright[corner] > 250).all()
    assert (upright > 250).all(axis=2).sum() == pytest.approx(64, abs=8)


def test_cmyk_jpegs_show_their_colours(tmp_path):
    Image.new("CMYK", (16, 16), (0, 255, 255, 0)).save(tmp_path / "a.jpg", quality=95)
    np.testing.assert_allclose(checked(read_image(tmp_path / "a.jpg"))[8, 8], RED, atol=3)


def test_cmyk_tiffs_show_their_colours(tmp_path):
    Image.new("CMYK", (16, 16), (0, 255, 255, 0)).save(tmp_path / "a.tif")
    assert read_image(tmp_path / "a.tif")[8, 8].tolist() == RED


def test_a_palette_becomes_its_colours_and_transparency_white(tmp_path):
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.putpixel((1, 0), 1)
    image.save(tmp_path / "a.png")
    assert checked(read_image(tmp_path / "a.png")).tolist() == [[RED, [0, 0, 255]]]
    image.save(tmp_path / "b.png", transparency=1)
    assert read_image(tmp_path / "b.png").tolist() == [[RED, WHITE]]


@pytest.mark.parametrize(
    ("mode", "colour", "shown"),
    [
        ("RGBA", (255, 0, 0, 0), WHITE),
        ("RGBA", (255, 0, 0, 255), RED),
        ("RGBA", (0, 0, 0, 51), [204] * 3),
        ("LA", (0, 0), WHITE),
        ("L", 7, [7] * 3),
        ("1", 1, WHITE),
        ("1", 0, [0] * 3),
    ],
)
def test_modes_become_rgb(tmp_path, mode, colour, shown):
    Image.new(mode, (3, 2), colour).save(tmp_path / "a.png")
    assert checked(read_image(tmp_path / "a.png"))[1, 2].tolist() == shown


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_grey_of_16_bits_is_divided_by_257(tmp_path, suffix):
    values = np.array([[0, 128, 129, 257, 4095, 65535]], np.uint16)
    Image.fromarray(values).save(tmp_path / f"a.{suffix}")
    pixels = checked(read_image(tmp_path / f"a.{suffix}"))
    assert pixels[0].tolist() == [[value] * 3 for value in (0, 0, 1, 1, 16, 255)]


def test_a_window_shows_a_part_of_16_bits(tmp_path):
    Image.fromarray(np.array([[0, 1000, 1500, 2000, 4095]], np.uint16)).save(tmp_path / "a.png")
    # DICOM's linear window of centre 1500.5 and width 1001 goes from 1000 to 2000.
    pixels = read_image(tmp_path / "a.png", window=[1500.5, 1001])
    assert pixels[0, :, 0].tolist() == [0, 0, 128, 255, 255]


def test_colour_of_16_bits_keeps_its_high_byte(tmp_path):
    header = struct.pack(">IIBBBBB", 1, 1, 16, 2, 0, 0, 0)
    write_png(tmp_path / "a.png", header, b"\0" + struct.pack(">HHH", 0x1234, 0xFFFF, 0x00FF))
    assert checked(read_image(tmp_path / "a.png")).tolist() == [[[0x12, 0xFF, 0]]]


def test_values_without_a_range_need_a_window(tmp_path):
    Image.fromarray(np.array([[-1.0, 0.0, 1.0]], np.float32)).save(tmp_path / "a.tif")
    with pytest.raises(ImageFileError, match=r"a\.tif, got float32 without a range.*dataset\.window"):
        read_image(tmp_path / "a.tif")
    assert read_image(tmp_path / "a.tif", window=[0.5, 3])[0, :, 0].tolist() == [0, 128, 255]


def write_png(path, header, rows):
    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*one) for one in chunks))


@pytest.mark.parametrize(("edge", "limit"), [(30_000, 89_478_485), (10_000, 89_478_485), (200, 39_999)])
def test_an_image_of_too_many_pixels_is_refused_by_its_header(tmp_path, edge, limit):
    write_png(tmp_path / "bomb.png", struct.pack(">IIBBBBB", edge, edge, 8, 2, 0, 0, 0), b"")
    with pytest.raises(ImageFileError, match=r"Expected at most [0-9,]+ pixels in .*bomb\.png"):
        read_image(tmp_path / "bomb.png", max_pixels=limit)


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif"])
def test_a_file_that_was_cut_off_is_named(tmp_path, suffix):
    path = tmp_path / f"cut.{suffix}"
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ImageFileError, match=rf"Expected .*cut\.{suffix}, got .*Copy it again"):
        read_image(path)


@pytest.mark.parametrize(
    "content", [b"", b"not an image", b"\xff\xd8\xff\xe0" + bytes(100), b"\x89PNG\r\n\x1a\n" + bytes(40)]
)
def test_what_is_no_image_is_named(tmp_path, content):
    (tmp_path / "a.jpg").write_bytes(content)
    with pytest.raises(ImageFileError, match=r"a\.jpg, got"):
        read_image(tmp_path / "a.jpg")


def test_a_missing_file_is_told(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.png, found no such file"):
        read_image(tmp_path / "none.png")
