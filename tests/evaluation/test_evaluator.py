from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from querypose.config import get_cfg
from querypose.d2 import Boxes, CfgNode, Instances, comm, launch
from querypose.data import DatasetError, PoseAnnotations, register_pose_dataset
from querypose.evaluation import (
    METRIC_REGISTRY,
    Detections,
    EvaluationError,
    PoseEvaluator,
    inference_folder,
    instances_to_results,
    write_json,
)
from querypose.skeleton import COCO_SKELETON, CROWDPOSE_SKELETON
from tests.evaluation.generated import evaluate, generate

NAME = "evaluator_test"
RESULTS = "inference/coco_instances_results.json"


def make_dataset(folder: Path, seed: int = 0, category_id: int = 1, evaluator: str = "coco") -> dict[str, Any]:
    """Registers a generated dataset."""
    ground_truth, _ = generate(COCO_SKELETON, seed, num_images=20)
    for annotation in ground_truth["annotations"]:
        annotation["category_id"] = category_id
    ground_truth["categories"] = [{"id": category_id, "name": "person"}]
    write_dataset(folder, ground_truth, evaluator)
    return ground_truth


def write_dataset(folder: Path, content: dict[str, Any], evaluator: str = "coco") -> None:
    (folder / "annotations.json").write_text(json.dumps(content))
    register(folder, evaluator)


def register(folder: Path, evaluator: str = "coco") -> None:
    register_pose_dataset(NAME, folder / "annotations.json", folder, COCO_SKELETON, evaluator)


def make_cfg(folder: Path) -> CfgNode:
    cfg = get_cfg()
    cfg.OUTPUT_DIR = str(folder)
    cfg.DATASETS.TEST = [NAME]
    return cfg


def predictions(ground_truth: dict[str, Any], noise: float = 0.0, seed: int = 0) -> dict[int, Instances]:
    """For every image the labeled poses as a model would give them: continuous coordinates, 0.5 more."""
    random = np.random.default_rng(seed)
    of_image: dict[int, list[list[float]]] = {image["id"]: [] for image in ground_truth["images"]}
    for annotation in ground_truth["annotations"]:
        if any(annotation["keypoints"][2::3]):
            of_image[annotation["image_id"]].append(annotation["keypoints"])
    outputs = {}
    for image_id, poses in of_image.items():
        keypoints = np.array(poses, dtype=np.float64).reshape(-1, 17, 3)
        keypoints[:, :, :2] += 0.5 + noise * random.normal(size=(len(keypoints), 17, 2))
        outputs[image_id] = make_instances(keypoints, random.integers(1, 10, len(keypoints)) / 10)
    return outputs


def make_instances(keypoints_NK3: np.ndarray, scores_N: np.ndarray) -> Instances:
    instances = Instances((480, 640))
    instances.pred_keypoints = torch.from_numpy(keypoints_NK3).float()
    low = instances.pred_keypoints[:, :, :2].amin(1)
    instances.pred_boxes = Boxes(torch.cat([low, instances.pred_keypoints[:, :, :2].amax(1)], dim=1))
    instances.scores = torch.from_numpy(np.asarray(scores_N)).float()
    instances.pred_classes = torch.zeros(len(instances.scores), dtype=torch.int64)
    return instances


def run(evaluator: PoseEvaluator, outputs: dict[int, Instances]) -> dict[str, dict[str, float]]:
    evaluator.reset()
    for image_id, instances in outputs.items():
        evaluator.process([{"image_id": image_id}], [{"instances": instances}])
    return evaluator.evaluate()


def test_perfect_predictions_are_100_and_the_file_is_cocos(tmp_path: Path) -> None:
    ground_truth = make_dataset(tmp_path)
    metrics = run(PoseEvaluator(make_cfg(tmp_path), NAME), predictions(ground_truth))
    assert set(metrics["keypoints"].values()) == {100.0}
    results = json.loads((tmp_path / RESULTS).read_text())
    assert [set(result) for result in results] == [
        {"image_id", "category_id", "keypoints", "score", "bbox"} for _ in results
    ]
    of_image = [annotation for annotation in ground_truth["annotations"] if any(annotation["keypoints"][2::3])]
    assert len(results) == len(of_image)
    by_image = {result["image_id"]: result for result in results}
    last = {annotation["image_id"]: annotation for annotation in of_image}
    for image_id, annotation in last.items():
        assert by_image[image_id]["keypoints"] == annotation["keypoints"]  # the 0.5 is off again


