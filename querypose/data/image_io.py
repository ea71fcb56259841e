"""Reads image files of any usual kind into 8-bit RGB or BGR.

Pillow decodes. This module does what Pillow does not: EXIF rotation, 16-bit gray, transparency, and errors that name
the file and the remedy.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, UnidentifiedImageError

from querypose.data.shards import ShardError, sharded_content
from querypose.errors import RemediableError, UserError
from querypose.paths import check_name, open_regular_file

# EXIF tag 0x0112: how the camera was held, and for each value the operation that makes the picture upright.
_ORIENTATION_TAG = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_ORIENTATIONS_THAT_SWAP_SIDES = (5, 6, 7, 8)
_SIXTEEN_BIT_MODES = ("I", "I;16", "I;16B", "I;16L", "I;16N")
IMAGE_FORMATS = ["JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "PPM"]
"""What is opened, by Pillow's names, whatever a file is called. Others, such as EPS, start programs or have more faults
than users; a module of yours (IMPORTS) may append one."""

MAX_PIXELS = 89_478_485
"""Of an image: a quarter of a gigabyte in RGB. A few bytes of a file can claim more than any memory."""

# Pillow warns at the same number, before the size can be asked for.
warnings.filterwarnings("error", category=Image.DecompressionBombWarning)


class ImageReadError(RemediableError, RuntimeError):
    """An image file that cannot be read: names the file, what is wrong with it and the remedy."""

    met_by_all = False


class ImageSizeError(UserError, ValueError):
    """An image whose size is not the one in its json: names file, id, both sizes and the remedy."""

    met_by_all = False


def read_image(path: str | Path, channel_order: str = "RGB") -> np.ndarray:
    """Reads an image file, upright and with 8 bits a channel.

    Gray, palette, CMYK and 16-bit files become three 8-bit channels (16 bits are divided by 257). Transparent pixels
    become white. Of an animation the first frame counts.

    Args:
        path: an image file, of one of IMAGE_FORMATS and of MAX_PIXELS at most.
        channel_order: "RGB" or "BGR".

    Returns:
        uint8 array (H, W, 3), C-contiguous.

    Raises:
        ImageReadError: the file is missing, empty, truncated, not an image, or of a pixel type without a defined range.
        ShardError: the image is in shards that cannot be read.
        ValueError: `channel_order` is neither "RGB" nor "BGR".
    """
    if channel_order not in ("RGB", "BGR"):
        raise ValueError(f"channel_order is {channel_order!r}; allowed: 'RGB', 'BGR'.")
    with _opened(path) as image:
        pixels = pixels_of(image)
    return np.ascontiguousarray(pixels if channel_order == "RGB" else pixels[:, :, ::-1])


def pixels_of(image: Image.Image) -> np.ndarray:
    """What `read_image` gives of an image file that Pillow has opened; see `explained_read_errors`."""
    _require_size(image)
    orientation = image.getexif().get(_ORIENTATION_TAG)
    image.load()
    operation = _UPRIGHT.get(orientation) if isinstance(orientation, int) else None
    upright = image if operation is None else image.transpose(operation)
    return np.array(_to_rgb(upright))  # a copy, which can be written to


def read_image_size(path: str | Path, content: bytes | None = None) -> tuple[int, int]:
    """Height and width that `read_image` would return, from the file's header alone.

    Args:
        path: of the file.
        content: of the file, where it is already read; `path` then only names it.

    Raises:
        ImageReadError: the file is missing or not an image.
    """
    with _opened(path, content) as image:
        width, height = image.size
        orientation = image.getexif().get(_ORIENTATION_TAG)
    return (width, height) if orientation in _ORIENTATIONS_THAT_SWAP_SIDES else (height, width)


def open_image(path: str | Path) -> BinaryIO:
    """Opens the file of an image, or what stands for it in shards; see `explained_read_errors` for what it raises."""
    content = sharded_content(str(path))
    return open_regular_file(path) if content is None else io.BytesIO(content)


@contextlib.contextmanager
def explained_read_errors(path: str | Path) -> Iterator[None]:
    """Whatever goes wrong in the block is a fault of that image file: decoders raise anything over a damaged one.

    Raises:
        ImageReadError: in place of the error.
    """
    try:
        yield
    except (MemoryError, ShardError):
        raise
    except Exception as error:
        raise _explain(path, error) from error


@contextlib.contextmanager
def _opened(path: str | Path, content: bytes | None = None) -> Iterator[Image.Image]:
    with explained_read_errors(path):
        check_name(str(path), "image")
        with (
            open_image(path) if content is None else io.BytesIO(content) as stream,
            Image.open(stream, formats=IMAGE_FORMATS) as image,
        ):
            _require_size(image)
            yield image


def _require_size(image: Image.Image) -> None:
    if image.width * image.height > MAX_PIXELS:
        raise Image.DecompressionBombError(f"{image.width}x{image.height} pixels; allowed: {MAX_PIXELS:,} in all")


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB":
        return image
    if image.mode in _SIXTEEN_BIT_MODES:
        # Pillow's own conversion would cut every value above 255 to white.
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError(f"its pixels are 32-bit integers from {values.min()} to {values.max()}")
        return Image.fromarray(((values + 128) // 257).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise ValueError("its pixels are floating-point numbers, whose range is not defined")
    if image.has_transparency_data:
        with_alpha = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), with_alpha).convert("RGB")
    return image.convert("RGB")


def _explain(path: str | Path, error: Exception) -> ImageReadError:
    if isinstance(error, FileNotFoundError):
        remedy = "check the folder of the images, or remove the image from the json"
        return ImageReadError(f"There is no image {str(path)!r}", remedy)
    if isinstance(error, OSError) and error.filename is not None:
        remedy = "make it readable" if isinstance(error, PermissionError) else "put an image there"
        return ImageReadError(f"Image {str(path)!r} cannot be opened: {error.strerror}", remedy)
    if isinstance(error, UnidentifiedImageError):
        is_empty = Path(path).is_file() and Path(path).stat().st_size == 0
        what = "is an empty file" if is_empty else f"is not an image of a known format ({', '.join(IMAGE_FORMATS)})"
        return ImageReadError(f"{str(path)!r} {what}", "download it again, or convert it to JPEG or PNG")
    if isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning):
        return ImageReadError(f"Image {str(path)!r} is too large: {error}", "make it smaller")
    reason = str(error) or type(error).__name__
    return ImageReadError(
        f"Image {str(path)!r} cannot be decoded: {reason}", "download it again, or convert it to 8-bit JPEG or PNG"
    )
