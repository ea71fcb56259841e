"""Predicted poses as arrays: from a model's `Instances`, from a results file, and back into the COCO results format.

Coordinates are those of the annotation file: the center of the first pixel is 0 for keypoints, boxes are continuous.

Letters of shapes: N poses, K keypoints.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from querypose.d2 import Instances, MetadataCatalog, atomic_write
from querypose.data.coco import PIXEL_INDEX_TO_CONTINUOUS, PoseAnnotations
from querypose.data.results import Results, parse_results
from querypose.errors import RemediableError
from querypose.skeleton import Skeleton

# Digits after the point in a results file; 1e-4 pixel is about what float32 resolves.
_DECIMALS = 4


class EvaluationError(RemediableError, ValueError):
    """Something that cannot be evaluated."""


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


def read_detections(content: Any, annotations: PoseAnnotations, name: str = "the results") -> Detections:
    """Checks a list of results in the COCO keypoints format, see `querypose.data.results`.

    Args:
        content: the list.
        annotations: what they will be compared with.
        name: of the list in messages, for example its file.

    Raises:
        ResultsError: a result cannot be used, or is of no image, or of another category, of the annotations.
    """
    return detections_of(parse_results(content, name, annotations.skeleton), annotations)


def detections_of(results: Results, annotations: PoseAnnotations) -> Detections:
    """Results as a metric takes them.

    Args:
        results: read with the skeleton of the annotations.
        annotations: what they will be compared with.

    Raises:
        ResultsError: one is of no image, or of another category, of the annotations.
    """
    assert results.keypoints is not None
    image_indices = results.of_dataset(annotations)
    order = np.argsort(image_indices, kind="stable")
    poses = Poses(results.keypoints, results.scores, results.boxes_xywh, results.visibilities)
    return Detections(image_indices[order], poses[order])


def write_json(path: Path, content: Any) -> None:
    """Writes a json file whole or not at all; arrays become lists."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path, "w") as file:
        file.write(json.dumps(content, default=np.ndarray.tolist))
