"""Metrics that move from the first minute of a training, when AP does not yet.

AP stays at 0 until poses reach an OKS of 50 %, which takes an error below about 4 px at a person of 80 px. These
metrics take the best prediction for every person, whatever its score, and so say whether a model learns at all.

Letters of shapes: N persons, R pairs of a person and a detection of its image, K keypoints, D coordinates.
"""

from __future__ import annotations

import math

import numpy as np
from faster_coco_eval import COCOeval_faster
from numpy.typing import NDArray

from querypose.data.coco import PoseAnnotations
from querypose.evaluation.detections import Detections, EvaluationError
from querypose.evaluation.metrics import METRIC_REGISTRY
from querypose.evaluation.oks import MAX_DETECTIONS, build_coco, discard, object_keypoint_similarity, person_areas

# A keypoint is correct within this share of the longer side of the person's box.
PCK_SHARE = 0.1
# Ends of the torso, and the share of it within which `pck_torso` takes a keypoint as correct.
TORSO, TORSO_SHARE = ("left_shoulder", "right_hip"), 0.2
# A person is found by a detection whose box has this IoU with the person's; that of AP50 too.
_FOUND_IOU = 0.5
_PERSONS_AT_ONCE = 4096


@METRIC_REGISTRY.register()
def progress(annotations: PoseAnnotations, detections: Detections) -> dict[str, float]:
    """What a training has learned so far, in percent; NaN where there is nobody to find.

    Returns:
        `OKS`: of the best detection for every person with a labeled keypoint, mean; 0 for a person without one.
        `PCK`: the share of labeled keypoints within 10 % of the longer side of the box, of that same detection.
        `boxAP50`: COCO's AP of the boxes at an IoU of 0.5. A model without boxes is given those round its keypoints.
        `found`: the share of persons whose box some detection's box overlaps with an IoU of 0.5 or more.
    """
    boxes_R4 = detections.poses.boxes_xywh
    if boxes_R4 is None:
        boxes_R4 = detections.poses.extents_xywh
    is_person_N = ~annotations.is_crowd
    has_keypoints_N = is_person_N & (annotations.num_keypoints > 0) & (annotations.keypoints[..., 2] > 0).any(axis=1)
    reaches_N = PCK_SHARE * annotations.boxes_xywh[:, 2:].max(axis=1, initial=0)
    oks_N, pck_N, iou_N = best_of_persons(annotations, detections, boxes_R4, reaches_N)
    labeled_N = (annotations.keypoints[..., 2] > 0).sum(axis=1)[has_keypoints_N]
    return {
        "OKS": _percent(oks_N[has_keypoints_N].mean() if has_keypoints_N.any() else math.nan),
        "PCK": _percent((pck_N[has_keypoints_N] * labeled_N).sum() / labeled_N.sum() if len(labeled_N) else math.nan),
        "boxAP50": _box_ap50(annotations, detections, boxes_R4),
        "found": _percent((iou_N[is_person_N] >= _FOUND_IOU).mean() if is_person_N.any() else math.nan),
    }


@METRIC_REGISTRY.register()
def pck_torso(annotations: PoseAnnotations, detections: Detections) -> dict[str, float]:
    """PCK@0.2 as LSP's papers have it: keypoints within 0.2 of the torso, from left shoulder to right hip, in percent.

    Of the best detection for every person of whom both ends are labeled; for single persons, the usual protocol.

    Raises:
        EvaluationError: the skeleton has no such keypoints.
    """
    names = annotations.skeleton.keypoints
    if missing := set(TORSO) - set(names):
        raise EvaluationError(
            f"{annotations.path}: PCK of the torso needs {' and '.join(TORSO)}, and skeleton "
            f"{annotations.skeleton.name!r} has no {sorted(missing)[0]}",
            "use another metric, such as progress",
        )
    ends_2N3 = [annotations.keypoints[:, names.index(name)] for name in TORSO]
    torsos_N = np.linalg.norm(ends_2N3[0][:, :2] - ends_2N3[1][:, :2], axis=1)
    is_counted_N = ~annotations.is_crowd & (ends_2N3[0][:, 2] > 0) & (ends_2N3[1][:, 2] > 0)
    if not is_counted_N.any():
        return {"PCK": math.nan}
    extents = detections.poses.extents_xywh
    _, pck_N, _ = best_of_persons(annotations, detections, extents, TORSO_SHARE * torsos_N)
    labeled_N = (annotations.keypoints[..., 2] > 0).sum(axis=1)[is_counted_N]
    return {"PCK": _percent((pck_N[is_counted_N] * labeled_N).sum() / labeled_N.sum())}


