"""Predicted poses as arrays: from a model's `Instances`, from a results file, and back into the COCO results format.

Coordinates are those of the annotation file: the center of the first pixel is 0 for keypoints, boxes are continuous.

Letters of shapes: N poses, K keypoints.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from querypose.d2 import Instances, MetadataCatalog, atomic_write
from querypose.data.coco import PIXEL_INDEX_TO_CONTINUOUS, PoseAnnotations
from querypose.skeleton import Skeleton

# Numbers from here on count as infinite: their squares could overflow.
_INFINITE = 1e100
# Digits after the point in a results file; 1e-4 pixel is about what float32 resolves.
_DECIMALS = 4


class EvaluationError(ValueError):
    """Something that cannot be evaluated.

    Attributes:
        what: names the file and the id, and what is wrong.
        remedy: what to do about it.
    """

    def __init__(self, what: str, remedy: str = "") -> None:
        super().__init__(what, remedy)
        self.what = what
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.what}; {self.remedy}." if self.remedy else self.what


@dataclass(frozen=True)
class Poses:
    """Predicted poses, of one image or of many.

    Attributes:
        keypoints: x, y, score (N, K, 3).
        scores: (N).
        boxes_xywh: (N, 4); None of a model that predicts no boxes.
        visibilities: in [0, 1] (N, K); None of a model that predicts none.
        person_areas: in square pixels (N), of a model that knows them better than by its boxes: a top-down model's are
            those of its crops. None of other models.
    """

    keypoints: NDArray[np.float64]
    scores: NDArray[np.float64]
    boxes_xywh: NDArray[np.float64] | None = None
    visibilities: NDArray[np.float64] | None = None
    person_areas: NDArray[np.float64] | None = None

    def __len__(self) -> int:
        return len(self.scores)

    def __getitem__(self, index: Any) -> Poses:
        """Some of the poses: those of a slice, an array of indices or a mask."""
        return Poses(
            self.keypoints[index],
            self.scores[index],
            *(None if values is None else values[index] for values in self._optional),
        )

    @property
    def _optional(self) -> tuple[NDArray[np.float64] | None, ...]:
        return self.boxes_xywh, self.visibilities, self.person_areas

    @property
    def areas(self) -> NDArray[np.float64]:
        """Of the boxes; without boxes of the keypoints' extents, as in the COCO API (N)."""
        if self.boxes_xywh is not None:
            return np.asarray(self.boxes_xywh[:, 2] * self.boxes_xywh[:, 3])
        return np.asarray(self.extents_xywh[:, 2:].prod(axis=1))

    @property
    def extents_xywh(self) -> NDArray[np.float64]:
        """The smallest boxes round the keypoints (N, 4)."""
        xy_NKD = self.keypoints[:, :, :2]
        return np.concatenate([xy_NKD.min(axis=1), np.ptp(xy_NKD, axis=1)], axis=1)

    @staticmethod
    def joined(parts: Sequence[Poses], num_keypoints: int) -> Poses:
        """The poses of several images, in their order."""
        parts = [part for part in parts if len(part)]
        if not parts:
            return Poses(np.zeros((0, num_keypoints, 3)), np.zeros(0))
        optional = []
        for values in zip(*(part._optional for part in parts), strict=True):
            present = [value for value in values if value is not None]
            optional.append(np.concatenate(present) if len(present) == len(parts) else None)
        return Poses(
            np.concatenate([part.keypoints for part in parts]),
            np.concatenate([part.scores for part in parts]),
            *optional,
        )

    def rounded(self) -> Poses:
        """As a results file has them; scores keep all digits."""
        boxes, visibilities = self.boxes_xywh, self.visibilities
        return Poses(
            np.round(self.keypoints, _DECIMALS),
            self.scores,
            None if boxes is None else np.round(boxes, _DECIMALS),
            None if visibilities is None else np.round(visibilities, _DECIMALS),
            self.person_areas,
        )


@dataclass(frozen=True)
class Detections:
    """The poses that a metric compares with the annotations.

    Attributes:
        image_indices: the image of each, as its place in `PoseAnnotations.image_ids` (N); ascending.
        poses: N of them.
    """

    image_indices: NDArray[np.int64]
    poses: Poses

    def of_image(self, index: int) -> Poses:
        """Those of an image, in the order in which they were given."""
        first, last = np.searchsorted(self.image_indices, (index, index + 1))
        return self.poses[int(first) : int(last)]

    @staticmethod
    def joined(of_image: Mapping[int, Poses], num_keypoints: int) -> Detections:
        """From the poses of images by their places, ascending."""
        indices = np.repeat(np.array(list(of_image), np.int64), [len(poses) for poses in of_image.values()])
        return Detections(indices, Poses.joined(list(of_image.values()), num_keypoints))