def test_figures_are_those_of_the_written_file(tmp_path: Path) -> None:
    ground_truth = make_dataset(tmp_path)
    metrics = run(PoseEvaluator(make_cfg(tmp_path), NAME), predictions(ground_truth, noise=8))
    assert 0 < metrics["keypoints"]["AP"] < 100
    results = json.loads((tmp_path / RESULTS).read_text())
    assert evaluate(ground_truth, results, COCO_SKELETON) == metrics["keypoints"]


def test_order_and_batching_of_the_images_do_not_matter(tmp_path: Path) -> None:
    ground_truth = make_dataset(tmp_path)
    outputs = predictions(ground_truth, noise=8)
    cfg = make_cfg(tmp_path)
    forward = run(PoseEvaluator(cfg, NAME), outputs)
    first_file = (tmp_path / RESULTS).read_bytes()
    evaluator = PoseEvaluator(cfg, NAME)
    backward = list(outputs.items())[::-1]
    evaluator.process(
        [{"image_id": image_id} for image_id, _ in backward], [{"instances": instances} for _, instances in backward]
    )
    assert evaluator.evaluate() == forward
    assert (tmp_path / RESULTS).read_bytes() == first_file


def test_reset_forgets_and_a_second_round_is_the_same(tmp_path: Path) -> None:
    ground_truth = make_dataset(tmp_path)
    outputs = predictions(ground_truth, noise=8)
    evaluator = PoseEvaluator(make_cfg(tmp_path), NAME)
    first = run(evaluator, outputs)
    evaluator.process([{"image_id": 10}], [{"instances": make_instances(np.zeros((3, 17, 3)), np.ones(3))}])
    assert run(evaluator, outputs) == first


def test_predictions_are_not_changed(tmp_path: Path) -> None:
    instances = make_instances(np.full((2, 17, 3), 7.0), np.ones(2))
    instances.pred_keypoints = instances.pred_keypoints.double()
    (first, _) = instances_to_results(instances, 1, [1], COCO_SKELETON)
    assert first["keypoints"][:3].tolist() == [6.5, 6.5, 7.0]
    assert (instances.pred_keypoints == 7.0).all()


def test_boxes_become_x_y_width_height_without_the_half() -> None:
    instances = make_instances(np.zeros((1, 17, 3)), np.ones(1))
    instances.pred_boxes = Boxes(torch.tensor([[10.0, 20.0, 40.0, 80.0]]))
    (result,) = instances_to_results(instances, 1, [3], COCO_SKELETON)
    assert result["bbox"] == [10, 20, 30, 60]
    assert result["category_id"] == 3


def test_instances_without_boxes() -> None:
    instances = make_instances(np.zeros((1, 17, 3)), np.ones(1))
    instances.remove("pred_boxes")
    (result,) = instances_to_results(instances, 1, [1], COCO_SKELETON)
    assert "bbox" not in result


def test_predicted_visibilities_stand_beside_the_keypoints(tmp_path: Path) -> None:
    instances = make_instances(np.zeros((2, 17, 3)), np.ones(2))
    instances.pred_visibilities = torch.linspace(0, 1, 34).view(2, 17)
    results = instances_to_results(instances, 1, [1], COCO_SKELETON)
    write_json(tmp_path / "results.json", results)
    written = json.loads((tmp_path / "results.json").read_text())
    assert [len(result["visibilities"]) for result in written] == [17, 17]
    assert written[1]["visibilities"][-1] == 1.0
    assert written[0]["visibilities"][1] == round(1 / 33, 4)
    assert [len(result["keypoints"]) for result in written] == [51, 51]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("field", ["pred_keypoints", "scores", "pred_boxes", "pred_visibilities"])
def test_predictions_that_are_not_finite_are_refused_by_image(tmp_path: Path, field: str, value: float) -> None:
    make_dataset(tmp_path)
    instances = make_instances(np.zeros((2, 17, 3)), np.ones(2))
    instances.pred_visibilities = torch.ones(2, 17)
    tensor = getattr(instances, field)
    (tensor.tensor if field == "pred_boxes" else tensor).view(-1)[3 if field != "scores" else 0] = value
    evaluator = PoseEvaluator(make_cfg(tmp_path), NAME)
    with pytest.raises(EvaluationError, match="Image 17: 1 of 2 predictions have NaN or infinite"):
        evaluator.process([{"image_id": 17}], [{"instances": instances}])


