"""What kinds of errors a results file has, and what each costs (Ronchi and Perona, ICCV 2017, "Benchmarking and Error
Diagnosis in Multi-Instance Pose Estimation").

Everything is measured by the similarity of a detected keypoint i at θ with a place p of a keypoint j of a person,
ks = exp(-|θ - p|² / (2 s² k_j²)), with the person's area s² and k_j twice the sigma of j: the OKS of one keypoint.

Letters of shapes: M matched pairs of a detection and a person, N persons, F detections that count (20 an image), K
keypoints, I images.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from querypose.data.coco import PoseAnnotations
from querypose.evaluation.detections import Detections, EvaluationError
from querypose.evaluation.oks import CROWD_INDEX_BOUNDS, similarity_of_poses
from querypose.evaluation.oks_matching import Candidates, OksEvaluation, ragged_product
from querypose.progress import progress

KINDS = ("good", "jitter", "inversion", "swap", "miss")
UNLABELED = -1
# Bounds of ks: from the first on a keypoint is good, below the second it is at no keypoint; and of the OKS from which a
# detection is a person's at all.
GOOD_FROM, NEAR_FROM, MATCHED_FROM = 0.85, 0.5, 0.1
# The paper's order, in which errors are mended one kind after another.
REPAIRS = ("miss", "swap", "inversion", "jitter", "score", "false positives", "false negatives")
_AREA_BOUNDS = {"small": (0.0, 32.0**2), "medium": (32.0**2, 96.0**2), "large": (96.0**2, 1e10)}
_OVERLAP_FROM = 0.1
_CALIBRATION_BINS = 10


@dataclass(frozen=True)
class KeypointErrors:
    """The keypoints of the detections that are somebody's.

    Attributes:
        detection_M: places in the candidates.
        person_M: places in the annotations.
        kind_MK: index into KINDS; UNLABELED where the person's keypoint is not annotated.
        similarity_MK: ks with the right place; 0 where it is not annotated.
    """

    detection_M: NDArray[np.int64]
    person_M: NDArray[np.int64]
    kind_MK: NDArray[np.int64]
    similarity_MK: NDArray[np.float64]

    def counts(self) -> NDArray[np.int64]:
        """How many of each kind every keypoint has (K, kinds)."""
        return np.stack([(self.kind_MK == kind).sum(axis=0) for kind in range(len(KINDS))], axis=1)


@dataclass(frozen=True)
class Repair:
    """What AP and AR in percent would be without one kind of error.

    Attributes:
        kind: of REPAIRS.
        ap: if this kind alone were mended.
        ar: likewise.
        ap_in_turn: if this kind and all before it were mended.
        ar_in_turn: likewise.
    """

    kind: str
    ap: float
    ar: float
    ap_in_turn: float
    ar_in_turn: float


@dataclass(frozen=True)
class Slice:
    """AP and AR in percent of a part of the persons.

    Attributes:
        group: by what they are divided.
        name: of the part.
        num_persons: in it.
        ap: NaN without a person.
        ar: likewise.
    """

    group: str
    name: str
    num_persons: int
    ap: float
    ar: float


@dataclass(frozen=True)
class CalibrationBin:
    """Detections of about the same score: their number, mean score and mean of the highest OKS with a person."""

    count: int
    score: float
    oks: float


@dataclass(frozen=True)
class ErrorAnalysis:
    """What is wrong with a results file.

    Attributes:
        evaluation: that it was made from.
        errors: of the keypoints.
        false_positive_F: detections of nobody, background.
        false_negative_N: persons that count and whom no detection is near.
        ap: in percent.
        ar: in percent.
        repairs: in the order of REPAIRS.
        slices: by area, number of keypoints, overlap and crowding.
        calibration: from the lowest scores to the highest.
    """

    evaluation: OksEvaluation
    errors: KeypointErrors
    false_positive_F: NDArray[np.bool_]
    false_negative_N: NDArray[np.bool_]
    ap: float
    ar: float
    repairs: tuple[Repair, ...]
    slices: tuple[Slice, ...]
    calibration: tuple[CalibrationBin, ...]

    @property
    def num_persons(self) -> int:
        """That count."""
        return int((~self.evaluation.does_not_count_N).sum())

    def shares(self) -> dict[str, float]:
        """Percent of the labeled keypoints of matched detections that are of each kind; NaN where there are none."""
        counts = self.errors.counts().sum(axis=0)
        return {kind: _percent(count, counts.sum()) for kind, count in zip(KINDS, counts.tolist(), strict=True)}

    def shares_of_errors(self) -> dict[str, float]:
        """Percent of the keypoints that are not good that are of each kind of error; NaN where all are good."""
        counts = self.errors.counts().sum(axis=0)[1:]
        return {kind: _percent(count, counts.sum()) for kind, count in zip(KINDS[1:], counts.tolist(), strict=True)}

    def keypoints(self) -> list[dict[str, Any]]:
        """Of every keypoint its name, how many are labeled, mean ks (`oks`) and percent of each kind."""
        errors, rows = self.errors, []
        for index, (name, counts) in enumerate(
            zip(self.evaluation.annotations.skeleton.keypoints, errors.counts(), strict=True)
        ):
            is_labeled_M = errors.kind_MK[:, index] != UNLABELED
            similar_M = errors.similarity_MK[is_labeled_M, index]
            rows.append(
                {
                    "name": name,
                    "labeled": int(counts.sum()),
                    "oks": float(similar_M.mean()) if similar_M.size else math.nan,
                    **{kind: _percent(int(count), counts.sum()) for kind, count in zip(KINDS, counts, strict=True)},
                }
            )
        return rows

    def to_dict(self) -> dict[str, Any]:
        """For a json file; what is undefined is None."""
        content = {
            "images": len(self.evaluation.annotations.image_ids),
            "persons": self.num_persons,
            "detections": len(self.evaluation.candidates),
            "matched": len(self.errors.detection_M),
            "false_positives": int(self.false_positive_F.sum()),
            "false_negatives": int(self.false_negative_N.sum()),
            "AP": self.ap,
            "AR": self.ar,
            "shares": self.shares(),
            "shares_of_errors": self.shares_of_errors(),
            "keypoints": self.keypoints(),
            "repairs": [vars(repair) for repair in self.repairs],
            "slices": [vars(part) for part in self.slices],
            "calibration": [vars(part) for part in self.calibration],
        }
        return {name: _defined(value) for name, value in content.items()}


def analyze_errors(
    annotations: PoseAnnotations, detections: Detections, areas_N: NDArray[np.float64] | None = None
) -> ErrorAnalysis:
    """Analyzes a results file.

    A detection is a person's if the COCO protocol matches the two at an OKS of 0.1. Of the other detections those near
    a crowd or a person without keypoints do not count; the rest are background, false positives. Persons without a
    detection are false negatives. Of the keypoints of matched detections see `keypoint_errors`.

    Deviates: a mended keypoint is where it is annotated. The authors' coco-analyze puts it near that place (jitter at
    the bound of good, misses at that of jitter, inverted and swapped ones as far off as they were from the wrong
    place), so that its gains are smaller.

    What AP and AR would be (`Repair`) is computed anew from mended detections. Keypoints of a kind of error move to
    their annotated places. `score`: each detection is scored by its OKS in the best assignment of detections and
    persons of its image, 0 outside it, the best that rescoring could do. `false positives` are taken away. `false
    negatives` do not count as persons any more.

    Args:
        annotations: of the dataset.
        detections: of the same.
        areas_N: s² of every person; by default the file's. CrowdPose takes 0.53 of the boxes.

    Raises:
        EvaluationError: the dataset has no annotations.
    """
    if not annotations.has_annotations:
        raise EvaluationError(
            f"{annotations.path} has no annotations to compare with", "analyze results of a split that has them"
        )
    evaluation = OksEvaluation(annotations, Candidates.best(detections), areas_N)
    matches = evaluation.match(np.array([MATCHED_FROM]))
    errors = keypoint_errors(evaluation)
    is_found_N = np.zeros(len(annotations.ids), dtype=bool)
    is_found_N[errors.person_M] = True
    is_missed_N = ~is_found_N & ~evaluation.does_not_count_N
    is_false_F = matches.is_false_TF[0]
    ap, ar = evaluation.ap_and_ar()
    return ErrorAnalysis(
        evaluation, errors, is_false_F, is_missed_N, ap, ar,
        repairs=_repairs(evaluation, errors, is_false_F, is_missed_N),
        slices=tuple(_slices(evaluation)),
        calibration=_calibration(evaluation, matches.is_ignored_TF[0]),
    )  # fmt: skip


def keypoint_errors(evaluation: OksEvaluation) -> KeypointErrors:
    """The kind of every labeled keypoint of the detections that are somebody's (Sec. 3.1).

    * good: ks with its own place is at least 0.85, about what human annotators differ by.
    * jitter: near its place, ks of 0.5 to 0.85.
    * inversion: ks of at least 0.5 with the mirrored keypoint of the same person, and higher than with its own place.
    * swap: ks of at least 0.5 with this or the mirrored keypoint of another person, and higher than with the person's
      own two.
    * miss: none of these, ks below 0.5 with all of them.

    The paper calls every keypoint good that is within human error of its own place, and leaves open what one is that is
    otherwise near several places: here the nearest, by ks, decides, and its own place wins a tie. s² is that of the
    person whose place is compared. Deviates: in the authors' coco-analyze the nearest place decides about good ones
    too, so that in crowds some of them are inversions or swaps.
    """
    file, candidates, skeleton = evaluation.annotations, evaluation.candidates, evaluation.annotations.skeleton
    matches = evaluation.match(np.array([MATCHED_FROM]))
    detection_M = np.flatnonzero(matches.is_true_TF[0])
    person_M = matches.person_TF[0, detection_M]
    flip_K = np.asarray(skeleton.flip_indices)
    has_mirror_K = flip_K != np.arange(skeleton.num_keypoints)

    def similarity(detection_R: NDArray[np.int64], person_R: NDArray[np.int64], mirrored: bool) -> NDArray[np.float64]:
        """Ks (R, K) with places of a person; 0 where the place is not annotated."""
        truth_RK3, sigmas_K = file.keypoints[person_R], evaluation.sigmas_K
        if mirrored:
            truth_RK3, sigmas_K = truth_RK3[:, flip_K], sigmas_K[flip_K]
        squared_RK = ((candidates.keypoints_FK2[detection_R] - truth_RK3[..., :2]) ** 2).sum(axis=-1)
        is_there_RK = (truth_RK3[..., 2] > 0) & (has_mirror_K | (not mirrored))
        return np.where(is_there_RK, similarity_of_poses(squared_RK, evaluation.areas_N[person_R], sigmas_K), 0.0)

    own_MK = similarity(detection_M, person_M, mirrored=False)
    inverted_MK = similarity(detection_M, person_M, mirrored=True)
    row_of_F = np.full(len(candidates), -1)
    row_of_F[detection_M] = np.arange(len(detection_M))
    detection_R, person_R = evaluation.pairs
    row_R = row_of_F[detection_R]
    is_other_R = (row_R >= 0) & (np.append(person_M, -1)[row_R] != person_R)
    row_R, detection_R, person_R = row_R[is_other_R], detection_R[is_other_R], person_R[is_other_R]
    swapped_MK = np.zeros_like(own_MK)
    for mirrored in (False, True):
        np.maximum.at(swapped_MK, row_R, similarity(detection_R, person_R, mirrored))
    # The first of equal ones wins.
    nearest_MK = np.stack([own_MK, inverted_MK, swapped_MK]).argmax(axis=0)
    highest_MK = np.maximum(np.maximum(own_MK, inverted_MK), swapped_MK)
    good, jitter, miss = KINDS.index("good"), KINDS.index("jitter"), KINDS.index("miss")
    kind_MK = np.where(highest_MK >= NEAR_FROM, jitter + nearest_MK, miss)
    kind_MK = np.where(own_MK >= GOOD_FROM, good, kind_MK)
    is_labeled_MK = file.keypoints[person_M, :, 2] > 0
    return KeypointErrors(detection_M, person_M, np.where(is_labeled_MK, kind_MK, UNLABELED), own_MK)


def best_oks(evaluation: OksEvaluation) -> NDArray[np.float64]:
    """The highest OKS (F) of every detection with a person that counts; 0 without one in its image."""
    detection_M, person_M = evaluation.pairs
    highest_F = np.zeros(len(evaluation.candidates))
    np.maximum.at(highest_F, detection_M, np.where(evaluation.does_not_count_N[person_M], 0.0, evaluation.oks_M))
    return highest_F


def optimal_scores(evaluation: OksEvaluation) -> NDArray[np.float64]:
    """Of every detection (F) its OKS in the assignment of detections and persons with the highest sum; 0 outside it."""
    detection_M, person_M = evaluation.pairs
    counts_M = ~evaluation.does_not_count_N[person_M]
    detection_M, person_M, oks_M = detection_M[counts_M], person_M[counts_M], evaluation.oks_M[counts_M]
    scores_F = np.zeros(len(evaluation.candidates))
    bounds = np.flatnonzero(np.diff(evaluation.candidates.image_F[detection_M])) + 1
    for first, last in zip([0, *bounds.tolist()], [*bounds.tolist(), len(oks_M)], strict=True):
        if first < last:
            # The pairs of an image are a whole table: all its detections times all its persons.
            oks_DG = oks_M[first:last].reshape(-1, len(np.unique(person_M[first:last])))
            detection_R, person_R = linear_sum_assignment(oks_DG, maximize=True)
            scores_F[detection_M[first : last : oks_DG.shape[1]][detection_R]] = oks_DG[detection_R, person_R]
    return scores_F


def _repairs(
    evaluation: OksEvaluation,
    errors: KeypointErrors,
    is_false_F: NDArray[np.bool_],
    is_missed_N: NDArray[np.bool_],
) -> tuple[Repair, ...]:
    def mended(kinds: tuple[str, ...]) -> tuple[float, float]:
        candidates = evaluation.candidates
        codes = [KINDS.index(kind) for kind in kinds if kind in KINDS]
        xy_FK2 = candidates.keypoints_FK2.copy()
        truth_MK2 = evaluation.annotations.keypoints[errors.person_M, :, :2]
        is_mended_MK1 = np.isin(errors.kind_MK, codes)[..., None]
        xy_FK2[errors.detection_M] = np.where(is_mended_MK1, truth_MK2, xy_FK2[errors.detection_M])
        candidates = replace(candidates, keypoints_FK2=xy_FK2)
        if "false positives" in kinds:
            candidates = candidates.only(~is_false_F)
        result = OksEvaluation(evaluation.annotations, candidates, evaluation.areas_N)
        if "score" in kinds:
            candidates = candidates.scored(optimal_scores(result))
            result = OksEvaluation(evaluation.annotations, candidates, evaluation.areas_N)
        return result.ap_and_ar(is_missed_N if "false negatives" in kinds else None)

    repairs = []
    for index, kind in enumerate(progress(REPAIRS, "mended errors", unit="kind")):
        ap, ar = mended((kind,))
        ap_in_turn, ar_in_turn = mended(REPAIRS[: index + 1])
        repairs.append(Repair(kind, ap, ar, ap_in_turn, ar_in_turn))
    return tuple(repairs)


def _slices(evaluation: OksEvaluation) -> Iterator[Slice]:
    """AP and AR by groups of persons, or of images for crowding.

    By area the protocol is COCO's: detections of nobody with an area outside the range do not count. In the other
    groups all of them count as wrong in every part, so that AP compares two models on one part, not two parts; AR does
    both.
    """
    file, counts_N = evaluation.annotations, ~evaluation.does_not_count_N

    def part(group: str, name: str, is_part_N: NDArray[np.bool_], **options: Any) -> Slice:
        return Slice(group, name, int((is_part_N & counts_N).sum()), *evaluation.ap_and_ar(**options))

    for name, (low, high) in _AREA_BOUNDS.items():
        is_part_N = (evaluation.areas_N >= low) & (evaluation.areas_N <= high)
        yield part("area", name, is_part_N, area_range=(low, high))
    num_keypoints = file.skeleton.num_keypoints
    bounds = np.unique(np.ceil(np.linspace(0, num_keypoints, 5)).astype(int)).tolist()
    for low, high in pairwise(bounds):
        is_part_N = (file.num_keypoints > low) & (file.num_keypoints <= high)
        yield part("labeled keypoints", f"{low + 1} to {high}", is_part_N, ignored_N=~is_part_N)
    overlaps_N = num_overlaps(file)
    for name, low, high in (("0 others", 0, 0), ("1 or 2 others", 1, 2), ("3 and more", 3, math.inf)):
        is_part_N = (overlaps_N >= low) & (overlaps_N <= high)
        yield part("overlapping boxes", name, is_part_N, ignored_N=~is_part_N)
    split_I = np.digitize(crowd_index(file), CROWD_INDEX_BOUNDS)
    for split, name in enumerate(("easy", "medium", "hard")):
        is_image_I = split_I == split
        yield part("crowding of the image", name, is_image_I[file.image_indices], is_image_I=is_image_I)


def num_overlaps(annotations: PoseAnnotations) -> NDArray[np.int64]:
    """How many other persons of its image overlap each person's box (N), with an IoU of at least 0.1."""
    one_R, other_R = _persons_of_one_image(annotations)
    low_R2 = np.maximum(annotations.boxes_xywh[one_R, :2], annotations.boxes_xywh[other_R, :2])
    ends_N2 = annotations.boxes_xywh[:, :2] + annotations.boxes_xywh[:, 2:]
    common_R = np.maximum(np.minimum(ends_N2[one_R], ends_N2[other_R]) - low_R2, 0).prod(axis=1)
    area_N = annotations.boxes_xywh[:, 2:].prod(axis=1)
    union_R = area_N[one_R] + area_N[other_R] - common_R
    overlaps_R = (common_R >= _OVERLAP_FROM * union_R) & (union_R > 0)
    return np.bincount(one_R[overlaps_R], minlength=len(annotations.ids))


