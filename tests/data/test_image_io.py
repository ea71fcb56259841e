from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from querypose.data.image_io import IMAGE_FORMATS, ImageReadError, read_image, read_image_size

# What a reader sees when each EXIF orientation is applied to a picture whose top left pixel is red, stored at these
# corners: row and column of the red pixel in the file.
RED, BLUE = (255, 0, 0), (0, 0, 255)
ORIENTATIONS = {1: (0, 0), 2: (0, -1), 3: (-1, -1), 4: (-1, 0), 5: (0, 0), 6: (-1, 0), 7: (-1, -1), 8: (0, -1)}


def _gradient(height: int = 24, width: int = 32) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    return np.stack([x * 7, y * 9, (x + y) * 4], axis=-1).astype(np.uint8)


def test_rgb_and_bgr_are_the_same_picture_with_channels_reversed(tmp_path: Path) -> None:
    pixels = _gradient()
    Image.fromarray(pixels).save(tmp_path / "a.png")
    rgb, bgr = read_image(tmp_path / "a.png", "RGB"), read_image(tmp_path / "a.png", "BGR")
    np.testing.assert_array_equal(rgb, pixels)
    np.testing.assert_array_equal(bgr, pixels[:, :, ::-1])
    assert rgb.dtype == np.uint8
    assert bgr.flags.c_contiguous
    assert rgb.flags.writeable


@pytest.mark.parametrize("suffix", ["png", "jpg"])
@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_exif_rotation_is_applied(tmp_path: Path, orientation: int, suffix: str) -> None:
    swaps = orientation >= 5
    upright_height, upright_width = 16, 48
    stored = np.zeros((upright_width, upright_height, 3) if swaps else (upright_height, upright_width, 3), np.uint8)
    stored[:] = BLUE
    row, column = ORIENTATIONS[orientation]
    rows = slice(0, 8) if row == 0 else slice(-8, None)
    columns = slice(0, 8) if column == 0 else slice(-8, None)
    stored[rows, columns] = RED
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"turned.{suffix}"
    Image.fromarray(stored).save(path, exif=exif)
    image = read_image(path)
    assert image.shape == (upright_height, upright_width, 3)
    assert np.abs(image[3, 3].astype(int) - RED).max() < 12
    assert np.abs(image[12, 40].astype(int) - BLUE).max() < 12
    assert read_image_size(path) == (upright_height, upright_width)


def test_gray_becomes_three_equal_channels(tmp_path: Path) -> None:
    gray = _gradient()[:, :, 0]
    Image.fromarray(gray).save(tmp_path / "gray.png")
    np.testing.assert_array_equal(read_image(tmp_path / "gray.png"), np.repeat(gray[:, :, None], 3, axis=2))


def test_one_bit_becomes_black_and_white(tmp_path: Path) -> None:
    bits = np.eye(9, dtype=bool)
    Image.fromarray(bits).save(tmp_path / "bits.png")
    np.testing.assert_array_equal(read_image(tmp_path / "bits.png")[:, :, 1], bits * np.uint8(255))


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_sixteen_bit_gray_keeps_its_range(tmp_path: Path, suffix: str) -> None:
    values = np.array([[0, 128, 257], [25700, 32768, 65535]], dtype=np.uint16)
    path = tmp_path / f"deep.{suffix}"
    Image.fromarray(values).save(path)
    expected = np.round(values / 257).astype(np.uint8)
    np.testing.assert_array_equal(read_image(path)[:, :, 0], expected)


def test_cmyk_has_the_right_colors(tmp_path: Path) -> None:
    pixels = np.full((16, 16, 3), (200, 40, 90), np.uint8)
    Image.fromarray(pixels).convert("CMYK").save(tmp_path / "print.jpg", quality=95)
    with Image.open(tmp_path / "print.jpg") as stored:
        assert stored.mode == "CMYK"
    assert np.abs(read_image(tmp_path / "print.jpg").astype(int) - pixels).max() <= 6


def test_palette_has_the_colors_of_its_palette(tmp_path: Path) -> None:
    palette_image = Image.new("P", (8, 4), 1)
    palette_image.putpalette([10, 20, 30, 200, 100, 50])
    palette_image.putpixel((0, 0), 0)
    palette_image.save(tmp_path / "palette.png")
    image = read_image(tmp_path / "palette.png")
    assert image[0, 0].tolist() == [10, 20, 30]
    assert image[3, 7].tolist() == [200, 100, 50]


@pytest.mark.parametrize("mode", ["P", "RGBA", "LA"])
def test_what_is_transparent_becomes_white(tmp_path: Path, mode: str) -> None:
    path = tmp_path / "clear.png"
    if mode == "P":
        image = Image.new("P", (4, 4), 0)
        image.putpalette([0, 0, 0, 90, 90, 90])
        image.putpixel((1, 1), 1)
        image.save(path, transparency=0)
    else:
        image = Image.new(mode, (4, 4), (0, 0) if mode == "LA" else (0, 0, 0, 0))
        image.putpixel((1, 1), (90, 255) if mode == "LA" else (90, 90, 90, 255))
        image.save(path)
    pixels = read_image(path)
    assert pixels[0, 0].tolist() == [255, 255, 255]
    assert pixels[1, 1].tolist() == [90, 90, 90]


