from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from faster_coco_eval import COCO as FasterCoco
from faster_coco_eval import COCOeval_faster
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from querypose.data import DatasetError
from querypose.data.results import ResultsError
from querypose.evaluation import METRICS, EvaluationError, format_metrics, read_detections
from querypose.skeleton import COCO_SKELETON, CROWDPOSE_SKELETON, Skeleton
from tests.evaluation.generated import damaged_results, evaluate, generate, perfect_results, read

Content = dict[str, Any]
Results = list[dict[str, Any]]


def reference_coco(ground_truth: Content, results: Results, skeleton: Skeleton) -> dict[str, float]:
    """The ten figures of pycocotools, in percent."""
    coco = COCO()
    coco.dataset = copy.deepcopy(ground_truth)
    for annotation in coco.dataset["annotations"]:
        annotation.setdefault("iscrowd", 0)
    coco.createIndex()
    evaluation = COCOeval(coco, coco.loadRes(copy.deepcopy(results)), "keypoints")
    evaluation.params.kpt_oks_sigmas = np.array(skeleton.sigmas)
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return percent("coco", evaluation.stats)


def reference_crowdpose(ground_truth: Content, results: Results, skeleton: Skeleton) -> dict[str, float]:
    """The library's own way through the CrowdPose protocol; it rounds its last three figures to 0.01 %."""
    coco = FasterCoco(copy.deepcopy(ground_truth))
    evaluation = COCOeval_faster(
        coco,
        coco.loadRes(copy.deepcopy(results)),
        "keypoints_crowd",
        kpt_oks_sigmas=list(skeleton.sigmas),
        use_area=False,
        print_function=lambda *_: None,
    )
    evaluation.run()
    order = [0, 1, 2, 6, 7, 8, 3, 4, 5]
    return percent("crowdpose", np.asarray(evaluation.all_stats)[order])


def percent(protocol: Any, stats: Any) -> dict[str, float]:
    return {
        name: math.nan if value == -1 else 100 * float(value)
        for name, value in zip(METRICS[protocol], stats, strict=True)
    }


def assert_same(found: dict[str, float], wanted: dict[str, float], tolerance: float = 1e-6) -> None:
    assert list(found) == list(wanted)
    np.testing.assert_allclose(list(found.values()), list(wanted.values()), rtol=0, atol=tolerance, equal_nan=True)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("with_boxes", [False, True])
def test_equals_pycocotools(seed: int, with_boxes: bool) -> None:
    ground_truth, results = generate(COCO_SKELETON, seed, with_boxes=with_boxes)
    found = evaluate(ground_truth, results, COCO_SKELETON)
    assert 0 < found["AP"] < 100
    assert_same(found, reference_coco(ground_truth, results, COCO_SKELETON))


def test_equals_pycocotools_on_another_skeleton() -> None:
    ground_truth, results = generate(CROWDPOSE_SKELETON, 3)
    found = evaluate(ground_truth, results, CROWDPOSE_SKELETON)
    assert_same(found, reference_coco(ground_truth, results, CROWDPOSE_SKELETON))


@pytest.mark.parametrize("seed", range(3))
def test_equals_the_crowdpose_path_of_the_library(seed: int) -> None:
    ground_truth, results = generate(CROWDPOSE_SKELETON, seed, num_images=60)
    for annotation in ground_truth["annotations"]:
        annotation["area"] = 1.0  # the protocol does not look at it
    found = evaluate(ground_truth, results, CROWDPOSE_SKELETON, "crowdpose")
    wanted = reference_crowdpose(ground_truth, results, CROWDPOSE_SKELETON)
    unrounded = ("AP", "AP50", "AP75", "AR", "AR50", "AR75")
    assert_same({name: found[name] for name in unrounded}, {name: wanted[name] for name in unrounded}, 1e-12)
    assert_same(found, wanted, 0.00501)
    assert len({found[name] for name in ("AP", "APE", "APM", "APH")}) == 4


def test_equals_pycocotools_on_the_coco_samples(shared_data: Path) -> None:
    ground_truth = json.loads((shared_data / "samples/coco/test_coco.json").read_text())
    for seed in range(5):
        results = damaged_results(ground_truth, seed)
        found = evaluate(ground_truth, results, COCO_SKELETON)
        assert_same(found, reference_coco(ground_truth, results, COCO_SKELETON))


