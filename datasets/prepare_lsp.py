#!/usr/bin/env python
"""Makes the data sets `lsp_{train,val,tiny}` from the public download of Leeds Sports Pose Extended.

    python datasets/prepare_lsp.py lspet_dataset.zip      # or the unpacked folder, with images/ and joints.mat

writes lsp/train.json, lsp/val.json, lsp/tiny.json, lsp/train/ and lsp/val/ into the folder of the datasets
(DETECTRON2_DATASETS, or `datasets`). The files are COCO-keypoints json with the 14 joints of CrowdPose, so that the
skeleton `crowdpose` fits. Photos are copied byte for byte; the split depends on nothing but their numbers.

Cite: Sam Johnson and Mark Everingham, "Learning Effective Human Pose Estimation from Inaccurate Annotation", CVPR 2011.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import re
import shutil
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
import scipy.io

from querypose.data import ImageReadError
from querypose.data.image_io import read_image_size
from querypose.engine import report_user_errors
from querypose.errors import UserError
from querypose.paths import open_regular_file
from querypose.progress import progress
from querypose.skeleton import CROWDPOSE_SKELETON

# The order of joints.mat, which has 14 joints x (x, y, flag) x images.
LSP_JOINTS = (
    "right_ankle", "right_knee", "right_hip", "left_hip", "left_knee", "left_ankle", "right_wrist", "right_elbow",
    "right_shoulder", "left_shoulder", "left_elbow", "left_wrist", "neck", "head",
)  # fmt: skip
_MIN_JOINTS = 6  # persons with fewer labeled ones are left out
_MIN_EXTENT = 60.0  # pixels, longer side of the box of the joints
_MIN_SIDE, _MAX_PIXELS = 80, 200_000  # of a photo
_MARGIN, _MARGIN_OF_LONGER, _HEAD_DISC = 0.12, 0.065, 0.25
_AREA_OF_BOX = 0.53  # a person's area, as a share of its box; the rule of CrowdPose
_NUM_TINY = 16
_MAX_FILE = 2**28  # bytes, of a photo or of joints.mat, which has 4 MB
_SPLIT_SEED = 0


class LspError(UserError, ValueError):
    """A download that is not what it should be: says what is missing and the remedy."""


class Photo(NamedTuple):
    """One photo with its person."""

    number: int
    content: bytes
    height: int
    width: int
    keypoints: np.ndarray  # (14, 3), CrowdPose order


def main(arguments: list[str] | None = None) -> int:
    """Reads the command line and writes the data sets; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="lspet_dataset.zip, or the folder that it unpacks to")
    default_output = Path(os.environ.get("DETECTRON2_DATASETS", "datasets")) / "lsp"
    parser.add_argument(
        "--output", type=Path, default=default_output, help=f"folder to write (default: {default_output})"
    )
    parser.add_argument("--val-share", type=float, default=0.1, help="share of the photos in val (default: 0.1)")
    parser.add_argument("--max-images", type=int, help="take so many photos at most, drawn evenly (default: all)")
    options = parser.parse_args(arguments)
    counts = prepare_lsp(options.source, options.output, options.val_share, options.max_images)
    print(f"Wrote {counts['train']} photos to train, {counts['val']} to val, {counts['tiny']} of train to tiny, in "
          f"{options.output}; left out {counts['left out']}.")  # fmt: skip
    return 0


def prepare_lsp(source: Path, output: Path, val_share: float = 0.1, max_images: int | None = None) -> dict[str, int]:
    """Converts the download.

    Args:
        source: zip or folder.
        output: folder to make; must not exist yet.
        val_share: share of the photos that goes to val, in (0, 1).
        max_images: upper bound of the number of photos.

    Returns:
        number of photos of train, val, tiny, and of those left out.

    Raises:
        LspError: the download is incomplete, or the output is there already.
    """
    if output.exists():
        raise LspError(f"{output} is there already; remove it or name another folder with --output.")
    if not 0 < val_share < 1:
        raise LspError(f"--val-share is {val_share}; allowed: a number between 0 and 1.")
    if max_images is not None and max_images < 2:
        raise LspError(f"--max-images is {max_images}; allowed: 2 or more.")
    joints, images = _read_download(source)
    photos = []
    for number, content in progress(images.items(), "reading"):
        photo = read_photo(number, content, joints[:, :, number - 1])
        if is_usable(photo):
            photos.append(photo)
    order = np.random.default_rng(_SPLIT_SEED).permutation(len(photos))[:max_images]
    if len(order) < 2:
        raise LspError(f"{source} has {len(photos)} usable photos of {len(images)}; two are needed at least.")
    num_val = min(max(1, round(len(order) * val_share)), len(order) - 1)
    splits = {
        "train": [photos[index] for index in sorted(order[num_val:])],
        "val": [photos[index] for index in sorted(order[:num_val])],
    }
    complete = [photo for photo in splits["train"] if (photo.keypoints[:, 2] > 0).all()]
    splits["tiny"] = complete[:_NUM_TINY] or splits["train"][:_NUM_TINY]
    _write(output, splits)
    return {**{name: len(split) for name, split in splits.items()}, "left out": len(images) - len(order)}


