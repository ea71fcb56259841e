"""Reads image files of any usual kind into 8-bit RGB or BGR.

Pillow decodes. This module does what Pillow does not: EXIF rotation, 16-bit gray, transparency, and errors that name
the file and the remedy.
"""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

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
# What Pillow raises on files that are missing, damaged or no images.
READ_ERRORS = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, Image.DecompressionBombError)


class ImageReadError(RuntimeError):
    """An image file that cannot be read: names the file, what is wrong with it and the remedy.

    torch passes an error of a loader process on with its message alone, which then is `what`.
    """

    def __init__(self, what: str, remedy: str = "") -> None:
        super().__init__(what, remedy)
        self.what = what
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.what}; {self.remedy}." if self.remedy else self.what


class ImageSizeError(ValueError):
    """An image whose size is not the one in its json: names file, id, both sizes and the remedy."""


def read_image(path: str | Path, channel_order: str = "RGB") -> np.ndarray:
    """Reads an image file, upright and with 8 bits a channel.

    Gray, palette, CMYK and 16-bit files become three 8-bit channels (16 bits are divided by 257). Transparent pixels
    become white. Of an animation the first frame counts.

    Args:
        path: an image file of a format that Pillow knows.
        channel_order: "RGB" or "BGR".

    Returns:
        uint8 array (H, W, 3), C-contiguous.

    Raises:
        ImageReadError: the file is missing, empty, truncated, not an image, or of a pixel type without a defined range.
        ValueError: `channel_order` is neither "RGB" nor "BGR".
    """
    if channel_order not in ("RGB", "BGR"):
        raise ValueError(f"channel_order is {channel_order!r}; allowed: 'RGB', 'BGR'.")
    try:
        with Image.open(path) as image:
            pixels = pixels_of(image)
    except READ_ERRORS as error:
        raise explain_read_error(path, error) from error
    return np.ascontiguousarray(pixels if channel_order == "RGB" else pixels[:, :, ::-1])


def pixels_of(image: Image.Image) -> np.ndarray:
    """What `read_image` gives of an image file that Pillow has opened; raises one of `READ_ERRORS`."""
    orientation = image.getexif().get(_ORIENTATION_TAG)
    image.load()
    operation = _UPRIGHT.get(orientation) if isinstance(orientation, int) else None
    upright = image if operation is None else image.transpose(operation)
    return np.array(_to_rgb(upright))  # a copy, which can be written to


def read_image_size(path: str | Path) -> tuple[int, int]:
    """Height and width that `read_image` would return, from the file's header alone.

    Raises:
        ImageReadError: the file is missing or not an image.
    """
    try:
        with Image.open(path) as image:
            width, height = image.size
            orientation = image.getexif().get(_ORIENTATION_TAG)
    except READ_ERRORS as error:
        raise explain_read_error(path, error) from error
    return (width, height) if orientation in _ORIENTATIONS_THAT_SWAP_SIDES else (height, width)


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


def explain_read_error(path: str | Path, error: Exception) -> ImageReadError:
    """One of `READ_ERRORS` as an error that names the file and the remedy."""
    if isinstance(error, FileNotFoundError):
        remedy = "check the folder of the images, or remove the image from the json"
        return ImageReadError(f"There is no image {str(path)!r}", remedy)
    if isinstance(error, IsADirectoryError | PermissionError):
        return ImageReadError(f"Image {str(path)!r} cannot be opened: {error.strerror}", "make it readable")
    if isinstance(error, UnidentifiedImageError):
        is_empty = Path(path).stat().st_size == 0
        what = "is an empty file" if is_empty else "is not an image of a known format"
        return ImageReadError(f"{str(path)!r} {what}", "download it again, or convert it to JPEG or PNG")
    if isinstance(error, Image.DecompressionBombError):
        return ImageReadError(f"Image {str(path)!r} is too large: {error}", "make it smaller")
    return ImageReadError(
        f"Image {str(path)!r} cannot be decoded: {error}", "download it again, or convert it to 8-bit JPEG or PNG"
    )
