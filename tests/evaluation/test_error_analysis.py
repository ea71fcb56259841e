"""Kinds of errors: by hand, and against a restatement by loops."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from querypose.data import PoseAnnotations
from querypose.evaluation import EvaluationError, read_detections
from querypose.evaluation.error_analysis import (
    KINDS,
    REPAIRS,
    UNLABELED,
    ErrorAnalysis,
    analyze_errors,
    crowd_index,
    keypoint_errors,
    num_overlaps,
)
from querypose.evaluation.oks_matching import evaluation_of
from querypose.skeleton import COCO_SKELETON, CROWDPOSE_SKELETON, Skeleton
from tests.evaluation.generated import damaged_results, generate, perfect_results, read

SKELETON = COCO_SKELETON
K = SKELETON.num_keypoints
FLIP = list(SKELETON.flip_indices)
AREA = 90.0 * 180.0
# A person stands upright; keypoints of both sides are far apart, measured by the sigmas.
PERSON = np.array([(10 + 80 * (index % 2), 10 * index) for index in range(K)], dtype=float)


def two_persons_in_each_of(num_images: int) -> dict[str, Any]:
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for image in range(1, num_images + 1):
        images.append({"id": image, "file_name": f"{image}.jpg", "width": 640, "height": 480})
        for person in range(2):
            xy = PERSON + np.array([300 * person, 20])
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image,
                    "category_id": 1,
                    "bbox": [*xy.min(axis=0).tolist(), 90, 180],
                    "area": AREA,
                    "iscrowd": 0,
                    "num_keypoints": K,
                    "keypoints": np.append(xy, np.full((K, 1), 2), axis=1).reshape(-1).tolist(),
                }
            )
    return {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "person"}]}


def results_of(content: dict[str, Any], change: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> list[dict[str, Any]]:
    """The annotated poses after `change` of a person's keypoints, which is given those of the other one too."""
    results = []
    for index, annotation in enumerate(content["annotations"]):
        own, other = (
            np.array(content["annotations"][place]["keypoints"]).reshape(-1, 3)[:, :2] for place in (index, index ^ 1)
        )
        xy = change(own.copy(), other)
        results.append(
            {
                "image_id": annotation["image_id"],
                "category_id": 1,
                "keypoints": np.append(xy, np.ones((K, 1)), axis=1).reshape(-1).tolist(),
                "score": 0.9 - 0.01 * index,
            }
        )
    return results


def analyze(content: dict[str, Any], results: list[dict[str, Any]], skeleton: Skeleton = SKELETON) -> ErrorAnalysis:
    annotations = read(content, skeleton)
    return analyze_errors(annotations, read_detections(results, annotations))


def displaced_to(similarity: float) -> np.ndarray:
    """Displacements (K, 2) at which every keypoint has that ks."""
    distances = np.sqrt(-2 * AREA * np.log(similarity)) * 2 * np.array(SKELETON.sigmas)
    return np.stack([np.zeros(K), distances], axis=1)


def inverted_legs(own: np.ndarray, _: np.ndarray) -> np.ndarray:
    legs = [SKELETON.keypoints.index(f"{side}_{joint}") for side in ("left", "right") for joint in ("knee", "ankle")]
    own[legs] = own[FLIP][legs]
    return own


def swapped_arms(own: np.ndarray, other: np.ndarray) -> np.ndarray:
    arms = [SKELETON.keypoints.index(f"left_{joint}") for joint in ("elbow", "wrist")]
    own[arms] = other[arms]
    return own


PURE: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "jitter": lambda own, _: own + displaced_to(0.7),
    "inversion": inverted_legs,
    "swap": swapped_arms,
    "miss": lambda own, _: own + np.array([[0, 1000.0]]) * (np.arange(K) < 3)[:, None],
}


