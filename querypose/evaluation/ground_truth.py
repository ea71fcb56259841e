"""Annotations and detections of the COCO keypoint formats, checked before anything is computed from them.

An evaluation library that meets a file it did not expect tends to answer with a figure. Here every such file gives
either the right figure or an `EvaluationError` that names the file, the id and the remedy.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeGuard

import numpy as np
from numpy.typing import NDArray

from querypose.skeleton import Skeleton

Protocol = Literal["coco", "crowdpose"]
PROTOCOLS: tuple[Protocol, ...] = ("coco", "crowdpose")

# A person's area where a file has only the box: what CrowdPose's own evaluation takes, for every person; under the
# COCO protocol it stands in for an `area` that an annotation lacks.
AREA_OF_BOX = 0.53

# CrowdPose's paper splits easy, medium and hard at crowdIndex 0.1 and 0.8, its code (and every other one) at 0.2 and
# 0.8; published figures are those of the code.
CROWD_INDEX_BOUNDS = (0.2, 0.8)

# The square of what is beyond would overflow.
_INFINITE = 1e100


class EvaluationError(ValueError):
    """A file that cannot be evaluated: names it, the id and the remedy."""


@dataclass(frozen=True)
class GroundTruth:
    """Annotations of a dataset as an evaluation needs them.

    Ids are numbered anew from 1, in the order of the file's ids: the libraries take an annotation of id 0 for "no
    match", and refuse or misread ids that are not integers.

    Attributes:
        name: what error messages call it, the file as a rule.
        image_numbers: the file's image ids -> 1, 2, …; every image of the file, annotated or not.
        category_numbers: the file's category ids -> 1, 2, …
        annotations: `id`, `image_id`, `category_id` (all numbers from here), `bbox` (x, y, w, h), `area`, `iscrowd`,
            `num_keypoints`, `keypoints` (float64 array, 3K).
        splits: CrowdPose's easy, medium and hard images; empty under the COCO protocol.
        num_keypoints: K.
        num_without_area: annotations whose area is `AREA_OF_BOX` of their box because they have none.
        num_without_image: annotations left out because their image is not in the file, as the COCO API leaves them.
    """

    name: str
    image_numbers: Mapping[Any, int]
    category_numbers: Mapping[Any, int]
    annotations: Sequence[dict[str, Any]]
    splits: Mapping[str, Sequence[int]]
    num_keypoints: int
    num_without_area: int = 0
    num_without_image: int = 0

    def notes(self) -> list[str]:
        """What a reader of the figures should know about the file, a sentence each."""
        notes = []
        if self.num_without_area:
            notes.append(
                f"{self.num_without_area} of {len(self.annotations)} persons of {self.name} have no 'area'; "
                f"{AREA_OF_BOX} of the area of the box stands in for it."
            )
        if self.num_without_image:
            notes.append(
                f"{self.num_without_image} annotations of {self.name} belong to images that it does not list; "
                "they are left out."
            )
        return notes


def read_ground_truth(
    content: Mapping[str, Any], skeleton: Skeleton, protocol: Protocol = "coco", name: str = "the annotations"
) -> GroundTruth:
    """Checks the content of an annotation file and completes it.

    A missing `num_keypoints` is counted from `keypoints`; one that is there is kept, also where it counts less (the
    CrowdPose files leave head and neck out of it), since it decides which persons are ignored. `iscrowd` is 0 where
    it is missing, `keypoints` are unlabelled. Nothing in `content` is changed.

    Args:
        content: `images`, `annotations` and `categories` of a COCO keypoints file.
        skeleton: of the K keypoints.
        protocol: "crowdpose" takes areas from the boxes and needs a `crowdIndex` in every image.
        name: what error messages call the file.

    Raises:
        EvaluationError: a part is missing, contradicts itself or the skeleton, or is not finite.
    """
    if protocol not in PROTOCOLS:
        raise EvaluationError(f"There is no evaluation protocol {protocol!r}; allowed: {', '.join(PROTOCOLS)}.")
    for part in ("images", "annotations"):
        if not isinstance(content, Mapping) or not isinstance(content.get(part), Sequence):
            raise EvaluationError(
                f"{name} has no list {part!r}, so there is nothing to evaluate against. A test set without "
                "published annotations is evaluated by its server, from the results file."
            )
    if not isinstance(content.get("categories", ()), Sequence):
        raise EvaluationError(f"{name}: 'categories' is not a list.")
    images, annotations = content["images"], content["annotations"]
    image_numbers = _number([_id_of(image, "id", "an image", name) for image in images], "image", name)
    _number([_id_of(annotation, "id", "an annotation", name) for annotation in annotations], "annotation", name)
    category_ids = [_id_of(category, "id", "a category", name) for category in content.get("categories", ())]
    _number(category_ids, "category", name)
    used_categories = {_id_of(annotation, "category_id", "an annotation", name) for annotation in annotations}
    if category_ids and (unknown := used_categories - set(category_ids)):
        raise EvaluationError(f"{name}: annotations have category ids {_some(unknown)} that 'categories' lacks.")
    category_numbers = _number(sorted({*category_ids, *used_categories}, key=_id_order), "category", name)

    checked: list[dict[str, Any]] = []
    num_without_area = 0
    for annotation in annotations:
        image_id = _id_of(annotation, "image_id", "an annotation", name)
        if image_id not in image_numbers:
            continue
        where = f"{name}: annotation {annotation['id']!r}"
        keypoints = _annotated_keypoints(annotation, skeleton, where)
        bbox = _annotated_box(annotation, where)
        box_area = bbox[3] * bbox[2] * AREA_OF_BOX
        if protocol == "coco":
            num_without_area += annotation.get("area") is None
        area = annotation.get("area") if protocol == "coco" else None
        if area is not None and not (_is_number(area) and area >= 0):
            raise EvaluationError(f"{where} has area {area!r}; allowed: a finite number >= 0, or none at all.")
        num_labelled = _integer_of(annotation, "num_keypoints", where)
        checked.append(
            {
                "id": len(checked) + 1,
                "image_id": image_numbers[image_id],
                "category_id": category_numbers[annotation["category_id"]],
                "bbox": bbox,
                "area": box_area if area is None else area,
                "iscrowd": _integer_of(annotation, "iscrowd", where) or 0,
                "num_keypoints": int(np.count_nonzero(keypoints[2::3] > 0)) if num_labelled is None else num_labelled,
                "keypoints": keypoints,
            }
        )
    return GroundTruth(
        name=name,
        image_numbers=image_numbers,
        category_numbers=category_numbers,
        annotations=checked,
        splits=_crowd_splits(images, image_numbers, name) if protocol == "crowdpose" else {},
        num_keypoints=skeleton.num_keypoints,
        num_without_area=num_without_area,
        num_without_image=len(annotations) - len(checked),
    )


def read_detections(
    detections: Sequence[Mapping[str, Any]], ground_truth: GroundTruth, name: str = "the results"
) -> list[dict[str, Any]]:
    """Checks a list of results in the COCO keypoints format and numbers it as `ground_truth` is numbered.

    The area of a detection decides into which area range it falls while it matches nobody. As the COCO API has it,
    and with it detectron2: that of `bbox` where the results carry one, else that of the extent of the keypoints.

    Args:
        detections: `image_id`, `category_id`, `keypoints` (3K; the third of each is not looked at), `score`, and
            optionally `bbox` (x, y, w, h), in all of them or in none.
        ground_truth: what they will be compared with.
        name: what error messages call the list, its file as a rule.

    Returns:
        new dicts of `id`, `image_id`, `category_id`, `keypoints` (float64 array, 3K), `score`, `area`, `bbox`.

    Raises:
        EvaluationError: a field is missing, not finite, of the wrong length, or refers to nothing in the annotations.
    """
    if not isinstance(detections, Sequence) or isinstance(detections, str):
        raise EvaluationError(f"{name} must be a list of results, not a {type(detections).__name__}.")
    if not detections:
        return []
    with_boxes = isinstance(detections[0], Mapping) and _has_box(detections[0])
    for index, detection in enumerate(detections):
        _check_detection(detection, ground_truth, with_boxes, f"{name}: result {index}", name)
    keypoints_ND3 = _finite_rows(detections, "keypoints", 3 * ground_truth.num_keypoints, name)
    if with_boxes:
        boxes_N4 = _finite_rows(detections, "bbox", 4, name)
        for index in np.flatnonzero((boxes_N4[:, 2:] < 0).any(axis=1)).tolist():
            # The COCO API takes such a detection for one outside every area range and does not count it as false.
            raise EvaluationError(
                f"{name}: result {index} (image {detections[index]['image_id']!r}) has bbox "
                f"{list(detections[index]['bbox'])}, of negative size; allowed: x, y, width, height with sizes >= 0."
            )
    else:
        x, y = keypoints_ND3[:, 0::3], keypoints_ND3[:, 1::3]
        left, top = x.min(axis=1), y.min(axis=1)
        boxes_N4 = np.stack([left, top, x.max(axis=1) - left, y.max(axis=1) - top], axis=1)
    areas_N = (boxes_N4[:, 2] * boxes_N4[:, 3]).tolist()
    return [
        {
            "id": index + 1,
            "image_id": ground_truth.image_numbers[detection["image_id"]],
            "category_id": ground_truth.category_numbers[detection["category_id"]],
            "keypoints": keypoints,
            "score": float(detection["score"]),
            "area": area,
            "bbox": bbox,
            "iscrowd": 0,
        }
        for index, (detection, keypoints, area, bbox) in enumerate(
            zip(detections, keypoints_ND3, areas_N, boxes_N4.tolist(), strict=True)
        )
    ]


def _check_detection(
    detection: Mapping[str, Any], ground_truth: GroundTruth, with_boxes: bool, where: str, name: str
) -> None:
    if not isinstance(detection, Mapping):
        raise EvaluationError(f"{where} is a {type(detection).__name__}; a result is an object with named fields.")
    for field in ("image_id", "category_id", "keypoints", "score"):
        if field not in detection:
            raise EvaluationError(f"{where} has no {field!r}; every result needs one.")
    image_id, category_id = detection["image_id"], detection["category_id"]
    where = f"{where} (image {image_id!r})"
    if not _is_id(image_id) or image_id not in ground_truth.image_numbers:
        raise EvaluationError(
            f"{where}: {ground_truth.name} has no image of that id (its ids are such as "
            f"{_some(ground_truth.image_numbers)}); use results of the same dataset and split."
        )
    if not _is_id(category_id) or category_id not in ground_truth.category_numbers:
        raise EvaluationError(
            f"{where} has category_id {category_id!r}; {ground_truth.name} has {_some(ground_truth.category_numbers)}."
        )
    if not _is_number(detection["score"]):
        raise EvaluationError(f"{where} has score {detection['score']!r}; allowed: a finite number.")
    if not isinstance(detection["keypoints"], Sequence | np.ndarray):
        raise EvaluationError(f"{where} has keypoints {detection['keypoints']!r}; allowed: a list of x, y, score, ….")
    if len(detection["keypoints"]) != 3 * ground_truth.num_keypoints:
        raise EvaluationError(
            f"{where} has {len(detection['keypoints'])} keypoint values; the skeleton's "
            f"{ground_truth.num_keypoints} keypoints have {3 * ground_truth.num_keypoints} (x, y, score each)."
        )
    if _has_box(detection) != with_boxes:
        raise EvaluationError(f"{where}: either every result of {name} has a 'bbox' or none; this one differs.")
    if with_boxes and (not isinstance(detection["bbox"], Sequence | np.ndarray) or len(detection["bbox"]) != 4):
        raise EvaluationError(f"{where} has bbox {detection['bbox']!r}; allowed: x, y, width, height.")


def _has_box(detection: Mapping[str, Any]) -> bool:
    bbox = detection.get("bbox")
    return bbox is not None and (not isinstance(bbox, Sequence | np.ndarray) or len(bbox) > 0)


def _finite_rows(detections: Sequence[Mapping[str, Any]], field: str, length: int, name: str) -> NDArray[np.float64]:
    """A field of all detections as one array (N, length).

    Raises:
        EvaluationError: a value is not a finite number; a NaN would match a ground truth and raise the AP.
    """
    try:
        rows = np.asarray([detection[field] for detection in detections], dtype=np.float64).reshape(-1, length)
    except (TypeError, ValueError, OverflowError) as error:
        raise EvaluationError(f"{name}: a {field!r} holds something that is not a number ({error}).") from error
    bad = np.flatnonzero(~(np.abs(rows) < _INFINITE).all(axis=1)).tolist()
    if bad:
        images = list(dict.fromkeys(detections[index]["image_id"] for index in bad))
        raise EvaluationError(
            f"{name}: {len(bad)} of {len(rows)} results have NaN or infinite {field!r}, on the images {_some(images)} "
            f"(first: result {bad[0]}). A model that predicts these has diverged."
        )
    return rows


def _annotated_keypoints(annotation: Mapping[str, Any], skeleton: Skeleton, where: str) -> NDArray[np.float64]:
    flat = annotation.get("keypoints")
    if flat is None:
        return np.zeros(3 * skeleton.num_keypoints)
    try:
        keypoints = np.asarray(flat, dtype=np.float64).reshape(-1)
    except (TypeError, ValueError, OverflowError) as error:
        raise EvaluationError(f"{where}: 'keypoints' holds something that is not a number ({error}).") from error
    if keypoints.size != 3 * skeleton.num_keypoints:
        raise EvaluationError(
            f"{where} has {keypoints.size} keypoint values; the {skeleton.num_keypoints} keypoints of skeleton "
            f"{skeleton.name!r} have {3 * skeleton.num_keypoints}. Choose the skeleton of the file."
        )
    if not np.isfinite(keypoints).all():
        raise EvaluationError(f"{where} has NaN or infinite keypoints.")
    return keypoints


def _integer_of(annotation: Mapping[str, Any], field: str, where: str) -> int | None:
    value = annotation.get(field)
    if value is not None and not _is_number(value):
        raise EvaluationError(f"{where} has {field} {value!r}; allowed: an integer, or none at all.")
    return None if value is None else int(value)


def _annotated_box(annotation: Mapping[str, Any], where: str) -> list[float]:
    bbox = annotation.get("bbox")
    if not isinstance(bbox, Sequence) or len(bbox) != 4 or not all(map(_is_number, bbox)) or min(bbox[2:]) < 0:
        raise EvaluationError(f"{where} has bbox {bbox!r}; needed: x, y, width, height, finite, with sizes >= 0.")
    return [float(value) for value in bbox]


def _crowd_splits(
    images: Iterable[Mapping[str, Any]], image_numbers: Mapping[Any, int], name: str
) -> dict[str, list[int]]:
    """CrowdPose's three sets of images, by `CROWD_INDEX_BOUNDS`."""
    splits: dict[str, list[int]] = {"easy": [], "medium": [], "hard": []}
    for image in images:
        crowd_index = image.get("crowdIndex")
        if not _is_number(crowd_index):
            raise EvaluationError(
                f"{name}: image {image['id']!r} has crowdIndex {crowd_index!r}, and the CrowdPose protocol splits its "
                "images by that number. Evaluate files without one by the COCO protocol."
            )
        split = "easy" if crowd_index < CROWD_INDEX_BOUNDS[0] else "medium"
        splits[split if crowd_index < CROWD_INDEX_BOUNDS[1] else "hard"].append(image_numbers[image["id"]])
    return splits