def crowd_index(annotations: PoseAnnotations) -> NDArray[np.float64]:
    """The crowd index of every image (I): the file's; where it has none, computed as CrowdPose defines it.

    That is the mean, over persons with a labeled keypoint, of the number of keypoints of others within the person's
    box, divided by the number of the person's own.
    """
    own_N = (annotations.keypoints[..., 2] > 0).sum(axis=1)
    one_R, other_R = _persons_of_one_image(annotations)
    low_R12 = annotations.boxes_xywh[one_R, None, :2]
    xy_RK2 = annotations.keypoints[other_R, :, :2]
    is_inside_RK = ((xy_RK2 >= low_R12) & (xy_RK2 <= low_R12 + annotations.boxes_xywh[one_R, None, 2:])).all(axis=-1)
    is_inside_RK &= annotations.keypoints[other_R, :, 2] > 0
    others_N = np.bincount(one_R, weights=is_inside_RK.sum(axis=1), minlength=len(own_N))
    num_images, counts_N = len(annotations.image_ids), own_N > 0
    image_R = annotations.image_indices[counts_N]
    sums_I = np.bincount(image_R, weights=(others_N / np.maximum(own_N, 1))[counts_N], minlength=num_images)
    computed_I = sums_I / np.maximum(np.bincount(image_R, minlength=num_images), 1)
    return np.where(np.isnan(annotations.crowd_indices), computed_I, annotations.crowd_indices)


