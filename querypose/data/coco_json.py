"""The images of a COCO-keypoints json as detectron2's list of dicts; every error in the file refuses it."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from querypose.d2 import BoxMode
from querypose.data.annotation_file import AnnotationFile, read_annotation_file
from querypose.data.problems import Problem, errors_of
from querypose.skeleton import Skeleton

_logger = logging.getLogger(__name__)


class DatasetError(ValueError):
    """A dataset that cannot be used: names the file, the id in it where there is one, and the remedy."""


class PoseFile(NamedTuple):
    """What a json holds.

    Attributes:
        records: one dict an image, as detectron2 has them, sorted by image id.
        category_id: the id that the json gives to the category that is annotated; 0 in `records`.
        category: its name.
    """

    records: list[dict[str, Any]]
    category_id: int
    category: str


def load_pose_json(json_file: str | Path, image_root: str | Path, skeleton: Skeleton) -> list[dict[str, Any]]:
    """The images of a COCO-keypoints json with their annotations, as detectron2's list of dicts.

    Args:
        json_file: COCO-keypoints json; one without the field "annotations" (a test split) gives dicts without it too.
        image_root: folder of the images that the json names.
        skeleton: what the keypoints of the json must be.

    Returns:
        dicts, sorted by image id, of file_name, height, width, image_id, and annotations: dicts of id, bbox (x, y, w,
        h, inside the image), bbox_mode, keypoints (flat x, y, v; continuous coordinates), category_id (0), iscrowd.

    Raises:
        DatasetError: the json or the folder is missing or malformed, or does not fit the skeleton.
    """
    return read_pose_file(json_file, image_root, skeleton).records


def read_pose_file(json_file: str | Path, image_root: str | Path, skeleton: Skeleton) -> PoseFile:
    """As `load_pose_json`, with the category of the json."""
    if Path(json_file).is_file() and not Path(image_root).is_dir():
        raise DatasetError(missing_folder(json_file, image_root).message)
    file = read_annotation_file(json_file, skeleton, lambda file_name: os.path.join(image_root, file_name))
    if errors := errors_of(file.problems):
        more = f" (The first of {len(errors)} errors; tools/check_dataset.py lists all.)" if len(errors) > 1 else ""
        raise DatasetError(errors[0].message + more)
    _log_warnings(file.problems, file.path)
    return PoseFile(records_of(file, image_root), file.category_id, file.category)


def missing_folder(json_file: str | Path, image_root: str | Path) -> Problem:
    """That there is no image folder."""
    return Problem(
        "error", "no image folder", str(json_file), "", f"there is no image folder {str(image_root)!r}",
        "put the images there, or set DETECTRON2_DATASETS to the folder that holds your datasets",
    )  # fmt: skip


def records_of(file: AnnotationFile, image_root: str | Path) -> list[dict[str, Any]]:
    """The sound part of a json as detectron2's list of dicts; see `load_pose_json`."""
    records: dict[int, dict[str, Any]] = {
        image_id: {
            "file_name": os.path.join(image_root, image["file_name"]),
            "height": image["height"],
            "width": image["width"],
            "image_id": image_id,
        }
        for image_id, image in file.images.items()
    }
    if file.annotations is None:
        return list(records.values())
    for record in records.values():
        record["annotations"] = []
    boxes_xywh = file.boxes.copy()
    boxes_xywh[:, 2:] -= boxes_xywh[:, :2]
    keypoints = file.keypoints.reshape(len(file.keypoints), 3 * file.keypoints.shape[1])
    for annotation, box, flat in zip(file.annotations, boxes_xywh.tolist(), keypoints.tolist(), strict=True):
        records[annotation["image_id"]]["annotations"].append(
            {
                "id": annotation["id"],
                "bbox": box,
                "bbox_mode": BoxMode.XYWH_ABS,
                "keypoints": flat,
                "category_id": 0,
                "iscrowd": int(annotation.get("iscrowd", 0)),
            }
        )
    return list(records.values())


def _log_warnings(problems: Sequence[Problem], json_file: str, num_examples: int = 5) -> None:
    """One line a kind."""
    kinds: dict[tuple[str, str], list[Problem]] = {}
    for problem in problems:
        kinds.setdefault((problem.kind, problem.remedy), []).append(problem)
    for (kind, remedy), group in kinds.items():
        if len(group) == 1:
            _logger.warning("%s", group[0].message)
            continue
        ids = ", ".join(problem.id for problem in group[:num_examples]) + (", …" if len(group) > num_examples else "")
        _logger.warning("%s: %s: %d times (%s); %s.", json_file, kind, len(group), ids, remedy)