def read_photo(number: int, content: bytes, joints: np.ndarray) -> Photo:
    """A photo with its joints in CrowdPose's order.

    Args:
        number: LSP's number of it, from 1.
        content: the bytes of the file.
        joints: (14, 3), x, y, flag in the order of `LSP_JOINTS`. Joints with flag 0 or outside the photo become 0, 0,
            0.
    """
    try:
        height, width = read_image_size(f"im{number:05d}.jpg", content)
    except ImageReadError as error:
        raise LspError(str(error)) from error
    is_labeled = (joints[:, 2] > 0) & (joints[:, :2] >= 0).all(axis=1)
    is_labeled &= (joints[:, 0] < width) & (joints[:, 1] < height)
    rows = np.where(is_labeled[:, None], np.column_stack([joints[:, :2].round(1), np.full(len(joints), 2)]), 0.0)
    return Photo(
        number, content, height, width, rows[[LSP_JOINTS.index(name) for name in CROWDPOSE_SKELETON.keypoints]]
    )


def is_usable(photo: Photo) -> bool:
    """Whether the photo has a sensible size and a person with enough joints, left and right not mixed up."""
    labeled = photo.keypoints[photo.keypoints[:, 2] > 0, :2]
    if len(labeled) < _MIN_JOINTS or np.ptp(labeled, axis=0).max() < _MIN_EXTENT:
        return False
    if min(photo.height, photo.width) < _MIN_SIDE or photo.height * photo.width > _MAX_PIXELS:
        return False
    joint = dict(zip(CROWDPOSE_SKELETON.keypoints, photo.keypoints, strict=True))
    pairs = [(joint[f"left_{name}"], joint[f"right_{name}"]) for name in ("shoulder", "hip")]
    if not all(left[2] and right[2] for left, right in pairs):
        return True
    shoulders, hips = (left[:2] - right[:2] for left, right in pairs)
    return bool(shoulders @ hips >= 0)


def bounding_box(keypoints: np.ndarray, height: int, width: int) -> list[float]:
    """x, y, w, h of a person: the box of its labeled joints, widened, with a disc for the head, inside the photo.

    Each side moves out by 12% of the box's own extent in that direction, and by 6.5% of the longer one at least; the
    disc is round the top of the head, with a quarter of the distance from head to neck as its radius.
    """
    labeled = keypoints[keypoints[:, 2] > 0, :2]
    low, high = labeled.min(axis=0), labeled.max(axis=0)
    margin = np.maximum(_MARGIN * (high - low), _MARGIN_OF_LONGER * (high - low).max())
    low, high = low - margin, high + margin
    head, neck = (keypoints[CROWDPOSE_SKELETON.keypoints.index(name)] for name in ("head", "neck"))
    if head[2] and neck[2]:
        radius = _HEAD_DISC * np.linalg.norm(head[:2] - neck[:2])
        low, high = np.minimum(low, head[:2] - radius), np.maximum(high, head[:2] + radius)
    low, high = np.clip(low, 0, [width, height]), np.clip(high, 0, [width, height])
    return [round(float(value), 2) for value in (*low, *(high - low))]


def _read_download(source: Path) -> tuple[np.ndarray, dict[int, bytes]]:
    """Joints (14, 3, N), and the photos by number, 1 to N."""
    try:
        if source.is_dir():
            return _read_files(
                source, {path.relative_to(source).as_posix(): partial(_read_file, path) for path in source.rglob("*")}
            )
        if source.is_file() and zipfile.is_zipfile(source):
            with zipfile.ZipFile(source) as archive:
                return _read_files(source, {name: partial(_read_member, archive, name) for name in archive.namelist()})
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, EOFError, ValueError, OSError) as error:
        if isinstance(error, LspError) or (isinstance(error, OSError) and error.filename is not None):
            raise
        raise LspError(f"{source} is damaged ({error}); download it again.") from error
    raise LspError(f"{source} is neither a folder nor a zip; download lspet_dataset.zip and name it here.")


def _read_file(path: Path) -> bytes:
    with open_regular_file(path) as stream:
        return stream.read(_MAX_FILE + 1)


