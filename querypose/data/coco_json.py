"""Reading of COCO-keypoints json files into detectron2's list of dicts, with every doubt about the file an error.

Coordinates: keypoints of a json are pixel indices (COCO's convention: the centre of the first pixel is 0), here they
become continuous coordinates (that centre is 0.5), so 0.5 is added to x and y. This is the one place that does so; the
evaluator takes it off again when it writes results. Boxes are continuous in the json already.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from querypose.d2 import BoxMode
from querypose.data.image_io import ImageReadError, read_image_size
from querypose.skeleton import Skeleton

_logger = logging.getLogger(__name__)

_PIXEL_INDEX_TO_CONTINUOUS = 0.5
# A box or keypoint may leave its image by this much, in pixels, before the image's size is doubted.
_SIZE_TOLERANCE = 2.0


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
    document = _read_document(json_file)
    images = _images(document, json_file)
    if not Path(image_root).is_dir():
        raise DatasetError(
            f"There is no image folder {str(image_root)!r} for {json_file}; put the images there, or set "
            "DETECTRON2_DATASETS to the folder that holds your datasets."
        )
    category_id, category = _find_category(document, json_file, skeleton)
    records = {
        image_id: {
            "file_name": os.path.join(image_root, image["file_name"]),
            "height": image["height"],
            "width": image["width"],
            "image_id": image_id,
        }
        for image_id, image in sorted(images.items())
    }
    if "annotations" in document:
        annotations = _annotations_of_category(document["annotations"], json_file, category_id)
        _add_annotations(records, annotations, json_file, skeleton)
    return PoseFile(list(records.values()), category_id, category)


def _read_document(json_file: str | Path) -> dict[str, Any]:
    if not Path(json_file).is_file():
        raise DatasetError(
            f"There is no annotation file {str(json_file)!r}; datasets/README.md says where each dataset goes, and "
            "DETECTRON2_DATASETS names the folder that holds them."
        )
    try:
        document = json.loads(Path(json_file).read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise DatasetError(f"{json_file} is not valid json ({error}); download or write it again.") from error
    if not isinstance(document, dict) or not isinstance(document.get("images"), list):
        raise DatasetError(f"{json_file} is not a COCO json: it lacks the list 'images'.")
    for name in ("annotations", "categories"):
        if not isinstance(document.get(name, []), list):
            raise DatasetError(f"{json_file} is not a COCO json: {name!r} is not a list.")
    return document


def _images(document: Mapping[str, Any], json_file: str | Path) -> dict[int, dict[str, Any]]:
    images: dict[int, dict[str, Any]] = {}
    for image in document["images"]:
        if not isinstance(image, dict) or not _is_id(image.get("id")):
            raise DatasetError(f"{json_file}: image {image!r} has no integer 'id'; number the images.")
        if image["id"] in images:
            raise DatasetError(f"{json_file}: two images have the id {image['id']}; give each its own.")
        if not isinstance(image.get("file_name"), str) or not image["file_name"]:
            raise DatasetError(f"{json_file}: image {image['id']} has no 'file_name'.")
        for side in ("height", "width"):
            if not _is_id(image.get(side)) or image[side] <= 0:
                raise DatasetError(
                    f"{json_file}: image {image['id']} ({image['file_name']}) has {side} {image.get(side)!r}; write "
                    "its size in pixels, an integer above 0."
                )
        images[image["id"]] = image
    if not images:
        raise DatasetError(f"{json_file} lists no images; is it the right file?")
    return images


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _find_category(document: Mapping[str, Any], json_file: str | Path, skeleton: Skeleton) -> tuple[int, str]:
    """Id and name of the category whose keypoints are those of the skeleton, in its order."""
    categories = document.get("categories", [])
    for category in categories:
        if not isinstance(category, dict) or not _is_id(category.get("id")):
            raise DatasetError(f"{json_file}: category {category!r} has no integer 'id'.")
    with_keypoints = [category for category in categories if category.get("keypoints")]
    for category in with_keypoints:
        if not isinstance(category["keypoints"], list):
            raise DatasetError(
                f"{json_file}: category {category.get('name')!r} has the keypoints {category['keypoints']!r}; it needs "
                "the list of their names."
            )
    fitting = [category for category in with_keypoints if tuple(category["keypoints"]) == skeleton.keypoints]
    if not with_keypoints and (len(categories) == 1 or "annotations" not in document):
        fitting = categories[:1]  # it names no keypoints, and their number is checked with the annotations
    if len(fitting) == 1:
        return fitting[0]["id"], str(fitting[0].get("name", fitting[0]["id"]))
    if len(fitting) > 1:
        raise DatasetError(
            f"{json_file}: {len(fitting)} categories have the keypoints of skeleton {skeleton.name!r}; one is read: "
            "merge them, or split the file."
        )
    if not with_keypoints:
        raise DatasetError(
            f"{json_file}: none of its {len(categories)} categories has 'keypoints'; it needs one with those of "
            f"skeleton {skeleton.name!r}, in this order: {', '.join(skeleton.keypoints)}."
        )
    raise DatasetError(f"{json_file}: {_describe_mismatch(with_keypoints[0], skeleton)}")


def _describe_mismatch(category: Mapping[str, Any], skeleton: Skeleton) -> str:
    names = tuple(category["keypoints"])
    remedy = "name the skeleton of this dataset, or add it to DATASETS.SKELETONS"
    if len(names) != skeleton.num_keypoints:
        return (
            f"category {category.get('name')!r} has {len(names)} keypoints, skeleton {skeleton.name!r} has "
            f"{skeleton.num_keypoints}; {remedy}."
        )
    index = next(index for index, name in enumerate(names) if name != skeleton.keypoints[index])
    return (
        f"category {category.get('name')!r} has other keypoints than skeleton {skeleton.name!r}, or in another order: "
        f"number {index} is {names[index]!r} in the file and {skeleton.keypoints[index]!r} in the skeleton; {remedy}."
    )


def _annotations_of_category(
    annotations: Sequence[Any], json_file: str | Path, category_id: int
) -> list[dict[str, Any]]:
    seen: set[int] = set()
    for annotation in annotations:
        if not isinstance(annotation, dict) or not _is_id(annotation.get("id")):
            raise DatasetError(f"{json_file}: an annotation has no integer 'id': {str(annotation)[:120]}.")
        if annotation["id"] in seen:
            raise DatasetError(f"{json_file}: two annotations have the id {annotation['id']}; give each its own.")
        seen.add(annotation["id"])
    chosen = [annotation for annotation in annotations if annotation.get("category_id") == category_id]
    if len(chosen) < len(annotations):
        _logger.warning(
            "%s: %d of %d annotations are of another category than %d and are left out.",
            json_file, len(annotations) - len(chosen), len(annotations), category_id,
        )  # fmt: skip
    return chosen


def _add_annotations(
    records: dict[int, dict[str, Any]], annotations: list[dict[str, Any]], json_file: str | Path, skeleton: Skeleton
) -> None:
    """Adds the list "annotations" to every record."""
    for annotation in annotations:
        _check_annotation(annotation, records, json_file)
        if annotation.get("iscrowd", 0) and not annotation.get("keypoints"):
            annotation["keypoints"] = [0] * (3 * skeleton.num_keypoints)
    boxes = _numbers(annotations, "bbox", 4, "x, y, width, height", json_file)
    keypoints = _numbers(
        annotations, "keypoints", 3 * skeleton.num_keypoints,
        f"x, y, v of each of the {skeleton.num_keypoints} keypoints of skeleton {skeleton.name!r}", json_file,
    )  # fmt: skip
    keypoints = keypoints.reshape(-1, skeleton.num_keypoints, 3)
    _check_visibilities(annotations, keypoints[..., 2], json_file)
    keypoints[..., :2] += _PIXEL_INDEX_TO_CONTINUOUS
    boxes[:, 2:] += boxes[:, :2]
    _correct_swapped_sizes(records, annotations, boxes, json_file)
    image_sizes = np.array(
        [[records[annotation["image_id"]][side] for side in ("width", "height")] for annotation in annotations]
    ).reshape(-1, 2)
    clipped = np.clip(boxes, 0, np.tile(image_sizes, 2))
    is_empty = (clipped[:, 2:] <= clipped[:, :2]).any(axis=1)
    _report_boxes(annotations, (clipped != boxes).any(axis=1) & ~is_empty, is_empty, json_file)
    clipped[:, 2:] -= clipped[:, :2]

    for record in records.values():
        record["annotations"] = []
    for index in np.flatnonzero(~is_empty):
        annotation = annotations[index]
        records[annotation["image_id"]]["annotations"].append(
            {
                "id": annotation["id"],
                "bbox": clipped[index].tolist(),
                "bbox_mode": BoxMode.XYWH_ABS,
                "keypoints": keypoints[index].ravel().tolist(),
                "category_id": 0,
                "iscrowd": int(annotation.get("iscrowd", 0)),
            }
        )


def _check_annotation(
    annotation: Mapping[str, Any], records: Mapping[int, dict[str, Any]], json_file: str | Path
) -> None:
    image_id, is_crowd = annotation.get("image_id"), annotation.get("iscrowd", 0)
    if not _is_id(image_id) or image_id not in records:
        raise DatasetError(
            f"{json_file}: annotation {annotation['id']} is of image {image_id!r}, which the file does not list; add "
            "the image or remove the annotation."
        )
    if is_crowd not in (0, 1):
        raise DatasetError(
            f"{json_file}: 'iscrowd' of annotation {annotation['id']} is {is_crowd!r}; allowed: 0 (a person), 1 (a "
            "region with many)."
        )


def _numbers(
    annotations: list[dict[str, Any]], field: str, length: int, meaning: str, json_file: str | Path
) -> np.ndarray:
    """The field of every annotation as float64 (number of annotations, length)."""
    for annotation in annotations:
        values = annotation.get(field)
        if not isinstance(values, list) or len(values) != length:
            found = f"{len(values)} numbers" if isinstance(values, list) else repr(values)
            raise DatasetError(
                f"{json_file}: {field!r} of annotation {annotation['id']} (image {annotation['image_id']}) is {found}; "
                f"it must be {length} numbers: {meaning}."
            )
    try:
        numbers = np.array([annotation[field] for annotation in annotations], dtype=np.float64).reshape(-1, length)
        wrong = np.flatnonzero(~np.isfinite(numbers).all(axis=1))
    except (TypeError, ValueError, OverflowError):
        wrong = np.array([index for index, annotation in enumerate(annotations) if not _are_numbers(annotation[field])])
    if len(wrong):
        annotation = annotations[wrong[0]]
        raise DatasetError(
            f"{json_file}: {field!r} of annotation {annotation['id']} (image {annotation['image_id']}) has a value "
            "that is not finite or no number; correct it, or write 0, 0, 0 for a keypoint that is not labelled."
        )
    return numbers


def _are_numbers(values: list[Any]) -> bool:
    return all(isinstance(value, int | float) and abs(value) <= sys.float_info.max for value in values)


def _check_visibilities(annotations: list[dict[str, Any]], visibilities: np.ndarray, json_file: str | Path) -> None:
    wrong = np.argwhere(~np.isin(visibilities, (0, 1, 2)))
    if len(wrong):
        index, keypoint = wrong[0]
        raise DatasetError(
            f"{json_file}: keypoint number {keypoint} of annotation {annotations[index]['id']} has the visibility "
            f"{visibilities[index, keypoint]:g}; allowed: 0 (not labelled), 1 (labelled, hidden), 2 (visible)."
        )


def _correct_swapped_sizes(
    records: dict[int, dict[str, Any]], annotations: list[dict[str, Any]], boxes_xyxy: np.ndarray, json_file: str | Path
) -> None:
    """Corrects images whose height and width the json has swapped, where a box betrays it.

    CrowdPose has such images. Only those are opened whose boxes fit the transposed size and not the stated one; the
    others are recognised when they are read (`PoseMapper`).
    """
    extents: dict[int, np.ndarray] = {}
    for annotation, box in zip(annotations, boxes_xyxy, strict=True):
        image_id = annotation["image_id"]
        extents[image_id] = np.maximum(extents.get(image_id, box[2:]), box[2:])
    corrected = []
    for image_id, (right, bottom) in extents.items():
        record = records[image_id]
        height, width = record["height"], record["width"]
        fits = right <= width + _SIZE_TOLERANCE and bottom <= height + _SIZE_TOLERANCE
        fits_transposed = right <= height + _SIZE_TOLERANCE and bottom <= width + _SIZE_TOLERANCE
        if fits or not fits_transposed:
            continue
        try:
            is_swapped = read_image_size(record["file_name"]) == (width, height)
        except ImageReadError as error:
            raise DatasetError(
                f"{json_file}: the boxes of image {image_id} do not fit its size, {width}x{height}, and the image "
                f"cannot tell which is right: {error}"
            ) from error
        if is_swapped:
            record["height"], record["width"] = width, height
            corrected.append(image_id)
    if corrected:
        _logger.warning(
            "%s: height and width of %d images are swapped in the file (ids %s); corrected from the images.",
            json_file, len(corrected), _first_few(corrected),
        )  # fmt: skip


def _report_boxes(
    annotations: list[dict[str, Any]], is_clipped: np.ndarray, is_empty: np.ndarray, json_file: str | Path
) -> None:
    for what, where in (("reach outside their image and were clipped", is_clipped),
                        ("are empty or outside their image; these persons are left out", is_empty)):  # fmt: skip
        if where.any():
            ids = [annotations[index]["id"] for index in np.flatnonzero(where)]
            _logger.warning(
                "%s: the boxes of %d of %d annotations %s (ids %s).",
                json_file, len(ids), len(annotations), what, _first_few(ids),
            )  # fmt: skip


def _first_few(ids: Sequence[int], count: int = 5) -> str:
    return ", ".join(map(str, ids[:count])) + (", …" if len(ids) > count else "")