@pytest.mark.parametrize("name", ["test_crowdpose.json", "test_crowdpose_repaired.json"])
def test_crowdpose_samples(shared_data: Path, name: str) -> None:
    ground_truth = json.loads((shared_data / "samples/crowdpose" / name).read_text())
    perfect = evaluate(ground_truth, perfect_results(ground_truth), CROWDPOSE_SKELETON, "crowdpose")
    assert perfect["AP"] == perfect["AR"] == 100
    damaged = damaged_results(ground_truth, 1)
    assert_same(
        evaluate(ground_truth, damaged, CROWDPOSE_SKELETON, "crowdpose"),
        reference_crowdpose(ground_truth, damaged, CROWDPOSE_SKELETON)
        | {name: math.nan for name in ("APE", "APH") if math.isnan(perfect[name])},
        0.00501,
    )


def test_lsp_mosaics_by_both_protocols(shared_data: Path) -> None:
    ground_truth = json.loads((shared_data / "lsp-multi/val.json").read_text())
    results = damaged_results(ground_truth, 0)
    coco = evaluate(ground_truth, results, CROWDPOSE_SKELETON)
    assert_same(coco, reference_coco(ground_truth, results, CROWDPOSE_SKELETON))
    crowd = evaluate(ground_truth, results, CROWDPOSE_SKELETON, "crowdpose")
    assert_same(crowd, reference_crowdpose(ground_truth, results, CROWDPOSE_SKELETON), 0.00501)


def one_person(**changes: Any) -> Content:
    """An image with one fully labeled person of area 10,000."""
    K = COCO_SKELETON.num_keypoints
    keypoints = np.stack([np.linspace(10, 110, K), np.linspace(20, 220, K), np.full(K, 2)], axis=1)
    annotation = {
        "id": 1, "image_id": 1, "category_id": 1, "bbox": [10.0, 20.0, 100.0, 200.0], "area": 10000.0, "iscrowd": 0,
        "num_keypoints": K, "keypoints": keypoints.reshape(-1).tolist(),
    }  # fmt: skip
    return {
        "images": [{"id": 1, "file_name": "1.jpg", "width": 640, "height": 480, "crowdIndex": 0.5}],
        "categories": [{"id": 1, "name": "person"}],
        "annotations": [annotation | changes],
    }


@pytest.mark.parametrize(("oks", "thresholds_met"), [(0.999, 10), (0.72, 5), (0.505, 1), (0.49, 0)])
def test_every_keypoint_displaced_to_a_given_oks(oks: float, thresholds_met: int) -> None:
    ground_truth = one_person()
    results = perfect_results(ground_truth)
    sigmas = np.array(COCO_SKELETON.sigmas)
    # exp(-d² / (2 area (2 sigma)²)) = oks
    distance = np.sqrt(-2 * math.log(oks) * 10000.0) * 2 * sigmas
    keypoints = np.array(results[0]["keypoints"]).reshape(-1, 3)
    keypoints[:, 0] += distance
    results[0]["keypoints"] = keypoints.reshape(-1).tolist()
    metrics = evaluate(ground_truth, results, COCO_SKELETON)
    assert metrics["AP"] == pytest.approx(10 * thresholds_met)
    assert metrics["AP50"] == (100 if thresholds_met else 0)
    assert metrics["APl"] == metrics["AP"]
    assert math.isnan(metrics["APm"])


@pytest.mark.parametrize("protocol", ["coco", "crowdpose"])
def test_perfect_predictions_no_predictions_no_persons(protocol: Any) -> None:
    ground_truth, _ = generate(COCO_SKELETON, 0)
    perfect = evaluate(ground_truth, perfect_results(ground_truth), COCO_SKELETON, protocol)
    assert set(perfect.values()) == {100.0}
    nothing = evaluate(ground_truth, [], COCO_SKELETON, protocol)
    assert set(nothing.values()) == {0.0}
    unlabeled = one_person(keypoints=[0] * 51, num_keypoints=0)["annotations"][0] | {"image_id": 10}
    for persons in ([], [unlabeled]):
        nobody = ground_truth | {"annotations": persons}
        for results in ([], [perfect_results(ground_truth)[0]]):
            metrics = evaluate(nobody, results, COCO_SKELETON, protocol)
            assert all(map(math.isnan, metrics.values()))


def test_a_crowdpose_split_without_images_is_undefined() -> None:
    ground_truth = one_person()
    metrics = evaluate(ground_truth, perfect_results(ground_truth), COCO_SKELETON, "crowdpose")
    assert metrics["AP"] == metrics["APM"] == 100
    assert math.isnan(metrics["APE"])
    assert math.isnan(metrics["APH"])


@pytest.mark.parametrize(
    ("crowd_index", "split"), [(0.1, "APE"), (0.2, "APM"), (0.79, "APM"), (0.8, "APH"), (1, "APH")]
)
def test_crowd_index_bounds_are_those_of_the_code(crowd_index: float, split: str) -> None:
    ground_truth = one_person()
    ground_truth["images"][0]["crowdIndex"] = crowd_index
    metrics = evaluate(ground_truth, perfect_results(ground_truth), COCO_SKELETON, "crowdpose")
    assert [name for name in ("APE", "APM", "APH") if metrics[name] == 100] == [split]