def _id_of(entry: Mapping[str, Any], field: str, what: str, name: str) -> Any:
    if not isinstance(entry, Mapping):
        raise EvaluationError(f"{name}: {what} is {entry!r}; it must be an object with named fields.")
    value = entry.get(field)
    if not _is_id(value):
        described = {key: entry[key] for key in ("id", "image_id", "file_name") if key in entry}
        raise EvaluationError(f"{name}: {what} {described} has {field} {value!r}; allowed: an integer or a string.")
    return value


def _is_id(value: Any) -> bool:
    if isinstance(value, float | np.floating):
        return float(value).is_integer()
    return isinstance(value, int | str | np.integer) and not isinstance(value, bool)


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float | np.integer | np.floating) and bool(abs(value) < _INFINITE)


def _number(ids: Sequence[Any], what: str, name: str) -> dict[Any, int]:
    """Ids -> 1, 2, … in increasing order, which decides between equal scores as in the COCO API.

    Raises:
        EvaluationError: an id stands twice.
    """
    numbers = {value: number for number, value in enumerate(sorted(ids, key=_id_order), start=1)}
    if len(numbers) != len(ids):
        twice = [value for value, count in Counter(ids).items() if count > 1]
        raise EvaluationError(f"{name}: {what} ids must be unique; more than once: {_some(twice)}.")
    return numbers


def _id_order(value: Any) -> tuple[bool, Any]:
    return isinstance(value, str), value


def _some(values: Iterable[Any], count: int = 5) -> str:
    """The first few values, for a message."""
    values = list(values)
    return ", ".join(map(repr, values[:count])) + (", …" if len(values) > count else "")
