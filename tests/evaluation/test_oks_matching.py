"""The protocol on whole arrays equals the library's."""

from __future__ import annotations

import numpy as np
import pytest

from querypose.evaluation import METRIC_REGISTRY, read_detections
from querypose.evaluation.oks import AREA_OF_BOX
from querypose.evaluation.oks_matching import Candidates, OksEvaluation, average_precision, evaluation_of
from querypose.skeleton import COCO_SKELETON, CROWDPOSE_SKELETON
from tests.evaluation.generated import damaged_results, generate, perfect_results, read


@pytest.mark.parametrize(("seed", "with_boxes"), [(0, False), (1, True), (2, False), (3, True)])
def test_equals_the_library(seed: int, with_boxes: bool) -> None:
    content, results = generate(COCO_SKELETON, seed, with_boxes=with_boxes)
    annotations = read(content, COCO_SKELETON)
    detections = read_detections(results, annotations)
    expected = METRIC_REGISTRY.get("coco")(annotations, detections)
    evaluation = evaluation_of(annotations, detections)
    assert evaluation.ap_and_ar() == pytest.approx((expected["AP"], expected["AR"]), abs=1e-9)
    medium, large = (32.0**2, 96.0**2), (96.0**2, 1e10)
    assert evaluation.ap_and_ar(area_range=medium) == pytest.approx((expected["APm"], expected["ARm"]), abs=1e-9)
    assert evaluation.ap_and_ar(area_range=large) == pytest.approx((expected["APl"], expected["ARl"]), abs=1e-9)


def test_equals_the_library_on_other_areas_and_on_some_images() -> None:
    content, _ = generate(CROWDPOSE_SKELETON, 4)
    annotations = read(content, CROWDPOSE_SKELETON)
    detections = read_detections(damaged_results(content, 4), annotations)
    expected = METRIC_REGISTRY.get("crowdpose")(annotations, detections)
    evaluation = evaluation_of(annotations, detections, AREA_OF_BOX * annotations.boxes_xywh[:, 2:].prod(axis=1))
    is_hard_I = annotations.crowd_indices >= 0.8
    assert evaluation.ap_and_ar()[0] == pytest.approx(expected["AP"], abs=1e-9)
    assert evaluation.ap_and_ar(is_image_I=is_hard_I)[0] == pytest.approx(expected["APH"], abs=1e-9)


def test_nothing_found_nobody_there_and_all_found() -> None:
    content, _ = generate(COCO_SKELETON, 5)
    annotations = read(content, COCO_SKELETON)
    assert evaluation_of(annotations, read_detections([], annotations)).ap_and_ar() == (0, 0)
    perfect = read_detections(perfect_results(content), annotations)
    assert evaluation_of(annotations, perfect).ap_and_ar() == pytest.approx((100, 100))
    empty = read({**content, "annotations": []}, COCO_SKELETON)
    assert np.isnan(evaluation_of(empty, read_detections(perfect_results(content), empty)).ap_and_ar()).all()


def test_other_scores_and_fewer_detections_are_as_in_another_file() -> None:
    content, results = generate(COCO_SKELETON, 6)
    annotations = read(content, COCO_SKELETON)
    candidates = Candidates.best(read_detections(results, annotations))
    random = np.random.default_rng(0)
    scores_F, kept_F = random.uniform(size=len(candidates)), random.uniform(size=len(candidates)) < 0.5
    kept = candidates.scored(scores_F)
    kept = kept.only(kept_F)
    other = [
        {
            "image_id": annotations.image_ids[image],
            "category_id": 1,
            "keypoints": np.append(xy_K2, np.ones((17, 1)), axis=1).reshape(-1).tolist(),
            "score": score,
        }
        for image, xy_K2, score in zip(kept.image_F.tolist(), kept.keypoints_FK2, kept.scores_F.tolist(), strict=True)
    ]
    expected = METRIC_REGISTRY.get("coco")(annotations, read_detections(other, annotations))
    assert OksEvaluation(annotations, kept).ap_and_ar()[0] == pytest.approx(expected["AP"], abs=1e-9)


def test_average_precision_by_hand() -> None:
    """Of two persons the first is found at rank 1, the second at rank 3, after a wrong one: precisions 1 and 2/3."""
    found = np.array([[1, 1, 2]]), np.array([[0, 1, 1]])
    assert average_precision(*found, 2).tolist() == pytest.approx([(51 * 1 + 50 * 2 / 3) / 101])