def test_images_without_detections_count() -> None:
    ground_truth = one_person()
    second = copy.deepcopy(ground_truth["annotations"][0]) | {"id": 2, "image_id": 2}
    images = [*ground_truth["images"], ground_truth["images"][0] | {"id": 2, "file_name": "2.jpg"}]
    both = ground_truth | {"images": images, "annotations": [*ground_truth["annotations"], second]}
    metrics = evaluate(both, perfect_results(ground_truth), COCO_SKELETON)
    assert metrics["AR"] == 50
    assert metrics["AP"] == pytest.approx(100 * 51 / 101)  # precision 1 at the recalls 0, 0.01, …, 0.50


def test_only_the_twenty_best_of_an_image_count() -> None:
    ground_truth = one_person()
    (good,) = perfect_results(ground_truth)
    wrong = {**good, "keypoints": (np.array(good["keypoints"]) + 1000).tolist(), "score": 0.95}
    assert evaluate(ground_truth, [wrong] * 19 + [good], COCO_SKELETON)["AR"] == 100
    assert evaluate(ground_truth, [wrong] * 20 + [good], COCO_SKELETON)["AR"] == 0


def test_arguments_are_not_changed() -> None:
    ground_truth, results = generate(COCO_SKELETON, 1, num_images=5, with_boxes=True)
    before = copy.deepcopy((ground_truth, results))
    evaluate(ground_truth, results, COCO_SKELETON, "crowdpose")
    assert (ground_truth, results) == before


def test_missing_num_keypoints_and_iscrowd_are_completed() -> None:
    ground_truth, results = generate(COCO_SKELETON, 2)
    ground_truth["annotations"] = [a for a in ground_truth["annotations"] if not a["iscrowd"]]
    wanted = evaluate(ground_truth, results, COCO_SKELETON)
    for annotation in ground_truth["annotations"]:
        del annotation["num_keypoints"], annotation["iscrowd"]
    assert_same(evaluate(ground_truth, results, COCO_SKELETON), wanted)


def test_num_keypoints_of_the_file_decides_who_is_ignored() -> None:
    # CrowdPose leaves head and neck out of it: a person with these alone is labeled, but ignored.
    ground_truth = one_person(num_keypoints=0)
    assert math.isnan(evaluate(ground_truth, perfect_results(ground_truth), COCO_SKELETON)["AP"])


def test_missing_area_is_053_of_the_box(caplog: pytest.LogCaptureFixture) -> None:
    ground_truth, results = generate(COCO_SKELETON, 4)
    for annotation in ground_truth["annotations"]:
        annotation["area"] = 0.53 * annotation["bbox"][2] * annotation["bbox"][3]
    wanted = evaluate(ground_truth, results, COCO_SKELETON)
    for annotation in ground_truth["annotations"]:
        del annotation["area"]
    evaluate(ground_truth, results, COCO_SKELETON, "crowdpose")
    assert not caplog.text
    assert_same(evaluate(ground_truth, results, COCO_SKELETON), wanted)
    assert f"{len(ground_truth['annotations'])} of {len(ground_truth['annotations'])} persons" in caplog.text
    assert "have no 'area'" in caplog.text


def test_annotation_ids_that_are_zero() -> None:
    ground_truth, results = generate(COCO_SKELETON, 5)
    wanted = evaluate(ground_truth, results, COCO_SKELETON)
    for index, annotation in enumerate(ground_truth["annotations"]):
        annotation["id"] = index  # 0 is "unmatched" to the libraries
    assert_same(evaluate(ground_truth, results, COCO_SKELETON), wanted)


def test_empty_boxes_count_though_training_leaves_them_out() -> None:
    ground_truth, results = generate(COCO_SKELETON, 7)
    for annotation in ground_truth["annotations"][::3]:
        annotation["bbox"][2] = 0
    found = evaluate(ground_truth, results, COCO_SKELETON)
    assert_same(found, reference_coco(ground_truth, results, COCO_SKELETON))
    assert not read(ground_truth, COCO_SKELETON).is_usable.all()


def test_box_of_a_result_decides_the_area_of_an_unmatched_detection() -> None:
    ground_truth = one_person()
    (good,) = perfect_results(ground_truth)
    # Of a medium extent, but with a large box; matches nobody.
    wrong = {**good, "score": 0.95, "keypoints": (np.array(good["keypoints"]) * 0.3 + 700).tolist()}
    assert evaluate(ground_truth, [good, wrong], COCO_SKELETON)["APl"] == 100
    with_boxes = [result | {"bbox": [0, 0, 200, 200]} for result in (good, wrong)]
    assert evaluate(ground_truth, with_boxes, COCO_SKELETON)["APl"] == pytest.approx(50)
    for results in ([good, wrong], with_boxes):
        assert_same(
            evaluate(ground_truth, results, COCO_SKELETON), reference_coco(ground_truth, results, COCO_SKELETON)
        )