def instances_to_poses(instances: Instances, image_id: Any, skeleton: Skeleton) -> Poses:
    """A model's predictions for an image; 0.5 is taken off the keypoints.

    Args:
        instances: `scores` (N), `pred_keypoints` (N, K, 3), and of models that predict them `pred_boxes` and
            `pred_visibilities` (N, K), and `pred_areas` (N), see `Poses.person_areas`; in pixels of the original
            image, where the center of the first pixel is 0.5.
        image_id: for messages.
        skeleton: of the K keypoints that are expected.

    Raises:
        EvaluationError: a prediction is NaN or infinite, or has another number of keypoints.
    """
    count = len(instances)
    if not count:
        return Poses.joined((), skeleton.num_keypoints)
    keypoints = np.array(instances.pred_keypoints.detach().double().cpu().numpy())
    scores = np.asarray(instances.scores.detach().double().cpu().numpy())
    if keypoints.shape[1:] != (skeleton.num_keypoints, 3):
        raise EvaluationError(
            f"Image {image_id!r}: the predicted keypoints have the shape {keypoints.shape}, but skeleton "
            f"{skeleton.name!r} needs (N, {skeleton.num_keypoints}, 3). Evaluate on a dataset of the model's skeleton."
        )
    boxes = visibilities = areas = None
    if instances.has("pred_boxes"):
        boxes = np.array(instances.pred_boxes.tensor.detach().double().cpu().numpy())
        boxes[:, 2:] -= boxes[:, :2]
    if instances.has("pred_visibilities"):
        visibilities = np.asarray(instances.pred_visibilities.detach().double().cpu().numpy())
    if instances.has("pred_areas"):
        areas = np.asarray(instances.pred_areas.detach().double().cpu().numpy())
    for name, values in (
        ("keypoints", keypoints), ("scores", scores), ("boxes", boxes), ("visibilities", visibilities),
    ):  # fmt: skip
        if values is None:
            continue
        if bad := int((~np.isfinite(values.reshape(count, -1))).any(axis=1).sum()):
            raise EvaluationError(
                f"Image {image_id!r}: {bad} of {count} predictions have NaN or infinite {name}: the model has "
                "diverged. A NaN would count as a correct pose, so nothing is evaluated. Use an earlier checkpoint."
            )
    keypoints[:, :, :2] -= PIXEL_INDEX_TO_CONTINUOUS
    return Poses(keypoints, scores, boxes, visibilities, areas)


def poses_to_results(poses: Poses, image_id: Any, category_id: Any) -> list[dict[str, Any]]:
    """Rounded poses of an image in the COCO results format, with `visibilities` (K) where the model predicts them.

    Keypoints and visibilities stay arrays, a row of one for all poses, which takes a quarter of the memory of Python's
    numbers; `write_json` writes them as lists.
    """
    if not len(poses):
        return []
    results: list[dict[str, Any]] = [
        {"image_id": image_id, "category_id": category_id, "keypoints": keypoints, "score": score}
        for keypoints, score in zip(poses.keypoints.reshape(len(poses), -1), poses.scores.tolist(), strict=True)
    ]
    if poses.boxes_xywh is not None:
        for result, box in zip(results, poses.boxes_xywh.tolist(), strict=True):
            result["bbox"] = box
    if poses.visibilities is not None:
        for result, visibilities in zip(results, poses.visibilities, strict=True):
            result["visibilities"] = visibilities
    return results


def instances_to_results(
    instances: Instances, image_id: Any, category_ids: Sequence[Any], skeleton: Skeleton
) -> list[dict[str, Any]]:
    """A model's predictions for an image in the COCO results format; `category_ids` are those of the model's classes.

    Raises:
        EvaluationError: see `instances_to_poses`.
    """
    return poses_to_results(instances_to_poses(instances, image_id, skeleton).rounded(), image_id, category_ids[0])


def dataset_category_ids(dataset_name: str) -> list[Any]:
    """`category_id` in the json of the classes of a registered dataset."""
    return list(MetadataCatalog.get(dataset_name).thing_dataset_id_to_contiguous_id)


def read_detections(
    results: Sequence[Mapping[str, Any]], annotations: PoseAnnotations, name: str = "the results"
) -> Detections:
    """Checks a list of results in the COCO keypoints format.

    Args:
        results: `image_id`, `category_id`, `keypoints` (3K; the third of each is its score), `score`, and `bbox` (x, y,
            width, height) in all of them or in none.
        annotations: what they will be compared with.
        name: of the list in messages, for example its file.

    Raises:
        EvaluationError: a field is missing, not finite, of the wrong length, or refers to nothing in the annotations.
    """
    K = annotations.skeleton.num_keypoints
    if not isinstance(results, Sequence) or isinstance(results, str):
        raise EvaluationError(f"{name} must be a list of results, not a {type(results).__name__}.")
    if not results:
        return Detections(np.zeros(0, np.int64), Poses.joined((), K))
    index_of_image = {image_id: index for index, image_id in enumerate(annotations.image_ids)}
    with_boxes = isinstance(results[0], Mapping) and _has_box(results[0])
    for index, result in enumerate(results):
        _check_result(result, annotations, index_of_image, with_boxes, f"{name}: result {index}", name)
    keypoints = _finite_rows(results, "keypoints", 3 * K, name).reshape(-1, K, 3)
    boxes = _finite_rows(results, "bbox", 4, name) if with_boxes else None
    if boxes is not None:
        for index in np.flatnonzero((boxes[:, 2:] < 0).any(axis=1)).tolist():
            # For the COCO API such a detection is outside every area range, so that it never counts as false.
            raise EvaluationError(
                f"{name}: result {index} (image {results[index]['image_id']!r}) has bbox "
                f"{list(results[index]['bbox'])}; allowed: x, y, width, height with width and height >= 0."
            )
    image_indices = np.array([index_of_image[result["image_id"]] for result in results], np.int64)
    order = np.argsort(image_indices, kind="stable")
    poses = Poses(keypoints, np.array([float(result["score"]) for result in results]), boxes)
    return Detections(image_indices[order], poses[order])