def test_another_number_of_keypoints_is_refused(tmp_path: Path) -> None:
    instances = make_instances(np.zeros((2, 17, 3)), np.ones(2))
    with pytest.raises(EvaluationError, match=r"\(2, 17, 3\), but skeleton 'crowdpose' needs \(N, 14, 3\)"):
        instances_to_results(instances, 1, [1], CROWDPOSE_SKELETON)


def test_no_predictions_at_all(tmp_path: Path) -> None:
    ground_truth = make_dataset(tmp_path)
    outputs = {image["id"]: make_instances(np.zeros((0, 17, 3)), np.zeros(0)) for image in ground_truth["images"]}
    metrics = run(PoseEvaluator(make_cfg(tmp_path), NAME), outputs)
    assert metrics["keypoints"]["AP"] == 0
    assert json.loads((tmp_path / RESULTS).read_text()) == []


def test_images_that_were_not_processed_are_reported_and_count(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ground_truth = make_dataset(tmp_path)
    outputs = dict(list(predictions(ground_truth).items())[:5])
    with caplog.at_level(logging.INFO):
        metrics = run(PoseEvaluator(make_cfg(tmp_path), NAME), outputs)
    assert "15 of the 20 images" in caplog.text
    assert metrics["keypoints"]["AR"] < 100


def test_category_id_of_the_file(tmp_path: Path) -> None:
    ground_truth = make_dataset(tmp_path, category_id=4)
    metrics = run(PoseEvaluator(make_cfg(tmp_path), NAME), predictions(ground_truth))
    assert metrics["keypoints"]["AP"] == 100
    assert {result["category_id"] for result in json.loads((tmp_path / RESULTS).read_text())} == {4}


def test_crowdpose_metrics_and_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    ground_truth = make_dataset(tmp_path, evaluator="crowdpose")
    with caplog.at_level(logging.INFO):
        metrics = run(PoseEvaluator(make_cfg(tmp_path), NAME), predictions(ground_truth, noise=8))
    assert list(metrics["keypoints"]) == ["AP", "AP50", "AP75", "APE", "APM", "APH", "AR", "AR50", "AR75"]
    assert f"{metrics['keypoints']['APE']:.2f}" in caplog.text


def test_a_test_set_without_annotations_gets_its_file(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    ground_truth = make_dataset(tmp_path)
    outputs = predictions(ground_truth)
    write_dataset(tmp_path, {"images": ground_truth["images"], "categories": ground_truth["categories"]})
    with caplog.at_level(logging.INFO):
        assert run(PoseEvaluator(make_cfg(tmp_path), NAME), outputs) == {}
    assert "no annotations" in caplog.text
    assert RESULTS in caplog.text
    assert json.loads((tmp_path / RESULTS).read_text())


def test_broken_annotations_are_refused_before_the_inference(tmp_path: Path) -> None:
    ground_truth = make_dataset(tmp_path)
    ground_truth["annotations"][3]["bbox"] = None
    write_dataset(tmp_path, ground_truth)
    with pytest.raises(DatasetError, match=rf"annotations.json.* annotation {ground_truth['annotations'][3]['id']} "):
        PoseEvaluator(make_cfg(tmp_path), NAME)


def test_a_dataset_without_a_skeleton_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="no pose dataset 'not_poses'"):
        PoseEvaluator(make_cfg(tmp_path), "not_poses")


def test_several_datasets_do_not_overwrite_each_other(tmp_path: Path) -> None:
    cfg = make_cfg(tmp_path)
    assert inference_folder(cfg, NAME) == tmp_path / "inference"
    cfg.DATASETS.TEST = [NAME, "another"]
    assert inference_folder(cfg, NAME) == tmp_path / "inference" / NAME


def test_samples_of_an_image_keep_all_their_poses(tmp_path: Path) -> None:
    ground_truth = make_dataset(tmp_path)
    together = run(PoseEvaluator(make_cfg(tmp_path), NAME), predictions(ground_truth, noise=8))
    evaluator = PoseEvaluator(make_cfg(tmp_path / "crops"), NAME)
    for image_id, instances in predictions(ground_truth, noise=8).items():
        for index in range(len(instances)):  # one pose a sample, as of a crop
            sample = {"image_id": image_id, "sample_id": (image_id, index)}
            evaluator.process([sample], [{"instances": instances[index]}])
            evaluator.process([sample], [{"instances": instances[index]}])  # as where a last batch is filled up
    assert evaluator.evaluate() == together
    assert (tmp_path / "crops" / RESULTS).read_bytes() == (tmp_path / RESULTS).read_bytes()


def test_an_image_that_is_not_of_the_dataset_is_refused(tmp_path: Path) -> None:
    make_dataset(tmp_path)
    with pytest.raises(EvaluationError, match=r"Image 5 was processed, but .*annotations.json does not list it"):
        PoseEvaluator(make_cfg(tmp_path), NAME).process([{"image_id": 5}], [{"instances": Instances((1, 1))}])


def test_finishing_steps_of_the_config(tmp_path: Path) -> None:
    ground_truth = make_dataset(tmp_path)
    twice = {image_id: Instances.cat([poses, poses]) for image_id, poses in predictions(ground_truth).items()}
    cfg = make_cfg(tmp_path)
    assert run(PoseEvaluator(cfg, NAME), twice)["keypoints"]["AP"] < 100
    cfg.TEST.FINISHING = [{"name": "oks_nms", "threshold": 0.99}]
    assert run(PoseEvaluator(cfg, NAME), twice)["keypoints"]["AP"] == 100
    for poses in twice.values():
        poses.pred_keypoints[..., 2] = 0.4
    cfg.TEST.FINISHING = [{"name": "rescore", "threshold": 0.5}]  # above the score of every keypoint
    run(PoseEvaluator(cfg, NAME), twice)
    assert {result["score"] for result in json.loads((tmp_path / RESULTS).read_text())} == {0.0}


def test_further_metrics_are_tasks_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def poses_per_person(annotations: PoseAnnotations, detections: Detections) -> dict[str, float]:
        return {"ratio": 100 * len(detections.poses) / len(annotations.ids)}

    monkeypatch.setattr(METRIC_REGISTRY, "_obj_map", dict(METRIC_REGISTRY))
    METRIC_REGISTRY.register(poses_per_person)
    ground_truth = make_dataset(tmp_path)
    cfg = make_cfg(tmp_path)
    cfg.TEST.METRICS = ["poses_per_person", "crowdpose", "coco"]
    outputs = predictions(ground_truth)
    results = run(PoseEvaluator(cfg, NAME), outputs)
    assert list(results) == ["keypoints", "poses_per_person", "crowdpose"]  # coco is that of the dataset
    ratio = 100 * sum(map(len, outputs.values())) / len(ground_truth["annotations"])
    assert results["poses_per_person"] == {"ratio": pytest.approx(ratio)}
    assert results["crowdpose"]["APE"] == 100
    make_dataset(tmp_path, evaluator="poses_per_person")
    assert list(run(PoseEvaluator(make_cfg(tmp_path), NAME), outputs)["keypoints"]) == ["ratio"]


def test_a_metric_that_cannot_use_the_annotations_says_so_before_the_inference(tmp_path: Path) -> None:
    ground_truth = make_dataset(tmp_path)
    del ground_truth["images"][2]["crowdIndex"]
    write_dataset(tmp_path, ground_truth, evaluator="crowdpose")
    with pytest.raises(EvaluationError, match="has no crowdIndex"):
        PoseEvaluator(make_cfg(tmp_path), NAME)
    register(tmp_path, "pck")
    with pytest.raises(EvaluationError, match=r"evaluator of dataset 'evaluator_test' is 'pck'.* are coco, crowdpose"):
        PoseEvaluator(make_cfg(tmp_path), NAME)


def evaluate_a_share(folder: str) -> None:
    """A process of two: takes its share of the images, the last of which it shares with the other one."""
    path = Path(folder)
    register(path)
    ground_truth = json.loads((path / "annotations.json").read_text())
    outputs = list(predictions(ground_truth, noise=8).items())
    share = dict(outputs[:11] if comm.get_rank() == 0 else outputs[10:])
    metrics = run(PoseEvaluator(make_cfg(path / "two"), NAME), share)
    (path / f"metrics_{comm.get_rank()}.json").write_text(json.dumps(metrics))


def test_two_processes_give_what_one_gives(tmp_path: Path) -> None:
    ground_truth = make_dataset(tmp_path)
    alone = run(PoseEvaluator(make_cfg(tmp_path), NAME), predictions(ground_truth, noise=8))
    launch(evaluate_a_share, 2, dist_url="auto", args=(str(tmp_path),))
    assert json.loads((tmp_path / "metrics_0.json").read_text()) == alone
    assert json.loads((tmp_path / "metrics_1.json").read_text()) == {}
    assert (tmp_path / "two" / RESULTS).read_bytes() == (tmp_path / RESULTS).read_bytes()
