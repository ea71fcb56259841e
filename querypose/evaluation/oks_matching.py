"""The COCO protocol on whole arrays: which detection is which person's, for all images and OKS thresholds at once.

It gives what `querypose.evaluation.oks` gives, for analyses that evaluate many variants of one results file.

Letters of shapes: I images that have both detections and persons, D detections of an image (at most 20, best first), G
persons of an image, N all persons, F all detections that count, M pairs of a detection and a person of one image, T OKS
thresholds, K keypoints.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from querypose.data.coco import PoseAnnotations
from querypose.evaluation.detections import Detections, Poses
from querypose.evaluation.oks import MAX_DETECTIONS, object_keypoint_similarity, person_areas

THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0.0, 1.0, 101)
NOBODY = -1
_PAIRS_AT_ONCE = 100_000


@dataclass(frozen=True)
class Matches:
    """Whose each detection is at T thresholds.

    Attributes:
        person_TF: the person of the annotations, NOBODY without one.
        is_ignored_TF: detections that are neither right nor wrong, because their person does not count.
    """

    person_TF: NDArray[np.int64]
    is_ignored_TF: NDArray[np.bool_]

    @property
    def is_true_TF(self) -> NDArray[np.bool_]:
        """Detections of a person that counts."""
        return (self.person_TF != NOBODY) & ~self.is_ignored_TF

    @property
    def is_false_TF(self) -> NDArray[np.bool_]:
        """Detections of nobody."""
        return (self.person_TF == NOBODY) & ~self.is_ignored_TF


@dataclass(frozen=True)
class Candidates:
    """The detections that count, the 20 best of every image, in the order of image and score.

    Attributes:
        index_F: place of each in the `Detections`.
        image_F: its image, a place in the annotations.
        rank_F: its rank in the image, from 0.
        scores_F: that decided the rank.
        keypoints_FK2: x and y.
        areas_F: in square pixels.
    """

    index_F: NDArray[np.int64]
    image_F: NDArray[np.int64]
    rank_F: NDArray[np.int64]
    scores_F: NDArray[np.float64]
    keypoints_FK2: NDArray[np.float64]
    areas_F: NDArray[np.float64]

    @staticmethod
    def best(detections: Detections) -> Candidates:
        """Those of `detections`; equal scores stay in their order."""
        image_F, poses = detections.image_indices, detections.poses
        order_F = np.lexsort((np.arange(len(image_F)), -poses.scores, image_F))
        rank_F = _ranks(image_F[order_F])
        index_F = order_F[rank_F < MAX_DETECTIONS]
        return Candidates(
            index_F,
            image_F[index_F],
            rank_F[rank_F < MAX_DETECTIONS],
            poses.scores[index_F],
            poses.keypoints[index_F, :, :2],
            poses.areas[index_F],
        )

    def __len__(self) -> int:
        return len(self.scores_F)

    def scored(self, scores_F: NDArray[np.float64]) -> Candidates:
        """The same poses with other scores; all of them still count."""
        order_F = np.lexsort((self.rank_F, -scores_F, self.image_F))
        return Candidates(
            self.index_F[order_F],
            self.image_F,
            _ranks(self.image_F),
            scores_F[order_F],
            self.keypoints_FK2[order_F],
            self.areas_F[order_F],
        )

    def only(self, kept_F: NDArray[np.bool_]) -> Candidates:
        """Some of them."""
        rest = Candidates(*(values[kept_F] for values in vars(self).values()))
        return replace(rest, rank_F=_ranks(rest.image_F))


class OksEvaluation:
    """Detections and persons of a dataset, every OKS between them computed once.

    Args:
        annotations: of the dataset.
        candidates: the detections that count.
        areas_N: s² of every person in the OKS; by default the file's.
    """

    def __init__(
        self, annotations: PoseAnnotations, candidates: Candidates, areas_N: NDArray[np.float64] | None = None
    ) -> None:
        self.annotations = annotations
        self.candidates = candidates
        self.areas_N = person_areas(annotations) if areas_N is None else areas_N
        self.sigmas_K = np.asarray(annotations.skeleton.sigmas, dtype=np.float64)
        self.does_not_count_N = annotations.is_crowd | (annotations.num_keypoints == 0)

    @cached_property
    def pairs(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Every detection with every person of its image: places in `candidates` and in the annotations (M)."""
        persons_of_image = self.annotations.image_indices
        image_F = self.candidates.image_F
        first_F = np.searchsorted(persons_of_image, image_F, side="left")
        count_F = np.searchsorted(persons_of_image, image_F, side="right") - first_F
        return ragged_product(first_F, count_F)

    @cached_property
    def oks_M(self) -> NDArray[np.float64]:
        """OKS of `pairs`."""
        file, (detection_M, person_M) = self.annotations, self.pairs
        parts = [
            object_keypoint_similarity(
                self.candidates.keypoints_FK2[detection_M[first : first + _PAIRS_AT_ONCE]],
                file.keypoints[person_M[first : first + _PAIRS_AT_ONCE]],
                file.boxes_xywh[person_M[first : first + _PAIRS_AT_ONCE]],
                self.areas_N[person_M[first : first + _PAIRS_AT_ONCE]],
                self.sigmas_K,
            )
            for first in range(0, len(detection_M), _PAIRS_AT_ONCE)
        ]
        return np.concatenate(parts) if parts else np.zeros(0)

    @cached_property
    def _padded(self) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]]:
        """OKS (I, D, G) of the images with pairs, -1 where there is no pair; image of each row; persons (I, G)."""
        detection_M, person_M = self.pairs
        images_I, row_M = np.unique(self.candidates.image_F[detection_M], return_inverse=True)
        slot_N = _ranks(self.annotations.image_indices)
        num_ranks = int(self.candidates.rank_F.max(initial=-1)) + 1
        num_slots = int(slot_N[person_M].max(initial=-1)) + 1
        oks_IDG = np.full((len(images_I), num_ranks, num_slots), -1.0)
        oks_IDG[row_M, self.candidates.rank_F[detection_M], slot_N[person_M]] = self.oks_M
        person_IG = np.full((len(images_I), num_slots), NOBODY)
        person_IG[row_M, slot_N[person_M]] = person_M
        return oks_IDG, images_I, person_IG

    def match(
        self,
        thresholds_T: NDArray[np.float64] = THRESHOLDS,
        ignored_N: NDArray[np.bool_] | None = None,
        area_range: tuple[float, float] | None = None,
    ) -> Matches:
        """Gives each detection, the best first, the free person with the highest OKS from the threshold on.

        Persons that count come first; one who does not is taken only where no other is left. A crowd is never taken
        away from later detections.

        Args:
            thresholds_T: of the OKS.
            ignored_N: persons that do not count, besides crowds and persons without keypoints.
            area_range: of persons that count; detections of nobody whose area is outside do not count either.
        """
        oks_IDG, images_I, person_IG = self._padded
        ignored = self.does_not_count_N if ignored_N is None else self.does_not_count_N | ignored_N
        if area_range is not None:
            ignored = ignored | (self.areas_N < area_range[0]) | (self.areas_N > area_range[1])
        candidates, num_thresholds = self.candidates, len(thresholds_T)
        person_TF = np.full((num_thresholds, len(candidates)), NOBODY)
        if oks_IDG.size:
            counts_IG = np.zeros(person_IG.shape, dtype=bool)
            counts_IG[person_IG != NOBODY] = ~ignored[person_IG[person_IG != NOBODY]]
            stays_IG = (person_IG != NOBODY) & self.annotations.is_crowd[person_IG]
            least_T1 = np.minimum(thresholds_T, 1 - 1e-10)[:, None]
            free_ITG = np.ones((len(images_I), num_thresholds, person_IG.shape[1]), dtype=bool)
            person_ITD = np.full((len(images_I), num_thresholds, oks_IDG.shape[1]), NOBODY)
            for rank in range(oks_IDG.shape[1]):
                oks_I1G = oks_IDG[:, rank, None]
                possible_ITG = free_ITG & (oks_I1G >= least_T1)
                # A person that counts is worth more than any other one.
                worth_ITG = np.where(possible_ITG, oks_I1G + 2.0 * counts_IG[:, None], -1.0)
                # Of equal ones the last: the COCO API replaces a match by an equal one.
                slot_IT = worth_ITG.shape[2] - 1 - worth_ITG[..., ::-1].argmax(axis=2)
                found_IT = np.take_along_axis(worth_ITG, slot_IT[..., None], axis=2)[..., 0] >= 0
                person_IT = np.take_along_axis(person_IG, slot_IT, axis=1)
                person_ITD[..., rank] = np.where(found_IT, person_IT, NOBODY)
                taken_IT = found_IT & ~np.take_along_axis(stays_IG, slot_IT, axis=1)
                image_R, threshold_R = taken_IT.nonzero()
                free_ITG[image_R, threshold_R, slot_IT[taken_IT]] = False
            row_F = np.searchsorted(images_I, candidates.image_F).clip(max=len(images_I) - 1)
            has_row_F = images_I[row_F] == candidates.image_F
            person_TF[:, has_row_F] = person_ITD[row_F[has_row_F], :, candidates.rank_F[has_row_F]].T
        is_ignored_TF = (person_TF != NOBODY) & np.append(ignored, False)[person_TF]
        if area_range is not None:
            is_outside_F = (candidates.areas_F < area_range[0]) | (candidates.areas_F > area_range[1])
            is_ignored_TF = is_ignored_TF | ((person_TF == NOBODY) & is_outside_F)
        return Matches(person_TF, is_ignored_TF)

    def ap_and_ar(
        self,
        ignored_N: NDArray[np.bool_] | None = None,
        area_range: tuple[float, float] | None = None,
        is_image_I: NDArray[np.bool_] | None = None,
    ) -> tuple[float, float]:
        """AP and AR over the thresholds of COCO, in percent; NaN where nobody counts.

        Args:
            ignored_N: see `match`; so `area_range`.
            area_range: see there.
            is_image_I: images that count, of all of the annotations.
        """
        matches = self.match(THRESHOLDS, ignored_N, area_range)
        ignored = self.does_not_count_N if ignored_N is None else self.does_not_count_N | ignored_N
        if area_range is not None:
            ignored = ignored | (self.areas_N < area_range[0]) | (self.areas_N > area_range[1])
        counts_N, kept_F = ~ignored, np.ones(len(self.candidates), dtype=bool)
        if is_image_I is not None:
            counts_N = counts_N & is_image_I[self.annotations.image_indices]
            kept_F = is_image_I[self.candidates.image_F]
        num_persons = int(counts_N.sum())
        if not num_persons:
            return float("nan"), float("nan")
        order_F = np.argsort(-self.candidates.scores_F[kept_F], kind="stable")
        tp_TF = matches.is_true_TF[:, kept_F][:, order_F].cumsum(axis=1)
        fp_TF = matches.is_false_TF[:, kept_F][:, order_F].cumsum(axis=1)
        ap_T = average_precision(tp_TF, fp_TF, num_persons)
        ar_T = tp_TF[:, -1] / num_persons if tp_TF.size else np.zeros(len(THRESHOLDS))
        return 100 * float(ap_T.mean()), 100 * float(ar_T.mean())