def test_of_an_animation_the_first_frame_counts(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (6, 5), color) for color in (RED, BLUE)]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    assert read_image(tmp_path / "moving.gif")[0, 0].tolist() == list(RED)


def test_missing_file_is_named(tmp_path: Path) -> None:
    for read in (read_image, read_image_size):
        with pytest.raises(ImageReadError, match=r"no image '.*gone\.jpg'; check the folder of the images"):
            read(tmp_path / "gone.jpg")


def test_folder_is_not_an_image(tmp_path: Path) -> None:
    with pytest.raises(ImageReadError, match="cannot be opened"):
        read_image(tmp_path)


@pytest.mark.parametrize("keep", [0.3, 0.7, 0.98])
@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_truncated_file_is_refused(tmp_path: Path, suffix: str, keep: float) -> None:
    path = tmp_path / f"cut.{suffix}"
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep)])
    with pytest.raises(ImageReadError, match=rf"cut\.{suffix}' cannot be decoded: .*download it again"):
        read_image(path)


@pytest.mark.parametrize(("content", "what"), [(b"", "is an empty file"), (b"<html>404</html>", "is not an image")])
def test_not_an_image(tmp_path: Path, content: bytes, what: str) -> None:
    path = tmp_path / "page.jpg"
    path.write_bytes(content)
    with pytest.raises(ImageReadError, match=rf"page\.jpg' {what}.*; download it again"):
        read_image(path)


@pytest.mark.parametrize(
    ("pixels", "what"),
    [(np.full((3, 3), 0.5, np.float32), "floating-point"), (np.full((3, 3), 70000, np.int32), "32-bit integers")],
)
def test_pixels_without_a_defined_range_are_refused(tmp_path: Path, pixels: np.ndarray, what: str) -> None:
    Image.fromarray(pixels).save(tmp_path / "depth.tif")
    with pytest.raises(ImageReadError, match=f"{what}.*convert it to 8-bit"):
        read_image(tmp_path / "depth.tif")


def test_unknown_channel_order_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"'GBR'; allowed: 'RGB', 'BGR'"):
        read_image(tmp_path / "any.png", "GBR")


def test_real_photos(shared_data: Path) -> None:
    for path in sorted((shared_data / "samples" / "coco").glob("*.jpg")):
        image = read_image(path)
        assert image.shape[:2] == read_image_size(path)
        assert image.std() > 10


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    for read in (read_image, read_image_size):
        with pytest.raises(ImageReadError, match=r"pipe\.jpg' cannot be opened: it is a pipe or device"):
            read(tmp_path / "pipe.jpg")


def test_only_images_are_opened_as_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An EPS file is a program, which Pillow would hand to Ghostscript."""
    ran = tmp_path / "ran"
    program = tmp_path / "gs"
    program.write_text(f"#!/bin/sh\ntouch {ran}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr("PIL.EpsImagePlugin.gs_binary", None)
    Image.new("RGB", (8, 8)).save(tmp_path / "photo.eps")
    (tmp_path / "photo.eps").rename(tmp_path / "photo.jpg")
    for read in (read_image, read_image_size):
        with pytest.raises(ImageReadError, match="is not an image of a known format"):
            read(tmp_path / "photo.jpg")
    assert not ran.exists()


Image.init()
# Without those that Pillow cannot write after all; SPIDER would from then on be what it writes into any .jpg.
WRITABLE = sorted(set(Image.SAVE) - {"HDF5", "BUFR", "GRIB", "WMF", "BLP", "IM", "SPIDER"})


@pytest.mark.parametrize("format", WRITABLE)
def test_every_format_of_the_list_is_read_and_no_other(tmp_path: Path, format: str) -> None:
    path = tmp_path / "image.jpg"
    try:
        Image.new("RGB", (16, 16), (255, 0, 0)).save(path, format=format)
    except (OSError, ValueError, KeyError):
        Image.new("L", (16, 16)).convert("1").save(path, format=format)
    if format in (*IMAGE_FORMATS, "MPO"):  # a JPEG with several pictures, as cameras write it
        assert read_image(path).shape == (16, 16, 3)
    else:
        with pytest.raises(ImageReadError):
            read_image(path)


def test_more_pixels_than_a_photo_has_are_refused(tmp_path: Path) -> None:
    """A PNG of a kilobyte that claims a terabyte."""
    header = struct.pack(">IIBBBBB", 600_000, 600_000, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + header
    body = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))
    (tmp_path / "bomb.png").write_bytes(body)
    Image.new("1", (9_500, 9_500)).save(tmp_path / "large.png")  # 90 million pixels, of which Pillow only warns
    for name in ("bomb.png", "large.png"):
        for read in (read_image, read_image_size):
            with pytest.raises(ImageReadError, match="pixels"):
                read(tmp_path / name)


def test_a_name_that_is_none_is_refused() -> None:
    for name in ("a\0b.jpg", "\ud800.jpg", "x" * 300, ""):
        with pytest.raises(ImageReadError):
            read_image(name)