@pytest.mark.parametrize("kind", PURE)
def test_a_file_with_one_kind_of_error_has_that_kind_alone_and_mending_it_mends_all(kind: str) -> None:
    content = two_persons_in_each_of(3)
    analysis = analyze(content, results_of(content, PURE[kind]))
    assert analysis.shares_of_errors() == {other: 100 * (other == kind) for other in KINDS[1:]}
    assert analysis.ap < 100
    mended = {repair.kind: repair for repair in analysis.repairs}
    assert mended[kind].ap == pytest.approx(100)
    assert mended[kind].ar == pytest.approx(100)
    for other in set(PURE) - {kind}:
        assert mended[other].ap == pytest.approx(analysis.ap)
    assert not analysis.false_positive_F.any()
    assert not analysis.false_negative_N.any()


@pytest.mark.parametrize(
    ("similarity", "kind"), [(0.99, "good"), (0.851, "good"), (0.849, "jitter"), (0.501, "jitter"), (0.499, "miss")]
)
def test_bounds_of_the_similarity(similarity: float, kind: str) -> None:
    content = two_persons_in_each_of(1)
    analysis = analyze(content, results_of(content, lambda own, _: own + displaced_to(similarity)))
    assert analysis.shares()[kind] == 100
    assert [row["oks"] for row in analysis.keypoints()] == pytest.approx([similarity] * K)


def test_background_and_persons_nobody_found() -> None:
    content = two_persons_in_each_of(2)
    results = results_of(content, lambda own, _: own)
    results[0]["keypoints"] = np.full(3 * K, 5000.0).tolist()
    analysis = analyze(content, results)
    assert analysis.false_positive_F.sum() == analysis.false_negative_N.sum() == 1
    mended = {repair.kind: repair for repair in analysis.repairs}
    # Without the false positive, which has the best score, three of four are found in the first places.
    assert mended["false positives"].ap == pytest.approx(100 * 76 / 101)
    assert mended["score"].ap == pytest.approx(100 * 76 / 101)
    assert mended["false positives"].ar == analysis.ar == 75
    assert mended["false negatives"].ar == 100
    assert analysis.repairs[-1].ap_in_turn == pytest.approx(100)


def test_scores_of_the_best_assignment_put_true_poses_before_doubles() -> None:
    content = two_persons_in_each_of(1)
    true = results_of(content, lambda own, _: own)
    double = results_of(content, lambda own, _: own + displaced_to(0.6))
    for result in double:
        result["score"] = 0.99
    analysis = analyze(content, [*double, *true])
    assert analysis.ap < 100
    assert next(repair.ap for repair in analysis.repairs if repair.kind == "score") == pytest.approx(100)
    low, high = analysis.calibration[0], analysis.calibration[-1]
    assert low.score < high.score
    assert low.oks > high.oks


def _kinds_by_loops(annotations: PoseAnnotations, detection_xy: np.ndarray, person: int) -> list[int]:
    """The definition, a keypoint at a time."""
    skeleton = annotations.skeleton
    flip = skeleton.flip_indices

    def ks(theta: np.ndarray, q: int, j: int) -> float:
        x, y, visibility = annotations.keypoints[q, j]
        if visibility == 0:
            return 0.0
        squared = (theta[0] - x) ** 2 + (theta[1] - y) ** 2
        return math.exp(-squared / (2 * annotations.areas[q] * (2 * skeleton.sigmas[j]) ** 2))

    others = [
        q
        for q in range(len(annotations.ids))
        if annotations.image_indices[q] == annotations.image_indices[person] and q != person
    ]
    kinds = []
    for i, theta in enumerate(detection_xy):
        own = ks(theta, person, i)
        inverted = ks(theta, person, flip[i]) if flip[i] != i else 0.0
        swapped = max([0.0, *(ks(theta, q, j) for q in others for j in (i, flip[i]))])
        if annotations.keypoints[person, i, 2] == 0:
            kinds.append(UNLABELED)
        elif own >= 0.85:
            kinds.append(KINDS.index("good"))
        elif max(own, inverted, swapped) < 0.5:
            kinds.append(KINDS.index("miss"))
        elif own >= max(inverted, swapped):
            kinds.append(KINDS.index("jitter"))
        else:
            kinds.append(KINDS.index("inversion" if inverted >= swapped else "swap"))
    return kinds


