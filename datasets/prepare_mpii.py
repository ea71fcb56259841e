#!/usr/bin/env python
"""Makes the data sets `mpii_{train,val}` from the public download of MPII Human Pose.

    python datasets/prepare_mpii.py mpii_human_pose_v1_u12_1.mat --val-images mpii_val.json

reads the photos in mpii/images/ of the folder of the datasets (DETECTRON2_DATASETS, or `datasets`) and writes
mpii/train.json and mpii/val.json beside them: COCO-keypoints json with MPII's 16 keypoints, `head_size` for PCKh, and
a square box of the person's scale about its position, as top-down codes take it (15 px times the scale lower).

MPII keeps the annotations of its test set. Published figures are of the persons that Tompson et al. took out of the
training set. Name the list of their images with --val-images: a text file with a name a line, or the `mpii_val.json`
that top-down codes share. Without it a tenth of the photos is drawn, and figures are not comparable with others.

A json of that kind (`mpii_train.json`) can stand in place of the .mat too; it has no head sizes, and PCKh then takes
the distance of head top and neck.

Cite: Andriluka et al., "2D Human Pose Estimation: New Benchmark and State of the Art Analysis", CVPR 2014.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy.io import loadmat

from querypose.data import ImageReadError
from querypose.data.coco import INFINITE
from querypose.data.image_io import read_image_size
from querypose.data.json_files import read_json
from querypose.engine import report_user_errors
from querypose.errors import UserError
from querypose.evaluation import write_json
from querypose.paths import path_within
from querypose.progress import progress
from querypose.skeleton import MPII_SKELETON

PIXELS_PER_SCALE = 200
DOWN_PER_SCALE = 15
# The head's size is this share of the diagonal of its rectangle.
HEAD_SHARE = 0.6
# Of a box, what a body covers; COCO's metrics need an area.
AREA_SHARE = 0.53


class MpiiError(UserError, ValueError):
    """A download that is not what it should be: says what is wrong and the remedy."""


class Person(NamedTuple):
    """One annotated person, in pixel indices of the photo (the first pixel is 0)."""

    image: str
    center: tuple[float, float]
    scale: float
    keypoints: np.ndarray  # (16, 3)
    head_size: float | None


def main(arguments: list[str] | None = None) -> int:
    """Reads the command line and writes the data sets; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="mpii_human_pose_v1_u12_1.mat, or a json of top-down codes")
    folder = Path(os.environ.get("DETECTRON2_DATASETS", "datasets")) / "mpii"
    parser.add_argument("--folder", type=Path, default=folder, help=f"has images/, gets the json (default: {folder})")
    parser.add_argument("--val-images", type=Path, help="list of the photos of val; default: a tenth of all, drawn")
    parser.add_argument("--seed", type=seed, default=0, help="of the draw (default: 0)")
    options = parser.parse_args(arguments)
    persons = read_persons(options.source)
    names = sorted({person.image for person in persons})
    if options.val_images is not None:
        val_images = read_image_list(options.val_images)
    else:
        val_images = set(np.random.default_rng(options.seed).permutation(names)[: max(1, len(names) // 10)])
    documents = {
        "train": document([person for person in persons if person.image not in val_images], options.folder),
        "val": document([person for person in persons if person.image in val_images], options.folder),
    }
    for split, content in documents.items():
        write_json(options.folder / f"{split}.json", content)
        print(f"{split}: {len(content['images'])} photos, {len(content['annotations'])} persons")
    print(f"Wrote them to {options.folder}.")
    return 0


def seed(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{value} is less than 0")
    return value


def read_persons(source: Path) -> list[Person]:
    """All persons with keypoints of the training set.

    Raises:
        MpiiError: there is no such file, or it is none of MPII's.
    """
    if not source.is_file():
        raise MpiiError(f"there is no file {source}; download it from http://human-pose.mpi-inf.mpg.de.")
    persons = list(_persons_of_json(source) if source.suffix == ".json" else _persons_of_mat(source))
    if not persons:
        raise MpiiError(f"{source} has no person with keypoints; download it again.")
    return persons


def read_image_list(path: Path) -> Collection[str]:
    """Names of images: a line each, or the `image` of each entry of a json."""
    try:
        if path.suffix == ".json":
            names = [entry["image"] for entry in read_json(path)]
        else:
            names = path.read_text(encoding="utf-8").split()
        return {Path(name).name for name in names}
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise MpiiError(f"--val-images {path} is no list of images ({error!r}).") from error


def _persons_of_mat(source: Path) -> Iterator[Person]:
    try:
        release = loadmat(source, struct_as_record=False, squeeze_me=True)["RELEASE"]
        photos = list(zip(np.atleast_1d(release.annolist), np.atleast_1d(release.img_train), strict=True))
        for photo, is_train in photos:
            for person in np.atleast_1d(photo.annorect) if is_train else ():
                yield from _person_of_mat(photo, person)
    except MpiiError:
        raise
    except Exception as error:  # scipy raises whatever it met in a damaged file
        raise MpiiError(f"{source} is not MPII's file of annotations ({error!r}); download it again.") from error


def _person_of_mat(photo: Any, person: Any) -> Iterator[Person]:
    points = np.atleast_1d(getattr(getattr(person, "annopoints", None), "point", np.array([])))
    position: Any = getattr(person, "objpos", None)
    if len(points) == 0 or not hasattr(position, "x"):
        return  # a rectangle of a head alone
    keypoints = np.zeros((MPII_SKELETON.num_keypoints, 3))
    for point in points:
        # Empty where the annotators did not say; pelvis and thorax never have it.
        visible = getattr(point, "is_visible", np.array([]))
        is_visible = np.size(visible) == 0 or bool(int(visible))
        keypoints[int(point.id)] = float(point.x) - 1, float(point.y) - 1, 2 if is_visible else 1
    diagonal = np.hypot(float(person.x2) - float(person.x1), float(person.y2) - float(person.y1))
    center = (float(position.x) - 1, float(position.y) - 1)
    head_size = HEAD_SHARE * float(diagonal)
    yield _checked(Person(photo.image.name, center, float(person.scale), keypoints, head_size))


def _persons_of_json(source: Path) -> Iterator[Person]:
    try:
        for entry in read_json(source):
            K = MPII_SKELETON.num_keypoints
            is_labelled = np.array(entry["joints_vis"], dtype=np.float64).reshape(K) > 0
            positions = np.array(entry["joints"], dtype=np.float64).reshape(K, 2) - 1
            keypoints = np.column_stack([positions, np.full(len(positions), 2.0)]) * is_labelled[:, None]
            x, y = map(float, entry["center"])
            yield _checked(Person(entry["image"], (x - 1, y - 1), float(entry["scale"]), keypoints, None))
    except (ValueError, LookupError, TypeError, OverflowError) as error:
        raise MpiiError(
            f"{source} is not a json of MPII as top-down codes share it: a list of persons with image, center, scale, "
            f"joints and joints_vis ({error!r})."
        ) from error


def _checked(person: Person) -> Person:
    """Raises ValueError where a number is not finite, or the name of the image is none."""
    path_within("images", person.image, "an image")
    numbers = np.array([*person.center, person.scale, person.head_size or 0.0, *person.keypoints.flatten()])
    if not (np.abs(numbers) < INFINITE).all():
        raise ValueError(f"a person of {person.image} has numbers that are not finite")
    return person


def document(persons: Sequence[Person], folder: Path) -> dict[str, Any]:
    """The json of a split."""
    names = sorted({person.image for person in persons})
    image_ids = {name: index for index, name in enumerate(names, start=1)}
    sizes = {
        name: _image_size(path_within(folder / "images", name, "an image")) for name in progress(names, "reading sizes")
    }
    return {
        "info": {"description": "MPII Human Pose", "contributor": "Andriluka et al., 2014"},
        "licenses": [],
        "categories": [
            {
                "id": 1,
                "name": "person",
                "supercategory": "person",
                "keypoints": list(MPII_SKELETON.keypoints),
                "skeleton": [[first + 1, second + 1] for first, second in MPII_SKELETON.edges],
            }
        ],
        "images": [
            {"id": image_ids[name], "file_name": name, "height": sizes[name][1], "width": sizes[name][0]}
            for name in names
        ],
        "annotations": [
            _annotation(number, image_ids[person.image], person, sizes[person.image])
            for number, person in enumerate(persons, start=1)
        ],
    }


def _annotation(annotation_id: int, image_id: int, person: Person, size: tuple[int, int]) -> dict[str, Any]:
    side = PIXELS_PER_SCALE * person.scale
    # Boxes are continuous, pixel indices are centers of pixels.
    center = np.array(person.center) + np.array([0.5, DOWN_PER_SCALE * person.scale + 0.5])
    low, high = np.clip([center - side / 2, center + side / 2], 0, size)
    width, height = high - low
    annotation = {
        "id": annotation_id,
        "image_id": image_id,
        "category_id": 1,
        "iscrowd": 0,
        "num_keypoints": int((person.keypoints[:, 2] > 0).sum()),
        "keypoints": [number for x, y, v in person.keypoints.tolist() for number in (round(x, 4), round(y, 4), int(v))],
        "bbox": [round(float(value), 2) for value in (*low, width, height)],
        "area": round(AREA_SHARE * float(width * height), 2),
    }
    return annotation if person.head_size is None else {**annotation, "head_size": round(person.head_size, 4)}


def _image_size(path: Path) -> tuple[int, int]:
    """Width and height."""
    try:
        height, width = read_image_size(path)
    except ImageReadError as error:
        raise MpiiError(f"{error} Unpack the photos there.") from error
    return width, height


if __name__ == "__main__":
    with report_user_errors("prepare_mpii.py"):
        sys.exit(main())
