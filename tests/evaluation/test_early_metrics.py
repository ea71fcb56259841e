"""The metrics of an early training: beside plain loops and pycocotools, and in closed form."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from querypose.data.coco import AREA_OF_BOX
from querypose.evaluation import EvaluationError
from querypose.evaluation.early_metrics import PCK_SHARE
from querypose.skeleton import COCO_SKELETON, CROWDPOSE_SKELETON, Skeleton
from tests.data.toy_dataset import TOY_SKELETON
from tests.evaluation.generated import evaluate, generate, perfect_results

Content = dict[str, Any]


def progress(content: Content, results: list[dict[str, Any]], skeleton: Skeleton = COCO_SKELETON) -> dict[str, float]:
    return evaluate(content, results, skeleton, "progress")


def by_loops(content: Content, results: list[dict[str, Any]], skeleton: Skeleton) -> tuple[float, float]:
    """OKS and PCK, person by person and detection by detection."""
    sigmas = np.array(skeleton.sigmas)
    of_persons, correct, labeled = [], 0, 0
    for person in content["annotations"]:
        truth = np.array(person["keypoints"]).reshape(-1, 3)
        is_labeled = truth[:, 2] > 0
        if person["iscrowd"] or not is_labeled.any():
            continue
        best, best_correct = 0.0, 0
        of_image = [result for result in results if result["image_id"] == person["image_id"]]
        for result in sorted(of_image, key=lambda result: -result["score"])[:20]:
            distance = np.linalg.norm(np.array(result["keypoints"]).reshape(-1, 3)[:, :2] - truth[:, :2], axis=1)
            similarity = np.exp(-(distance**2) / (2 * person["area"] * (2 * sigmas) ** 2))
            oks = similarity[is_labeled].mean()
            if oks >= best:
                best, best_correct = oks, int((distance <= PCK_SHARE * max(person["bbox"][2:]))[is_labeled].sum())
        of_persons.append(best)
        correct, labeled = correct + best_correct, labeled + int(is_labeled.sum())
    return 100 * float(np.mean(of_persons)), 100 * correct / labeled


def box_ap50_of_pycocotools(content: Content, results: list[dict[str, Any]]) -> float:
    coco = COCO()
    coco.dataset = copy.deepcopy(content)
    for annotation in coco.dataset["annotations"]:
        annotation["area"] = annotation["bbox"][2] * annotation["bbox"][3]
    coco.createIndex()
    evaluation = COCOeval(coco, coco.loadRes(copy.deepcopy(results)), "bbox")
    evaluation.params.maxDets = [1, 10, 20]
    evaluation.evaluate()
    evaluation.accumulate()
    return 100 * float(evaluation.eval["precision"][0, :, 0, 0, -1].mean())


@pytest.mark.parametrize("skeleton", [COCO_SKELETON, CROWDPOSE_SKELETON], ids=lambda skeleton: skeleton.name)
def test_the_values_of_plain_loops_and_of_pycocotools(skeleton: Skeleton, monkeypatch: pytest.MonkeyPatch) -> None:
    content, results = generate(skeleton, seed=3, num_images=25, with_boxes=True)
    for index, result in enumerate(results):
        result["score"] += index * 1e-6  # which of two equal scores is kept is not the question here
    found = progress(content, results, skeleton)
    assert 5 < found["OKS"] < 95
    assert (found["OKS"], found["PCK"]) == pytest.approx(by_loops(content, results, skeleton))
    assert found["boxAP50"] == pytest.approx(box_ap50_of_pycocotools(content, results))
    monkeypatch.setattr("querypose.evaluation.early_metrics._PERSONS_AT_ONCE", 7)
    assert progress(content, results, skeleton) == found


def test_perfect_poses() -> None:
    content, _ = generate(COCO_SKELETON, seed=1, num_images=10)
    content["annotations"] = [a for a in content["annotations"] if a["num_keypoints"]]
    results = [
        {**result, "bbox": annotation["bbox"]}
        for result, annotation in zip(perfect_results(content), content["annotations"], strict=True)
    ]
    assert set(progress(content, results).values()) == {100.0}


def one_person(visibility: int = 2) -> Content:
    keypoints = [[10.0 + index, 20.0, visibility] for index in range(COCO_SKELETON.num_keypoints)]
    return {
        "images": [{"id": 1, "file_name": "1.jpg", "height": 200, "width": 200}],
        "categories": [{"id": 1, "name": "person"}],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 1, "iscrowd": 0, "bbox": [10, 10, 20, 100], "area": 900.0,
             "keypoints": np.ravel(keypoints).tolist()}
        ],
    }  # fmt: skip


def shifted(content: Content, pixels: float, score: float = 0.5, **fields: Any) -> dict[str, Any]:
    keypoints = np.array(content["annotations"][0]["keypoints"]).reshape(-1, 3) + np.array([0, pixels, 0])
    return {"image_id": 1, "category_id": 1, "keypoints": keypoints.ravel().tolist(), "score": score, **fields}


def test_the_best_prediction_counts_whatever_its_score() -> None:
    content = one_person()
    results = [shifted(content, 50, score=0.9), shifted(content, 3, score=0.1)]
    sigmas = np.array(COCO_SKELETON.sigmas)
    expected = 100 * np.exp(-9 / (2 * 900 * (2 * sigmas) ** 2)).mean()
    assert progress(content, results)["OKS"] == pytest.approx(expected)
    del content["annotations"][0]["area"]  # then a share of the box
    expected = 100 * np.exp(-9 / (2 * AREA_OF_BOX * 2000 * (2 * sigmas) ** 2)).mean()
    assert progress(content, results)["OKS"] == pytest.approx(expected)


@pytest.mark.parametrize(("pixels", "correct"), [(9.9, 100.0), (10.1, 0.0)])
def test_a_keypoint_is_correct_within_a_tenth_of_the_longer_side(pixels: float, correct: float) -> None:
    content = one_person()
    assert progress(content, [shifted(content, pixels)])["PCK"] == correct


@pytest.mark.parametrize(("pixels", "correct"), [(3.9, 100.0), (4.1, 0.0)])
def test_the_torso_is_the_unit_of_pck_torso(pixels: float, correct: float) -> None:
    content = one_person()
    keypoints = np.array(content["annotations"][0]["keypoints"]).reshape(-1, 3)
    names = COCO_SKELETON.keypoints
    keypoints[names.index("left_shoulder"), :2], keypoints[names.index("right_hip"), :2] = (50, 40), (50, 60)
    content["annotations"][0]["keypoints"] = keypoints.ravel().tolist()
    results = [shifted(content, pixels)]
    assert evaluate(content, results, COCO_SKELETON, "pck_torso") == {"PCK": correct}
    assert evaluate(content, [], COCO_SKELETON, "pck_torso") == {"PCK": 0.0}
    assert math.isnan(evaluate(one_person(visibility=0), [], COCO_SKELETON, "pck_torso")["PCK"])


def test_pck_torso_needs_a_torso() -> None:
    with pytest.raises(EvaluationError, match="skeleton 'toy' has no left_shoulder"):
        evaluate({**one_person(), "annotations": []}, [], TOY_SKELETON, "pck_torso")


@pytest.mark.parametrize(("height", "found"), [(49, 0.0), (51, 100.0)])
def test_a_person_is_found_from_half_an_overlap_on(height: float, found: float) -> None:
    content = one_person()
    metrics = progress(content, [shifted(content, 0, bbox=[10, 10, 20, height])])
    assert (metrics["found"], metrics["boxAP50"]) == (found, found)


def test_without_boxes_those_round_the_keypoints_count() -> None:
    content = one_person()
    content["annotations"][0]["bbox"] = [10, 19, 16, 2]
    assert progress(content, [shifted(content, 0)])["found"] == 0  # a line has no area
    result = shifted(content, 0)
    result["keypoints"][1], result["keypoints"][4] = 19.0, 21.0
    assert progress(content, [result])["found"] == 100


def test_nothing_predicted_is_zero_and_nobody_to_find_is_undefined() -> None:
    assert set(progress(one_person(), []).values()) == {0.0}
    without_keypoints = progress(one_person(visibility=0), [])
    assert [name for name, value in without_keypoints.items() if math.isnan(value)] == ["OKS", "PCK"]
    crowd = one_person()
    crowd["annotations"][0]["iscrowd"] = 1
    assert all(math.isnan(value) for value in progress(crowd, []).values())
