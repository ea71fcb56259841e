"""Which images of one folder are in another one too: byte for byte, pixel for pixel, or nearly.

A hash of an image is an array of bits; two images are the same where their hashes differ in at most some bits.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from querypose.data.image_io import READ_ERRORS, ImageReadError, explain_read_error, read_image
from querypose.data.parallel import map_in_threads
from querypose.data.problems import DatasetError

_IMAGE_SUFFIXES = frozenset(Image.registered_extensions())
_DIGEST_BYTES = 16
_GRADIENT_SIDE = 16
_BLOCK = 256  # images that are compared at a time with all of the other folder

ImageHash = Callable[[Path], np.ndarray]


class Pair(NamedTuple):
    """An image that is in both folders.

    Attributes:
        first: its path below the first folder.
        second: its path below the second one.
        distance: bits in which the hashes differ.
    """

    first: str
    second: str
    distance: int


class Overlap(NamedTuple):
    """What two folders share.

    Attributes:
        pairs: sorted by `first`, `second`.
        num_first: images in the first folder.
        num_second: images in the second one.
        unreadable: a message for each file that could not be read.
    """

    pairs: list[Pair]
    num_first: int
    num_second: int
    unreadable: list[str]


def hash_bytes(path: Path) -> np.ndarray:
    """Bits of a digest of the file.

    Raises:
        ImageReadError: the file cannot be read.
    """
    try:
        return _bits(_digest(path.read_bytes()))
    except OSError as error:
        raise explain_read_error(path, error) from error


def hash_pixels(path: Path) -> np.ndarray:
    """Bits of a digest of the decoded, upright image: blind to metadata and to how the same pixels are stored.

    Raises:
        ImageReadError: the file cannot be read.
    """
    return _bits(digest_of_pixels(read_image(path)))


def digest_of_pixels(pixels: np.ndarray) -> bytes:
    """Digest of an image (H, W, C)."""
    return _digest(repr(pixels.shape).encode(), np.ascontiguousarray(pixels).data)


def hash_gradients(path: Path) -> np.ndarray:
    """256 bits that say where the image, shrunk to 17x16, gets brighter from left to right.

    A copy that was resized, or stored as JPEG once more, differs in a few bits, another photo in about half of them.

    Raises:
        ImageReadError: the file cannot be read.
    """
    try:
        with Image.open(path) as image:
            image.draft("L", (16 * _GRADIENT_SIDE, 16 * _GRADIENT_SIDE))  # a JPEG is decoded at this size, at once
            size = (_GRADIENT_SIDE + 1, _GRADIENT_SIDE)
            grey = np.asarray(image.convert("L").resize(size, Image.Resampling.BOX), dtype=np.int16)
    except READ_ERRORS as error:
        raise explain_read_error(path, error) from error
    return (grey[:, 1:] > grey[:, :-1]).ravel()


# How two images are compared, and the number of bits in which the same image may differ by default.
HASHES: Mapping[str, tuple[ImageHash, int]] = {
    "bytes": (hash_bytes, 0),
    "pixels": (hash_pixels, 0),
    "similar": (hash_gradients, 16),
}


def find_overlap(
    first: Path,
    second: Path,
    image_hash: ImageHash = hash_bytes,
    max_distance: int = 0,
    *,
    num_threads: int | None = None,
    show_progress: bool = False,
) -> Overlap:
    """The images that two folders share.

    Args:
        first: a folder; images in its subfolders count.
        second: another one.
        image_hash: one of `hash_bytes`, `hash_pixels`, `hash_gradients`.
        max_distance: bits in which the hashes of the same image may differ.
        num_threads: see `map_in_threads`.
        show_progress: draw bars on stderr.

    Raises:
        DatasetError: a folder is missing or has no image.
    """
    hashes, names, unreadable = [], [], []
    for folder in (first, second):
        paths = _images_below(folder)
        found = map_in_threads(
            lambda path: _hash_or_error(image_hash, path), paths, folder.name, num_threads=num_threads,
            show_progress=show_progress,
        )  # fmt: skip
        readable = [(path, bits) for path, bits in zip(paths, found, strict=True) if isinstance(bits, np.ndarray)]
        unreadable += [str(error) for error in found if isinstance(error, ImageReadError)]
        names.append([path.relative_to(folder).as_posix() for path, _ in readable])
        hashes.append(np.array([bits for _, bits in readable]).reshape(len(readable), -1))
    pairs = [
        Pair(names[0][row], names[1][column], distance)
        for row, column, distance in _near_rows(hashes[0], hashes[1], max_distance)
    ]
    return Overlap(pairs, len(names[0]), len(names[1]), unreadable)


def _images_below(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise DatasetError(f"There is no folder {str(folder)!r}; datasets/README.md says where images belong.")
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in _IMAGE_SUFFIXES)
    if not paths:
        raise DatasetError(f"There is no image in {str(folder)!r}; name the folder that holds them.")
    return paths


def _hash_or_error(image_hash: ImageHash, path: Path) -> np.ndarray | ImageReadError:
    try:
        return image_hash(path)
    except ImageReadError as error:
        return error


def _near_rows(first: np.ndarray, second: np.ndarray, max_distance: int) -> list[tuple[int, int, int]]:
    """Row of `first`, row of `second`, bits in which they differ: all pairs that differ in at most `max_distance`."""
    if not len(first) or not len(second):
        return []
    near: list[tuple[int, int, int]] = []
    signs = second.astype(np.float32) * 2 - 1
    for begin in range(0, len(first), _BLOCK):
        block = first[begin : begin + _BLOCK].astype(np.float32) * 2 - 1
        # Of B bits as +1 and -1 the product is B - 2 x (bits that differ).
        distances = np.rint((first.shape[1] - block @ signs.T) / 2).astype(np.int32)
        for row, column in np.argwhere(distances <= max_distance).tolist():
            near.append((begin + row, column, int(distances[row, column])))
    return near


def _digest(*contents: bytes | memoryview) -> bytes:
    digest = hashlib.blake2b(digest_size=_DIGEST_BYTES)
    for content in contents:
        digest.update(content)
    return digest.digest()


def _bits(digest: bytes) -> np.ndarray:
    return np.unpackbits(np.frombuffer(digest, dtype=np.uint8))


def without_images(document: Mapping[str, object], file_names: Sequence[str]) -> dict[str, object]:
    """A COCO json's content less some images and their annotations.

    Args:
        document: the content of the json.
        file_names: of the images to leave out, as the json names them.
    """
    excluded = set(file_names)
    images, annotations = document["images"], document.get("annotations", [])
    assert isinstance(images, list)
    assert isinstance(annotations, list)
    ids = {image["id"] for image in images if image["file_name"] in excluded}
    kept = {**document, "images": [image for image in images if image["id"] not in ids]}
    if "annotations" in document:
        kept["annotations"] = [annotation for annotation in annotations if annotation["image_id"] not in ids]
    return kept
