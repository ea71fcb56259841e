"""Checks of image files: each exists, can be read, and has the size in its json.

The pipeline runs `check_image_size` on each image that it reads; the validator runs all checks on all images.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Literal

from querypose.data.coco import SIZE_TOLERANCE
from querypose.data.image_io import ImageReadError, read_image, read_image_size
from querypose.data.parallel import map_in_threads
from querypose.data.problems import Problem

# What the validator reads of each image: nothing, the header, or every pixel.
ImageDepth = Literal["none", "header", "pixels"]

CHECKS: Mapping[str, ImageDepth | None] = {"off": None, "annotations": "none", "files": "header"}
"""By the names of DATASETS.CHECK: what is read of the images before a training; None skips all checks."""


def check_image_size(record: dict[str, Any], height: int, width: int) -> Problem | None:
    """Compares the size of an image with that of its record; swapped height and width are only a warning.

    Args:
        record: a dict as `PoseAnnotations.record` gives.
        height: of the upright image.
        width: of the upright image.
    """
    stated = (record.get("height", height), record.get("width", width))
    if stated == (height, width):
        return None
    id = f"image {record.get('image_id')}"
    sizes = f"is {width}x{height} pixels, but {stated[1]}x{stated[0]} in its json"
    if stated != (width, height):
        return Problem(
            "error", "size differs from the json", str(record["file_name"]), id,
            f"{id} {sizes}: the annotations are of another version of it", "use the right file, or correct the json",
        )  # fmt: skip
    for annotation in record.get("annotations", ()):
        x, y, box_width, box_height = annotation["bbox"]
        if x + box_width > width + SIZE_TOLERANCE or y + box_height > height + SIZE_TOLERANCE:
            return Problem(
                "error", "annotations ignore the EXIF rotation", str(record["file_name"]), id,
                f"{id} {sizes}, and annotation {annotation.get('id')} only fits the size in the json: the json seems "
                "to ignore the EXIF rotation", "rotate the file's pixels and remove the tag, or change the annotations",
            )  # fmt: skip
    return Problem(
        "warning", "height and width swapped", str(record["file_name"]), id,
        f"{id} {sizes}: height and width are swapped in its json", "corrected from the image",
    )  # fmt: skip


def check_images(
    records: Sequence[dict[str, Any]],
    depth: ImageDepth,
    description: str,
    *,
    num_threads: int | None = None,
    show_progress: bool = False,
) -> tuple[list[Problem], list[str | None]]:
    """Checks the image of every record.

    Args:
        records: dicts as `PoseAnnotations.record` gives.
        depth: "header" finds files that are missing, not an image, or of another size; "pixels" also truncated files.
        description: begins the progress bar.
        num_threads: see `map_in_threads`.
        show_progress: draw a bar on stderr.

    Returns:
        the problems, and with depth "pixels" a digest of the pixels of each image, None where it cannot be read.
    """
    if depth == "none":
        return [], [None] * len(records)
    checked = map_in_threads(
        partial(_check_image, depth=depth), records, description, num_threads=num_threads, show_progress=show_progress
    )
    return [problem for problem, _ in checked if problem is not None], [digest for _, digest in checked]


def _check_image(record: dict[str, Any], depth: ImageDepth) -> tuple[Problem | None, str | None]:
    path, digest = str(record["file_name"]), None
    try:
        if depth == "pixels":
            pixels = read_image(path)
            height, width = pixels.shape[:2]
            # Of the upright pixels, so that neither metadata nor the file format changes it.
            digest = hashlib.blake2b(repr(pixels.shape).encode() + pixels.tobytes(), digest_size=16).hexdigest()
        else:
            height, width = read_image_size(path)
    except ImageReadError as error:
        id = f"image {record.get('image_id')}"
        return Problem("error", "unreadable image", path, id, error.what, error.remedy), None
    return check_image_size(record, height, width), digest