def best_of_persons(
    annotations: PoseAnnotations,
    detections: Detections,
    boxes_xywh: NDArray[np.float64],
    reaches_N: NDArray[np.float64],
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """The best OKS for every annotation (N), that detection's share of correct keypoints, and the best IoU; 0 to 1.

    Args:
        annotations: of the dataset.
        detections: of each image the best by score count, as in the COCO protocol.
        boxes_xywh: of the detections.
        reaches_N: pixels within which a keypoint of an annotation is correct.
    """
    order = np.lexsort((-detections.poses.scores, detections.image_indices))
    images = detections.image_indices[order]
    kept = np.arange(len(images)) - np.searchsorted(images, images) < MAX_DETECTIONS
    order, images = order[kept], images[kept]
    xy_K2, boxes_4 = detections.poses.keypoints[order][..., :2], boxes_xywh[order]
    areas_N, sigmas_K = person_areas(annotations), np.asarray(annotations.skeleton.sigmas)
    oks_N, pck_N, iou_N = np.zeros((3, len(annotations.ids)))
    firsts_N, lasts_N = (np.searchsorted(images, annotations.image_indices, side) for side in ("left", "right"))
    for start in range(0, len(annotations.ids), _PERSONS_AT_ONCE):
        first, count = firsts_N[start:][:_PERSONS_AT_ONCE], (lasts_N - firsts_N)[start:][:_PERSONS_AT_ONCE]
        person_R = start + np.repeat(np.arange(len(count)), count)
        pose_R = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count - first, count)
        truth_RK3, of_person_R4 = annotations.keypoints[person_R], annotations.boxes_xywh[person_R]
        is_labeled_RK = truth_RK3[..., 2] > 0
        squared_RK = ((xy_K2[pose_R] - truth_RK3[..., :2]) ** 2).sum(axis=-1)
        oks_R = object_keypoint_similarity(xy_K2[pose_R], truth_RK3, of_person_R4, areas_N[person_R], sigmas_K)
        is_correct_RK = squared_RK <= reaches_N[person_R, None] ** 2
        by_oks = np.argsort(oks_R, kind="stable")  # the best of a person is written last
        oks_N[person_R[by_oks]] = oks_R[by_oks]
        num_labeled_R = np.maximum(is_labeled_RK.sum(axis=1), 1)
        pck_N[person_R[by_oks]] = ((is_correct_RK & is_labeled_RK).sum(axis=1) / num_labeled_R)[by_oks]
        np.maximum.at(iou_N, person_R, _iou(boxes_4[pose_R], of_person_R4))
    return oks_N, pck_N, iou_N


def _iou(first_R4: NDArray[np.float64], second_R4: NDArray[np.float64]) -> NDArray[np.float64]:
    """Of pairs of boxes x, y, width, height (R)."""
    low_R2 = np.maximum(first_R4[:, :2], second_R4[:, :2])
    high_R2 = np.minimum(first_R4[:, :2] + first_R4[:, 2:], second_R4[:, :2] + second_R4[:, 2:])
    common_R = np.clip(high_R2 - low_R2, 0, None).prod(axis=1)
    union_R = first_R4[:, 2:].prod(axis=1) + second_R4[:, 2:].prod(axis=1) - common_R
    return np.asarray(common_R / np.maximum(union_R, np.spacing(1)))


def _box_ap50(annotations: PoseAnnotations, detections: Detections, boxes_R4: NDArray[np.float64]) -> float:
    truth = zip(
        annotations.image_indices.tolist(), annotations.boxes_xywh.tolist(), annotations.is_crowd.tolist(), strict=True
    )
    found = zip(detections.image_indices.tolist(), boxes_R4.tolist(), detections.poses.scores.tolist(), strict=True)
    num_images = len(annotations.image_ids)
    evaluation = COCOeval_faster(
        build_coco(
            num_images,
            [
                {"image_id": image + 1, "bbox": box, "area": box[2] * box[3], "iscrowd": int(is_crowd)}
                for image, box, is_crowd in truth
            ],
        ),
        build_coco(
            num_images,
            [
                {"image_id": image + 1, "bbox": box, "area": box[2] * box[3], "iscrowd": 0, "score": score}
                for image, box, score in found
            ],
        ),
        "bbox",
        print_function=discard,
    )
    evaluation.params.iouThrs = np.array([_FOUND_IOU])
    evaluation.params.maxDets = [MAX_DETECTIONS]
    evaluation.params.areaRng, evaluation.params.areaRngLbl = evaluation.params.areaRng[:1], ["all"]
    evaluation.evaluate()
    evaluation.accumulate()
    precision = evaluation.eval["precision"]
    defined = precision[precision > -1]
    return _percent(defined.mean() if defined.size else math.nan)


def _percent(share: float) -> float:
    return 100.0 * float(share)
