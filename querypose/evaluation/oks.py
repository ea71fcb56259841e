"""Average precision and recall over object keypoint similarity (OKS), by the COCO and the CrowdPose protocol.

The metrics are comparable with published ones: all images of the annotation file count, the 20 best detections of each
image, and scores as the model gave them. faster-coco-eval matches and accumulates; `tests/evaluation/test_oks.py`
compares it with pycocotools.

Letters of shapes: D detections, G persons of the ground truth, K keypoints.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from faster_coco_eval import COCO, COCOeval_faster
from numpy.typing import NDArray

from querypose.data.coco import AREA_OF_BOX, PoseAnnotations
from querypose.evaluation.detections import Detections, EvaluationError
from querypose.evaluation.metrics import METRIC_REGISTRY

MAX_DETECTIONS = 20

# Names of the metrics of each protocol, in the order of a table; the first is the main one.
METRICS: Mapping[str, tuple[str, ...]] = {
    "coco": ("AP", "AP50", "AP75", "APm", "APl", "AR", "AR50", "AR75", "ARm", "ARl"),
    "crowdpose": ("AP", "AP50", "AP75", "APE", "APM", "APH", "AR", "AR50", "AR75"),
}

# CrowdPose's paper splits easy, medium and hard at crowdIndex 0.1 and 0.8, its code at 0.2 and 0.8. Published metrics
# are those of the code.
CROWD_INDEX_BOUNDS = (0.2, 0.8)

_CATEGORY = 1


@METRIC_REGISTRY.register()
def coco(annotations: PoseAnnotations, detections: Detections) -> dict[str, float]:
    """AP and AR of the COCO keypoints benchmark, in percent; NaN where there is nobody to find."""
    has_no_area = np.isnan(annotations.areas)
    if has_no_area.any() and len(detections.poses):
        logging.getLogger(__name__).warning(
            "%d of %d persons of %s have no 'area'; %s times the area of the box is used instead.",
            np.count_nonzero(has_no_area), len(has_no_area), annotations.path, AREA_OF_BOX,
        )  # fmt: skip
    evaluation = _OksEvaluation(annotations, detections, person_areas(annotations))
    return evaluation.metrics(METRICS["coco"], range(len(annotations.image_ids)))


@METRIC_REGISTRY.register()
def crowdpose(annotations: PoseAnnotations, detections: Detections) -> dict[str, float]:
    """AP and AR of CrowdPose in percent, NaN where there is nobody to find.

    A person's area is 0.53 of its box; APE, APM, APH are AP over the images of easy, medium and hard `crowdIndex`.
    Deviates: the CrowdPose code rounds those three to 0.01 %; here they are not rounded.

    Raises:
        EvaluationError: an image has no `crowdIndex`.
    """
    crowd_indices = annotations.crowd_indices
    for index in np.flatnonzero(np.isnan(crowd_indices))[:1].tolist():
        raise EvaluationError(
            f"{annotations.path}: image {annotations.image_ids[index]} has no crowdIndex, by which the CrowdPose "
            "protocol splits the images",
            "add crowdIndex to each image, or evaluate the file by the COCO protocol",
        )
    evaluation = _OksEvaluation(annotations, detections, person_areas(annotations, "crowdpose"))
    metrics = evaluation.metrics(METRICS["coco"], range(len(annotations.image_ids)))
    split_of_image = np.digitize(crowd_indices, CROWD_INDEX_BOUNDS)
    for split, name in enumerate(("APE", "APM", "APH")):
        metrics |= {name: evaluation.metrics(("AP",), np.flatnonzero(split_of_image == split).tolist())["AP"]}
    return {name: metrics[name] for name in METRICS["crowdpose"]}


def person_areas(annotations: PoseAnnotations, metric: str = "coco") -> NDArray[np.float64]:
    """s² of every person (N): the area of the file; where there is none, and for `crowdpose`, a share of its box."""
    of_boxes = AREA_OF_BOX * annotations.boxes_xywh[:, 2:].prod(axis=1)
    return np.where(np.isnan(annotations.areas) | (metric == "crowdpose"), of_boxes, annotations.areas)


def object_keypoint_similarity(
    found: NDArray[np.float64],
    truth: NDArray[np.float64],
    boxes_xywh: NDArray[np.float64],
    areas: NDArray[np.float64],
    sigmas_K: NDArray[np.float64],
) -> NDArray[np.float64]:
    """OKS (…) of poses with persons; leading dimensions are broadcast.

    Near a person without a labeled keypoint, which the protocol ignores, poses are ignored too: within its box,
    enlarged by its own size on every side, the distance is 0.

    Args:
        found: x and y of the poses (…, K, 2).
        truth: x, y and visibility of the persons (…, K, 3).
        boxes_xywh: of the persons (…, 4).
        areas: of the persons (…).
        sigmas_K: of the skeleton.
    """
    is_labeled = truth[..., 2] > 0
    distances = found - truth[..., :2]
    is_unlabeled = np.asarray(np.logical_not(is_labeled.any(axis=-1, keepdims=True)))
    if is_unlabeled.any():
        low, size = boxes_xywh[..., None, :2], boxes_xywh[..., None, 2:]
        beyond = np.maximum(0, low - size - found) + np.maximum(0, found - low - 2 * size)
        distances = np.where(is_unlabeled[..., None], beyond, distances)
    is_counted = is_labeled | is_unlabeled
    similarity = similarity_of_poses((distances**2).sum(axis=-1), areas, sigmas_K)
    return np.asarray((similarity * is_counted).sum(axis=-1) / is_counted.sum(axis=-1))


def similarity_of_poses(
    squared_distances: NDArray[np.float64], areas: NDArray[np.float64], sigmas_K: NDArray[np.float64]
) -> NDArray[np.float64]:
    """exp(-d² / (2 area (2 sigma)²)) of every keypoint.

    Args:
        squared_distances: d² in pixels (…, K).
        areas: of what is compared, in pixels (…).
        sigmas_K: of the skeleton.
    """
    # COCO adds the spacing too; it avoids a division by an area of 0.
    return np.exp(-squared_distances / (2 * sigmas_K) ** 2 / (areas[..., None] + np.spacing(1)) / 2)


class _OksEvaluation(COCOeval_faster):
    """An evaluation that can be run on several sets of images and computes every OKS once.

    The library gets numbers from 1 instead of ids, because for it an annotation with id 0 means "no match".
    """

    def __init__(self, annotations: PoseAnnotations, detections: Detections, areas_G: NDArray[np.float64]) -> None:
        self._annotations = annotations
        self._detections = detections
        self._areas_G = areas_G
        self._sigmas_K = np.asarray(annotations.skeleton.sigmas, dtype=np.float64)
        self._known_oks: dict[int, Any] = {}
        num_images = len(annotations.image_ids)
        persons = zip(
            annotations.image_indices.tolist(), areas_G.tolist(), annotations.is_crowd.tolist(),
            annotations.num_keypoints.tolist(), strict=True,
        )  # fmt: skip
        poses = detections.poses
        found = zip(detections.image_indices.tolist(), poses.areas.tolist(), poses.scores.tolist(), strict=True)
        super().__init__(
            build_coco(
                num_images,
                [
                    {"image_id": image + 1, "area": area, "iscrowd": int(is_crowd), "num_keypoints": count}
                    for image, area, is_crowd, count in persons
                ],
            ),
            build_coco(
                num_images,
                [{"image_id": image + 1, "area": area, "score": score, "iscrowd": 0} for image, area, score in found],
            ),
            "keypoints",
            kpt_oks_sigmas=list(self._sigmas_K),
            print_function=discard,
        )
        self.params.catIds = [_CATEGORY]
        self.params.maxDets = [MAX_DETECTIONS]

    def metrics(self, names: Sequence[str], images: Sequence[int]) -> dict[str, float]:
        """Those of the COCO protocol that are named, on these images."""
        if images:
            self.params.imgIds = [image + 1 for image in images]
            self.evaluate()
            self.accumulate()
        else:
            self.eval = {"precision": np.full((1, 1, 1, 3, 1), -1.0), "recall": np.full((1, 1, 3, 1), -1.0)}
        areas = {"m": "medium", "l": "large"}
        return {
            name: self._average(
                "precision" if name.startswith("AP") else "recall",
                threshold=float(name[2:]) / 100 if name[2:].isdigit() else None,
                area=areas.get(name[2:], "all"),
            )
            for name in names
        }

    def _average(self, what: str, *, threshold: float | None, area: str) -> float:
        """Mean of `precision` or `recall` in percent, at one OKS threshold or over all, NaN where it is undefined."""
        values = self.eval[what][..., self.params.areaRngLbl.index(area), 0]
        if threshold is not None and len(values) > 1:
            values = values[np.isclose(self.params.iouThrs, threshold)]
        defined = values[values > -1]
        return 100.0 * float(np.mean(defined)) if defined.size else math.nan

    def computeOks(self, image: int, category: int) -> Any:  # the library's name
        """OKS (D, G) of an image's detections, best first, and persons; computed the first time it is asked for."""
        index = int(image) - 1
        if index not in self._known_oks:
            self._known_oks[index] = self._oks_of_image(index)
        return self._known_oks[index]

    def _oks_of_image(self, index: int) -> Any:
        place = self._annotations.of_image(index)
        poses = self._detections.of_image(index)
        keypoints_GK3, boxes_G4 = self._annotations.keypoints[place], self._annotations.boxes_xywh[place]
        if not len(keypoints_GK3) or not len(poses):
            return []
        # The library's own order: equal scores stay in the order of the results.
        best_first = np.argsort(-poses.scores, kind="mergesort")[:MAX_DETECTIONS]
        return object_keypoint_similarity(
            poses.keypoints[best_first, None, :, :2], keypoints_GK3, boxes_G4, self._areas_G[place], self._sigmas_K
        )


def build_coco(num_images: int, annotations: Sequence[dict[str, Any]]) -> COCO:
    """The library's index over annotations or detections, numbered from 1."""
    coco = COCO(print_function=discard)
    coco.dataset = {
        "images": [{"id": number} for number in range(1, num_images + 1)],
        "categories": [{"id": _CATEGORY}],
        "annotations": [
            {"id": number, "category_id": _CATEGORY, **annotation} for number, annotation in enumerate(annotations, 1)
        ],
    }
    coco.createIndex()
    return coco


def discard(*_: object) -> None:
    """Discards the lines that the library prints; `format_metrics` makes the table."""
