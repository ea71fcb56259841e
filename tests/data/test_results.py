"""The reader of results files: what is read, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from querypose.data.json_files import JsonError
from querypose.data.results import ResultsError, read_results
from tests.data.toy_dataset import TOY_SKELETON

K = TOY_SKELETON.num_keypoints
BOX = {"image_id": 3, "category_id": 1, "bbox": [1, 2, 30, 40], "score": 0.5}
POSE = {"image_id": 3.0, "category_id": 1, "keypoints": [1.5] * 3 * K, "score": 1}


def written(folder: Path, content: Any) -> Path:
    file = folder / "res.json"
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    return file


def test_boxes_are_read(tmp_path: Path) -> None:
    boxes = read_results(written(tmp_path, [BOX, {**BOX, "bbox": [1, 2, 0, 40], "file_name": "photos/a.jpg"}]))
    assert (boxes.image_ids, boxes.category_ids, boxes.scores.tolist()) == ([3, 3], [1, 1], [0.5, 0.5])
    assert boxes.boxes_xyxy.tolist() == [[1, 2, 31, 42], [1, 2, 1, 42]]
    assert boxes.file_names == [None, "a.jpg"]
    assert boxes.keypoints is None


def test_poses_are_read(tmp_path: Path) -> None:
    poses = read_results(written(tmp_path, [{**POSE, "visibilities": [0.5] * K}]), TOY_SKELETON)
    assert poses.image_ids == [3]
    assert poses.keypoints is not None
    assert poses.keypoints.shape == (1, K, 3)
    assert poses.visibilities is not None
    assert poses.visibilities.tolist() == [[0.5] * K]
    assert poses.boxes_xywh is None
    assert poses.file_names == [None]


def test_no_results_are_results(tmp_path: Path) -> None:
    assert len(read_results(written(tmp_path, []))) == 0
    empty = read_results(written(tmp_path, []), TOY_SKELETON)
    assert empty.keypoints is not None
    assert empty.keypoints.shape == (0, K, 3)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[", "not valid json"),
        ('[{"image_id": 1, "image_id": 2}]', "the name 'image_id' is twice in one object"),
        ({"annotations": []}, "must be a list of results, not a dict"),
        ("null", "not a NoneType"),
        ([BOX, {"image_id": 3}], "result 1 has no 'category_id'"),
        ([7], "result 0 is a int; allowed: an object with image_id, category_id, score, bbox"),
        ([{**BOX, "bbox": [1, 2, 3]}], r"result 0 \(image 3\) has 3 values in 'bbox'; allowed: 4 numbers"),
        ([{**BOX, "bbox": "1234"}], "has bbox '1234'; allowed: a list of 4 numbers"),
        ([{**BOX, "bbox": [1, 2, 3, "4"]}], "has '4' in 'bbox', which is not a number"),
        ([{**BOX, "bbox": [1, 2, 3, [4]]}], r"has \[4\] in 'bbox', which is not a number"),
        ([{**BOX, "bbox": [1, 2, 3, None]}], "has None in 'bbox', which is not a number"),
        ([{**BOX, "bbox": [1, 2, 3, 10**400]}], "NaN or infinite 'bbox'"),
        ([{**BOX, "bbox": [1, 2, float("inf"), 3]}], "NaN or infinite 'bbox'"),
        ([{**BOX, "bbox": [1, 2, -1, 3]}], "width and height >= 0"),
        ([{**BOX, "score": float("nan")}], "has score nan; allowed: a finite number"),
        ([{**BOX, "score": True}], "has score True"),
        ([{**BOX, "score": 10**400}], "has score 1000.*…; allowed"),
        ([{**BOX, "image_id": "3"}], "has image_id '3'; allowed: an integer"),
        ([{**BOX, "image_id": 3.5}], "has image_id 3.5; allowed: an integer"),
        ([{**BOX, "image_id": True}], "has image_id True; allowed: an integer"),
        ([{**BOX, "category_id": None}], "has category_id None; allowed: an integer"),
        ([{**BOX, "file_name": 7}], "has file_name 7; allowed: the name of an image"),
    ],
)
def test_what_is_no_file_of_boxes_is_refused(tmp_path: Path, content: Any, message: str) -> None:
    with pytest.raises((ResultsError, JsonError), match=message) as refusal:
        read_results(written(tmp_path, content))
    assert str(refusal.value).startswith(str(tmp_path / "res.json"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([{**POSE, "keypoints": [1.0]}], r"has 1 values in 'keypoints'; allowed: 9 numbers, x, y and score of each"),
        ([{**POSE, "visibilities": [0.5]}], "has 1 values in 'visibilities'"),
        ([POSE, {**POSE, "visibilities": [0.5] * K}], "result 1.* has a 'visibilities', unlike the first result"),
        ([{**POSE, "bbox": [0, 0, 1, 1]}, POSE], "result 1.* has no 'bbox', unlike the first result"),
        ([BOX], "result 0 has no 'keypoints'"),
    ],
)
def test_what_is_no_file_of_poses_is_refused(tmp_path: Path, content: Any, message: str) -> None:
    with pytest.raises(ResultsError, match=message):
        read_results(written(tmp_path, content), TOY_SKELETON)


def test_a_file_that_is_missing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(JsonError, match=r"none.json: there is no such file"):
        read_results(tmp_path / "none.json")


def test_corners_are_not_those_of_the_file(tmp_path: Path) -> None:
    boxes = read_results(written(tmp_path, [BOX]))
    boxes.boxes_xyxy[:] = 0
    assert np.array_equal(boxes.boxes_xyxy, [[1, 2, 31, 42]])
