#!/usr/bin/env python
"""Makes the data sets `macaque_{train,val}` from the public download of MacaquePose.

    python datasets/prepare_macaque.py v1      # the unpacked folder, with annotations.csv and images/

writes macaque/train.json, macaque/val.json and macaque/images/ into the folder of the datasets (DETECTRON2_DATASETS, or
`datasets`). The files are COCO-keypoints json with the 17 keypoints of COCO; boxes are fitted round the segmentation
masks. 80% of the photos go to train, as the seed decides (POET, "MacaquePose").

Cite: Labuguen et al., "MacaquePose: A Novel 'In the Wild' Macaque Monkey Pose Dataset for Markerless Motion Capture",
Frontiers in Behavioral Neuroscience 2021.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from querypose.data import ImageReadError
from querypose.data.coco import INFINITE
from querypose.data.image_io import read_image_size
from querypose.engine import report_user_errors
from querypose.errors import UserError
from querypose.paths import path_within
from querypose.progress import progress
from querypose.skeleton import COCO_SKELETON

# The columns of annotations.csv; the latter two hold json, an entry an animal.
COLUMNS = ("image file name", "keypoints", "segmentation")
VISIBLE = 2

Area = Literal["box", "mask"]


class MacaqueError(UserError, ValueError):
    """A download that is not what it should be: says what is wrong and the remedy."""


class Macaque(NamedTuple):
    """One annotated animal, in pixel indices of its photo."""

    keypoints: np.ndarray  # (17, 3), COCO order
    polygons: list[np.ndarray]  # (N, 2) each


class Photo(NamedTuple):
    """One photo with its animals."""

    file_name: str
    height: int
    width: int
    macaques: list[Macaque]


def main(arguments: list[str] | None = None) -> int:
    """Reads the command line and writes the data sets; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="the unpacked folder, with annotations.csv and images/")
    default_output = Path(os.environ.get("DETECTRON2_DATASETS", "datasets")) / "macaque"
    parser.add_argument(
        "--output", type=Path, default=default_output, help=f"folder to write (default: {default_output})"
    )
    parser.add_argument("--val-share", type=float, default=0.2, help="share of the photos in val (default: 0.2)")
    parser.add_argument("--seed", type=seed, default=0, help="of the split (default: 0)")
    parser.add_argument(
        "--area", choices=("box", "mask"), default="box",
        help="what the evaluation takes for an animal's area: its box, as POET does, or its mask, as COCO does, which "
        "is stricter (default: box)",
    )  # fmt: skip
    options = parser.parse_args(arguments)
    counts = prepare_macaque(options.source, options.output, options.val_share, options.seed, options.area)
    print(f"Wrote {counts['train']} photos to train and {counts['val']} to val, in {options.output}.")
    return 0


