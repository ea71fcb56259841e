"""Files of detected boxes: what is read, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from querypose.data import DatasetError
from querypose.data.person_boxes import read_person_boxes

BOX = {"image_id": 3, "category_id": 1, "bbox": [1, 2, 30, 40], "score": 0.5}


def test_boxes_are_read(tmp_path: Path) -> None:
    file = tmp_path / "boxes.json"
    file.write_text(json.dumps([BOX, {**BOX, "bbox": [1, 2, 0, 40], "file_name": "a.jpg"}]))
    first, second = read_person_boxes(file)
    assert first == (3, 1, (1, 2, 31, 42), 0.5, None)
    assert first.has_area
    assert not second.has_area
    assert second.file_name == "a.jpg"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no file"),
        ("[", "not valid json"),
        ({"annotations": []}, "no COCO results file: it holds a dict"),
        ([BOX, {"image_id": 3}], "entry 1, is no detected box"),
        ([7], "entry 0, is no detected box"),
        ([{**BOX, "bbox": [1, 2, 3]}], "entry 0, is no detected box"),
        ([{**BOX, "score": float("nan")}], "entry 0, has a bbox or score that is NaN"),
        ([{**BOX, "bbox": [1, 2, float("inf"), 3]}], "entry 0, has a bbox or score that is NaN or infinite"),
    ],
)
def test_what_is_no_file_of_boxes_is_refused(tmp_path: Path, content: Any, message: str) -> None:
    file = tmp_path / "boxes.json"
    if content is not None:
        file.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(DatasetError, match=message):
        read_person_boxes(file)