def _check_result(
    result: Mapping[str, Any],
    annotations: PoseAnnotations,
    index_of_image: Mapping[int, int],
    with_boxes: bool,
    where: str,
    name: str,
) -> None:
    if not isinstance(result, Mapping):
        raise EvaluationError(
            f"{where} is a {type(result).__name__}; allowed: an object with image_id, category_id, keypoints, score."
        )
    for field in ("image_id", "category_id", "keypoints", "score"):
        if field not in result:
            raise EvaluationError(f"{where} has no {field!r}; every result needs one.")
    image_id, category_id = result["image_id"], result["category_id"]
    where = f"{where} (image {image_id!r})"
    if not _is_id(image_id) or image_id not in index_of_image:
        raise EvaluationError(
            f"{where}: {annotations.path} has no image of this id (it has {_some(annotations.image_ids)})",
            "use the results and the annotations of one dataset and split",
        )
    if not _is_id(category_id) or category_id != annotations.category_id:
        raise EvaluationError(
            f"{where} has category_id {category_id!r}; allowed: {annotations.category_id}, as in {annotations.path}."
        )
    score, keypoints = result["score"], result["keypoints"]
    if not isinstance(score, int | float | np.number) or not abs(score) < _INFINITE:
        raise EvaluationError(f"{where} has score {score!r}; allowed: a finite number.")
    if not isinstance(keypoints, Sequence | np.ndarray):
        raise EvaluationError(f"{where} has keypoints {keypoints!r}; allowed: a list of x, y, score, ….")
    K = annotations.skeleton.num_keypoints
    if len(keypoints) != 3 * K:
        raise EvaluationError(
            f"{where} has {len(keypoints)} values in 'keypoints'; allowed: {3 * K}, x, y and score of each of the {K} "
            f"keypoints of skeleton {annotations.skeleton.name!r}."
        )
    if _has_box(result) != with_boxes:
        raise EvaluationError(
            f"{where} {'has no' if with_boxes else 'has a'} 'bbox', unlike the first result; allowed: a 'bbox' in all "
            "results, or in none."
        )
    if with_boxes and (not isinstance(result["bbox"], Sequence | np.ndarray) or len(result["bbox"]) != 4):
        raise EvaluationError(f"{where} has bbox {result['bbox']!r}; allowed: x, y, width, height.")


def _has_box(result: Mapping[str, Any]) -> bool:
    bbox = result.get("bbox")
    return bbox is not None and (not isinstance(bbox, Sequence | np.ndarray) or len(bbox) > 0)


def _is_id(value: Any) -> bool:
    """Whether it is an integer; some programs write 17.0."""
    if isinstance(value, float | np.floating):
        return float(value).is_integer()
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def _finite_rows(results: Sequence[Mapping[str, Any]], field: str, length: int, name: str) -> NDArray[np.float64]:
    """A field of all results as one array (N, length).

    Raises:
        EvaluationError: a value is not a finite number; a NaN would match a person and raise the AP.
    """
    try:
        rows = np.asarray([result[field] for result in results], dtype=np.float64).reshape(-1, length)
    except (TypeError, ValueError, OverflowError) as error:
        raise EvaluationError(f"{name}: a {field!r} has a value that is not a number ({error}).") from error
    bad = np.flatnonzero(~(np.abs(rows) < _INFINITE).all(axis=1)).tolist()
    if bad:
        images = list(dict.fromkeys(results[index]["image_id"] for index in bad))
        raise EvaluationError(
            f"{name}: {len(bad)} of {len(rows)} results have NaN or infinite {field!r}, in the images {_some(images)} "
            f"(first: result {bad[0]}). The model that predicted them has diverged; use an earlier checkpoint."
        )
    return rows


def _some(values: Iterable[Any], count: int = 5) -> str:
    """The first few values, for a message."""
    values = list(values)
    return ", ".join(map(repr, values[:count])) + (", …" if len(values) > count else "")


def read_json(path: str | Path) -> Any:
    """The content of a json file.

    Raises:
        EvaluationError: there is no such file, or it is not json.
    """
    if not Path(path).is_file():
        raise EvaluationError(f"There is no file {str(path)!r}.")
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise EvaluationError(f"{path} is not a json file: {error}.") from error


def write_json(path: Path, content: Any) -> None:
    """Writes a json file whole or not at all; arrays become lists."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path, "w") as file:
        file.write(json.dumps(content, default=np.ndarray.tolist))