def seed(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{value} is less than 0")
    return value


def prepare_macaque(
    source: Path, output: Path, val_share: float = 0.2, seed: int = 0, area: Area = "box"
) -> dict[str, int]:
    """Converts the download.

    Args:
        source: folder with annotations.csv and images/.
        output: folder to make; must not exist yet.
        val_share: share of the photos that goes to val, in (0, 1).
        seed: decides which.
        area: what stands in the annotations as `area`.

    Returns:
        number of photos of train and val.

    Raises:
        MacaqueError: the download is incomplete or malformed, or the output is there already.
    """
    if output.exists():
        raise MacaqueError(f"{output} is there already; remove it or name another folder with --output.")
    if not 0 < val_share < 1:
        raise MacaqueError(f"--val-share is {val_share}; allowed: a number between 0 and 1.")
    photos = read_download(source)
    if len(photos) < 2:
        raise MacaqueError(f"{source} has {len(photos)} photos; two are needed at least.")
    order = np.random.default_rng(seed).permutation(len(photos))
    num_val = min(max(1, round(len(photos) * val_share)), len(photos) - 1)
    splits = {"train": sorted(order[num_val:].tolist()), "val": sorted(order[:num_val].tolist())}
    _write(source, output, photos, splits, area)
    return {name: len(numbers) for name, numbers in splits.items()}


def read_download(source: Path) -> list[Photo]:
    """All photos in the order of annotations.csv."""
    table = source / "annotations.csv"
    if not table.is_file():
        raise MacaqueError(f"{source} has no annotations.csv; name the folder that the download unpacks to.")
    csv.field_size_limit(sys.maxsize)  # a mask can have thousands of corners
    try:
        with table.open(newline="", encoding="utf-8") as file:
            header, *rows = list(csv.reader(file)) or [[]]
    except (csv.Error, UnicodeDecodeError) as error:
        raise MacaqueError(f"{table} is not a csv in UTF-8 ({error}); download it again.") from error
    if tuple(name.strip() for name in header[:3]) != COLUMNS:
        raise MacaqueError(f"{table} begins with {header[:3]}; the columns of MacaquePose are {list(COLUMNS)}.")
    return [_read_row(source, f"{table}, line {line}", row) for line, row in enumerate(rows, start=2)]


def _read_row(source: Path, where: str, row: Sequence[str]) -> Photo:
    try:
        file_name, keypoints, masks = row[0], json.loads(row[1]), json.loads(row[2])
        macaques = [
            Macaque(read_keypoints(animal), [_read_polygon(part["segment"]) for part in mask])
            for animal, mask in zip(keypoints, masks, strict=True)
        ]
    except (AttributeError, IndexError, KeyError, TypeError, ValueError, OverflowError, RecursionError) as error:
        raise MacaqueError(
            f"{where}: keypoints and segmentation do not describe the same animals in MacaquePose's format "
            f"({type(error).__name__}: {error}); download the file again."
        ) from error
    if not all(macaque.polygons for macaque in macaques):
        raise MacaqueError(f"{where}: an animal has no mask, from which its box would follow; remove the line.")
    try:
        height, width = read_image_size(path_within(source / "images", file_name, where))
    except ImageReadError as error:
        raise MacaqueError(f"{where}: {error}") from error
    return Photo(file_name, height, width, macaques)


def _read_polygon(segment: Any) -> np.ndarray:
    polygon = np.array(segment, dtype=np.float64)
    if polygon.ndim != 2 or polygon.shape[1] != 2 or not len(polygon) or not (np.abs(polygon) < INFINITE).all():
        raise ValueError("a segment is not a list of x, y")
    return polygon


def read_keypoints(animal: Sequence[dict[str, Any]]) -> np.ndarray:
    """(17, 3) from MacaquePose's list of names and positions; a position of null is a keypoint without a label."""
    position = {keypoint["name"].strip().lower().replace(" ", "_"): keypoint["position"] for keypoint in animal}
    if unknown := position.keys() - set(COCO_SKELETON.keypoints):
        raise ValueError(f"unknown keypoints {sorted(unknown)}")
    rows = [position.get(name) for name in COCO_SKELETON.keypoints]
    array = np.array([[0.0, 0.0, 0.0] if xy is None else [xy[0], xy[1], VISIBLE] for xy in rows], dtype=np.float64)
    if not (np.abs(array) < INFINITE).all():
        raise ValueError("a position is not two finite numbers")
    return array


def bounding_box(polygons: Sequence[np.ndarray]) -> list[float]:
    """x, y, w, h round all parts of a mask."""
    corners = np.concatenate(polygons)
    low, high = corners.min(axis=0), corners.max(axis=0)
    return [round(float(value), 2) for value in (*low, *(high - low))]


def polygon_area(polygon: np.ndarray) -> float:
    """Of a polygon (N, 2) that does not cross itself (the shoelace formula), in square pixels."""
    x, y = polygon.T
    return 0.5 * abs(float(x @ np.roll(y, 1) - y @ np.roll(x, 1)))


def _write(source: Path, output: Path, photos: Sequence[Photo], splits: dict[str, list[int]], area: Area) -> None:
    """Writes all files into a temporary folder beside `output` and renames it, so that none is ever half there."""
    output.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=f".{output.name}-", dir=output.parent))
    try:
        unfinished.chmod(0o755)
        (unfinished / "images").mkdir()
        for photo in progress(photos, "copying"):
            copy = path_within(unfinished / "images", photo.file_name, "annotations.csv")
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / "images" / photo.file_name, copy)
        first_id = np.cumsum([1, *(len(photo.macaques) for photo in photos)]).tolist()
        for name, numbers in splits.items():
            document = _document(name, [(number, photos[number], first_id[number]) for number in numbers], area)
            (unfinished / f"{name}.json").write_text(json.dumps(document), encoding="utf-8")
        unfinished.rename(output)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _document(name: str, photos: Sequence[tuple[int, Photo, int]], area: Area) -> dict[str, Any]:
    return {
        "info": {"description": f"MacaquePose, {name}", "contributor": "Labuguen et al., 2021"},
        "licenses": [],
        "categories": [
            {
                "id": 1,
                "name": "macaque",
                "supercategory": "animal",
                "keypoints": list(COCO_SKELETON.keypoints),
                "skeleton": [[first + 1, second + 1] for first, second in COCO_SKELETON.edges],
            }
        ],
        "images": [
            {"id": number + 1, "file_name": photo.file_name, "height": photo.height, "width": photo.width}
            for number, photo, _ in photos
        ],
        "annotations": [
            _annotation(annotation_id, number + 1, macaque, area)
            for number, photo, first_id in photos
            for annotation_id, macaque in enumerate(photo.macaques, start=first_id)
        ],
    }


def _annotation(annotation_id: int, image_id: int, macaque: Macaque, area: Area) -> dict[str, Any]:
    box = bounding_box(macaque.polygons)
    square_pixels = box[2] * box[3] if area == "box" else sum(map(polygon_area, macaque.polygons))
    return {
        "id": annotation_id,
        "image_id": image_id,
        "category_id": 1,
        "iscrowd": 0,
        "num_keypoints": int((macaque.keypoints[:, 2] > 0).sum()),
        "keypoints": [
            number for x, y, v in macaque.keypoints.tolist() for number in (round(x, 2), round(y, 2), int(v))
        ],
        "bbox": box,
        "area": round(square_pixels, 2),
        "segmentation": [polygon.round(2).flatten().tolist() for polygon in macaque.polygons],
    }


if __name__ == "__main__":
    with report_user_errors("prepare_macaque.py"):
        sys.exit(main())