def _read_member(archive: zipfile.ZipFile, name: str) -> bytes:
    """Of an archive whose members may claim any size, and be encrypted."""
    try:
        with archive.open(name) as stream:
            return stream.read(_MAX_FILE + 1)
    except RuntimeError as error:
        raise LspError(f"{name} cannot be read ({error}); download the archive again.") from error


def _read_files(source: Path, files: Mapping[str, Callable[[], bytes]]) -> tuple[np.ndarray, dict[int, bytes]]:
    def read(name: str) -> bytes:
        content = files[name]()
        if len(content) > _MAX_FILE:
            raise LspError(f"{name} of {source} is larger than {_MAX_FILE:,} bytes; download it again.")
        return content

    matrices = [name for name in files if PurePosixPath(name).name == "joints.mat"]
    if len(matrices) != 1:
        raise LspError(f"{source} has {len(matrices)} files joints.mat; one is needed, that of LSP-Extended.")
    try:
        joints = scipy.io.loadmat(io.BytesIO(read(matrices[0]))).get("joints")
    except LspError:
        raise
    except Exception as error:  # scipy raises whatever it met in a damaged file
        raise LspError(f"{matrices[0]} of {source} is no file of Matlab ({error!r}); download it again.") from error
    if joints is None or joints.ndim != 3 or joints.shape[:2] != (len(LSP_JOINTS), 3) or joints.dtype.kind not in "iuf":
        shape = None if joints is None else joints.shape
        raise LspError(
            f"{matrices[0]} of {source} has joints of shape {shape}; it must be ({len(LSP_JOINTS)}, 3, N), as in "
            "LSP-Extended (the smaller LSP has another layout)."
        )
    if not np.isfinite(joints).all():
        raise LspError(f"{matrices[0]} of {source} has joints that are not finite; download it again.")
    photos = {
        int(path.stem.removeprefix("im")): name
        for path, name in ((PurePosixPath(name), name) for name in files)
        if path.suffix == ".jpg" and re.fullmatch("[0-9]{1,9}", path.stem.removeprefix("im"))
    }
    if missing := set(range(1, joints.shape[2] + 1)) - photos.keys():
        raise LspError(
            f"{source} lacks {len(missing)} of {joints.shape[2]} photos, first im{min(missing):05d}.jpg; download it "
            "again."
        )
    return joints.astype(np.float64), {number: read(photos[number]) for number in range(1, joints.shape[2] + 1)}


def _write(output: Path, splits: dict[str, list[Photo]]) -> None:
    """Writes all files into a temporary folder beside `output` and renames it, so that none is ever half there."""
    output.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=f".{output.name}-", dir=output.parent))
    try:
        unfinished.chmod(0o755)
        for name, photos in splits.items():
            (unfinished / f"{name}.json").write_text(json.dumps(_document(name, photos)), encoding="utf-8")
            if name == "tiny":
                continue  # its photos are in train/
            (unfinished / name).mkdir()
            for photo in progress(photos, f"writing {name}"):
                (unfinished / name / _file_name(photo)).write_bytes(photo.content)
        unfinished.rename(output)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _file_name(photo: Photo) -> str:
    return f"im{photo.number:05d}.jpg"


def _document(name: str, photos: list[Photo]) -> dict[str, Any]:
    boxes = [bounding_box(photo.keypoints, photo.height, photo.width) for photo in photos]
    return {
        "info": {
            "description": f"LSP-Extended, single person, {name}",
            "contributor": "Johnson and Everingham, CVPR 2011",
        },
        "licenses": [],
        "categories": [
            {
                "id": 1,
                "name": "person",
                "supercategory": "person",
                "keypoints": list(CROWDPOSE_SKELETON.keypoints),
                "skeleton": [[first + 1, second + 1] for first, second in CROWDPOSE_SKELETON.edges],
            }
        ],
        "images": [
            {"id": photo.number, "file_name": _file_name(photo), "height": photo.height, "width": photo.width,
             "crowdIndex": 0.0, "bystanders": -1}
            for photo in photos
        ],
        "annotations": [
            {
                "id": photo.number,
                "image_id": photo.number,
                "category_id": 1,
                "iscrowd": 0,
                "num_keypoints": int((photo.keypoints[:, 2] > 0).sum()),
                "keypoints": [
                    value for x, y, v in photo.keypoints for value in (round(float(x), 1), round(float(y), 1), int(v))
                ],
                "bbox": box,
                "area": round(_AREA_OF_BOX * box[2] * box[3], 2),
            }
            for photo, box in zip(photos, boxes, strict=True)
        ],
    }  # fmt: skip


if __name__ == "__main__":
    with report_user_errors("prepare_lsp.py"):
        sys.exit(main())