@pytest.mark.parametrize(("skeleton", "seed"), [(COCO_SKELETON, 0), (CROWDPOSE_SKELETON, 1)])
def test_equals_the_definition_by_loops(skeleton: Skeleton, seed: int) -> None:
    content, results = generate(skeleton, seed)
    random = np.random.default_rng(seed)
    for result in results:  # so that all kinds are there
        xy = np.array(result["keypoints"]).reshape(-1, 3)
        chosen = random.uniform(size=len(xy)) < 0.2
        xy[chosen] = xy[list(skeleton.flip_indices)][chosen]
        result["keypoints"] = xy.reshape(-1).tolist()
    annotations = read(content, skeleton)
    evaluation = evaluation_of(annotations, read_detections(results, annotations))
    errors = keypoint_errors(evaluation)
    assert {*range(len(KINDS)), UNLABELED} == {*errors.kind_MK.flatten().tolist()}
    expected = [
        _kinds_by_loops(annotations, evaluation.candidates.keypoints_FK2[detection], person)
        for detection, person in zip(errors.detection_M.tolist(), errors.person_M.tolist(), strict=True)
    ]
    np.testing.assert_array_equal(errors.kind_MK, expected)


def test_repairs_in_turn_raise_ap_to_about_one_hundred() -> None:
    content, _ = generate(COCO_SKELETON, 3)
    analysis = analyze(content, damaged_results(content, 3))
    in_turn = [repair.ap_in_turn for repair in analysis.repairs]
    assert [repair.kind for repair in analysis.repairs] == list(REPAIRS)
    # No order of the detections is the best at every threshold, so that rescoring may cost a little.
    assert all(later > earlier - 0.5 for earlier, later in pairwise([analysis.ap, *in_turn]))
    assert in_turn[-1] > 99


def test_overlap_and_crowd_index_by_hand() -> None:
    content = two_persons_in_each_of(2)
    annotations = read(content, SKELETON)
    assert num_overlaps(annotations).tolist() == [0, 0, 0, 0]
    assert crowd_index(annotations).tolist() == [0, 0]
    for annotation in content["annotations"][:2]:  # in the first image both boxes hold both persons
        annotation["bbox"] = [0, 0, 600, 400]
    annotations = read(content, SKELETON)
    assert num_overlaps(annotations).tolist() == [1, 1, 0, 0]
    assert crowd_index(annotations).tolist() == [1, 0]


def test_parts_hold_every_person_once() -> None:
    content, results = generate(CROWDPOSE_SKELETON, 2)
    analysis = analyze(content, results, CROWDPOSE_SKELETON)
    totals: dict[str, int] = {}
    for part in analysis.slices:
        totals[part.group] = totals.get(part.group, 0) + part.num_persons
    assert len(totals) == 4
    assert set(totals.values()) == {analysis.num_persons}


@pytest.mark.parametrize("persons", [0, 4])
def test_nothing_found_or_nobody_there(persons: int) -> None:
    content = two_persons_in_each_of(2)
    content["annotations"] = content["annotations"][:persons]
    results = [] if persons else perfect_results(two_persons_in_each_of(2))
    analysis = analyze(content, results)
    assert len(analysis.errors.detection_M) == 0
    assert all(math.isnan(share) for share in analysis.shares().values())
    assert json.loads(json.dumps(analysis.to_dict(), allow_nan=False))["persons"] == persons
    assert analysis.to_dict()["AP"] == (0 if persons else None)


def test_a_split_without_annotations_cannot_be_analyzed() -> None:
    content = two_persons_in_each_of(1)
    del content["annotations"]
    with pytest.raises(EvaluationError, match="has no annotations to compare with"):
        analyze(content, [])