# What a training refuses too: there is one reader.
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_id": "1"}, "annotation 1 has the image_id '1'"),
        ({"keypoints": ["1", "1", "2"] * 17}, "annotation 1 .* not a finite number"),
        ({"keypoints": [1, 1, 1.5] * 17}, "has the visibility 1.5"),
        ({"keypoints": [1, 1, -1] * 17}, "has the visibility -1"),
        ({"iscrowd": None}, "'iscrowd' of annotation 1 is None"),
        ({"bbox": [0, 0, -5, 5]}, "negative size"),
    ],
)
def test_broken_annotations_are_refused_as_in_training(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(DatasetError, match=rf"gt.json.*{message}"):
        evaluate(one_person(**changes), [], COCO_SKELETON)


def test_crowdpose_needs_a_crowd_index() -> None:
    ground_truth = one_person()
    del ground_truth["images"][0]["crowdIndex"]
    with pytest.raises(EvaluationError, match=r"gt.json: image 1 has no crowdIndex.*; add crowdIndex to each image"):
        evaluate(ground_truth, [], COCO_SKELETON, "crowdpose")


BROKEN_RESULTS: dict[str, tuple[dict[str, Any], str]] = {
    "nan keypoint": ({"keypoints": [math.nan, 1, 1] * 17}, "NaN or infinite 'keypoints', in the images 1"),
    "inf keypoint": ({"keypoints": [1, -math.inf, 1] * 17}, "NaN or infinite 'keypoints', in the images 1"),
    "nan score": ({"score": math.nan}, r"\(image 1\) has score nan"),
    "no score": ({"score": None}, r"\(image 1\) has score None"),
    "text": ({"keypoints": ["1", "x", 1] * 17}, "not a number"),
    "unknown image": ({"image_id": 99}, r"\(image 99\): .*gt.json has no image of this id"),
    "image of another type": ({"image_id": "1"}, "image_id .1.; allowed: an integer"),
    "list as image": ({"image_id": [1]}, r"image_id \[1\]; allowed: an integer"),
    "unknown category": ({"category_id": 0}, "category_id 0; allowed: 1, as in .*gt.json"),
    "number of keypoints": ({"keypoints": [1, 1, 1] * 14}, r"\(image 1\) has 42 values in 'keypoints'"),
    "null": ({"keypoints": None}, r"\(image 1\) has keypoints None"),
    "some with a box": ({"bbox": [0, 0, 1, 1]}, "has a 'bbox', unlike the first result; allowed"),
}


@pytest.mark.parametrize("case", BROKEN_RESULTS)
def test_broken_results_are_refused(case: str) -> None:
    changes, message = BROKEN_RESULTS[case]
    content = one_person()
    (good,) = perfect_results(content)
    with pytest.raises(ResultsError, match=message) as error:
        read_detections([good, good | changes], read(content, COCO_SKELETON), "res.json")
    assert "res.json" in str(error.value)


def test_a_missing_field_is_named() -> None:
    ground_truth = one_person()
    (good,) = perfect_results(ground_truth)
    del good["score"]
    with pytest.raises(ResultsError, match="result 0 has no 'score'"):
        evaluate(ground_truth, [good], COCO_SKELETON)
    with pytest.raises(ResultsError, match="result 0 is a list"):
        evaluate(ground_truth, [[1, 2]], COCO_SKELETON)
    with pytest.raises(ResultsError, match="must be a list of results, not a dict"):
        evaluate(ground_truth, ground_truth, COCO_SKELETON)


@pytest.mark.parametrize("bbox", [[0, 0, 10, -3], [0, 0, -1, 5]])
def test_boxes_of_negative_size_are_refused(bbox: list[float]) -> None:
    # The COCO API would ignore such a false positive, and the AP would rise.
    ground_truth = one_person()
    (good,) = perfect_results(ground_truth)
    with pytest.raises(ResultsError, match=r"image 1\) has bbox .*; allowed: .* >= 0"):
        evaluate(ground_truth, [good | {"bbox": bbox}], COCO_SKELETON)


def test_table() -> None:
    table = format_metrics({"AP": 12.345, "APm": math.nan, "AR50": 100.0}, "Title")
    title, names, _, values = table.splitlines()
    assert title == "Title"
    assert names.split(" | ")[0].strip() == "AP"
    assert [value.strip() for value in values.split("|")] == ["12.35", "-", "100.00"]
    assert len(set(map(len, table.splitlines()[1:]))) == 1