def average_precision(
    tp: NDArray[np.generic], fp: NDArray[np.generic], num_persons: NDArray[np.generic] | float
) -> NDArray[np.float64]:
    """AP (…) of rankings: the mean over 101 recalls of the best precision from there on.

    Args:
        tp: right detections down to each rank (…, F).
        fp: wrong ones (…, F).
        num_persons: to be found (…), broadcast.
    """
    if not tp.shape[-1]:
        return np.zeros(tp.shape[:-1])
    precision = tp / np.maximum(tp + fp, np.spacing(1))  # type: ignore[operator]
    best = np.maximum.accumulate(precision[..., ::-1], axis=-1)[..., ::-1]
    passed = np.searchsorted(RECALLS, tp / np.asarray(num_persons)[..., None], side="right")
    return np.asarray((best * np.diff(passed, prepend=0, axis=-1)).sum(axis=-1) / len(RECALLS))


def evaluation_of(
    annotations: PoseAnnotations, detections: Detections, areas_N: NDArray[np.float64] | None = None
) -> OksEvaluation:
    """The evaluation of a results file."""
    return OksEvaluation(annotations, Candidates.best(detections), areas_N)


def no_detections(num_keypoints: int) -> Detections:
    """Nothing found in any image."""
    return Detections(np.zeros(0, np.int64), Poses.joined((), num_keypoints))


def ragged_product(
    first_R: NDArray[np.int64], count_R: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Each row number with each of the places `first`, `first` + 1, …, as many as the row's `count`."""
    row_M = np.repeat(np.arange(len(count_R)), count_R)
    begin_R = first_R - (count_R.cumsum() - count_R)
    return row_M, np.asarray(begin_R[row_M] + np.arange(len(row_M)), dtype=np.int64)


def _ranks(group_F: NDArray[np.int64]) -> NDArray[np.int64]:
    """The place of every item within its group; items of a group follow each other."""
    is_first = np.ones(len(group_F), dtype=bool)
    is_first[1:] = group_F[1:] != group_F[:-1]
    first_F = np.maximum.accumulate(np.where(is_first, np.arange(len(group_F)), 0))
    return np.asarray(np.arange(len(group_F)) - first_F)
