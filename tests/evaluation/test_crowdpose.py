"""CrowdPose's figures against a plain re-statement of its protocol."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from querypose.config import load_config
from querypose.skeleton import CROWDPOSE_SKELETON
from tests.evaluation.crowdpose_protocol import crowdpose_figures, object_keypoint_similarity
from tests.evaluation.generated import damaged_results, evaluate, generate, perfect_results
from tests.evaluation.test_oks import assert_same
from tests.scripts import ROOT

CONFIGS = sorted((ROOT / "configs" / "crowdpose").glob("*.yaml"))


def assert_equals_restatement(ground_truth: dict[str, Any], results: list[dict[str, Any]]) -> dict[str, float]:
    found = evaluate(ground_truth, results, CROWDPOSE_SKELETON, "crowdpose")
    assert_same(found, crowdpose_figures(ground_truth, results, CROWDPOSE_SKELETON.sigmas), 1e-9)
    return found


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("with_boxes", [False, True])
def test_generated_persons_and_detections(seed: int, with_boxes: bool) -> None:
    ground_truth, results = generate(CROWDPOSE_SKELETON, seed, num_images=30, with_boxes=with_boxes)
    found = assert_equals_restatement(ground_truth, results)
    assert len({found[name] for name in ("AP", "APE", "APM", "APH")}) == 4


@pytest.mark.parametrize("name", ["test_crowdpose.json", "test_crowdpose_repaired.json"])
@pytest.mark.parametrize("seed", range(3))
def test_real_persons(shared_data: Path, name: str, seed: int) -> None:
    ground_truth = json.loads((shared_data / "samples/crowdpose" / name).read_text())
    assert assert_equals_restatement(ground_truth, perfect_results(ground_truth))["AP"] == 100
    assert_equals_restatement(ground_truth, damaged_results(ground_truth, seed))


def test_real_mosaics(shared_data: Path) -> None:
    ground_truth = json.loads((shared_data / "lsp-multi/val.json").read_text())
    ids = {image["id"] for image in ground_truth["images"][:60]}
    part = {
        "images": [image for image in ground_truth["images"] if image["id"] in ids],
        "annotations": [person for person in ground_truth["annotations"] if person["image_id"] in ids],
        "categories": ground_truth["categories"],
    }
    assert 0 < assert_equals_restatement(part, damaged_results(part, 0))["AP"] < 100


def test_restatement_in_closed_form() -> None:
    # One keypoint of fourteen is off by d with d² = 2 area (2 sigma)², so that its term is 1/e.
    sigmas = CROWDPOSE_SKELETON.sigmas
    person = {"bbox": [0.0, 0.0, 100.0, 200.0], "keypoints": [50.0, 60.0, 2] * 14}
    detection = {"keypoints": [50.0, 60.0, 1] * 14}
    detection["keypoints"][0] += math.sqrt(2 * 0.53 * 100 * 200) * 2 * sigmas[0]
    assert object_keypoint_similarity(detection, person, sigmas) == pytest.approx((13 + math.exp(-1)) / 14)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_configs_train_on_train_and_val_and_test_on_test(path: Path) -> None:
    cfg = load_config(path)
    assert (list(cfg.DATASETS.TRAIN), list(cfg.DATASETS.TEST)) == (["crowdpose_trainval"], ["crowdpose_test"])