def _persons_of_one_image(annotations: PoseAnnotations) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """All ordered pairs of different persons of an image; crowds are none."""
    person_N = np.flatnonzero(~annotations.is_crowd)
    image_N = annotations.image_indices[person_N]
    first_N = np.searchsorted(image_N, image_N, side="left")
    count_N = np.searchsorted(image_N, image_N, side="right") - first_N
    one_R, other_R = ragged_product(first_N, count_N)
    differs_R = one_R != other_R
    return person_N[one_R[differs_R]], person_N[other_R[differs_R]]


def _calibration(evaluation: OksEvaluation, is_ignored_F: NDArray[np.bool_]) -> tuple[CalibrationBin, ...]:
    scores_F, oks_F = evaluation.candidates.scores_F[~is_ignored_F], best_oks(evaluation)[~is_ignored_F]
    order_F = np.argsort(scores_F, kind="stable")
    return tuple(
        CalibrationBin(len(part), float(scores_F[part].mean()), float(oks_F[part].mean()))
        for part in np.array_split(order_F, _CALIBRATION_BINS)
        if len(part)
    )


def _percent(count: float, total: float) -> float:
    return 100 * float(count) / float(total) if total else math.nan


def _defined(value: Any) -> Any:
    """Without NaN, which json does not know."""
    if isinstance(value, Mapping):
        return {name: _defined(part) for name, part in value.items()}
    if isinstance(value, list):
        return [_defined(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
