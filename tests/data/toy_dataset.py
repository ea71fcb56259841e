"""Small datasets on disk, for the tests of the data part."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from querypose.data import read_annotations
from querypose.skeleton import Skeleton

# Three keypoints, one pair: enough to see names, order and flips.
TOY_SKELETON = Skeleton(
    name="toy",
    keypoints=("nose", "left", "right"),
    flip_pairs=((1, 2),),
    sigmas=(0.1, 0.1, 0.1),
    edges=((0, 1), (0, 2)),
)


def toy_document(**changes: Any) -> dict[str, Any]:
    """Two images, 40x30 and 30x40; one person and one crowd region on the first, nobody on the second."""
    document: dict[str, Any] = {
        "categories": [{"id": 3, "name": "toy", "keypoints": list(TOY_SKELETON.keypoints), "skeleton": []}],
        "images": [
            {"id": 7, "file_name": "a.png", "width": 40, "height": 30},
            {"id": 2, "file_name": "b.png", "width": 30, "height": 40},
        ],
        "annotations": [
            toy_annotation(id=1),
            toy_annotation(id=2, iscrowd=1, keypoints=[0] * 9, num_keypoints=0, bbox=[0, 0, 40, 10]),
        ],
    }
    return {**document, **changes}


def toy_annotation(**changes: Any) -> dict[str, Any]:
    """A person on image 7 whose `right` is not labeled."""
    return {
        "id": 1, "image_id": 7, "category_id": 3, "iscrowd": 0, "bbox": [10, 5, 20, 15], "area": 159.0,
        "keypoints": [15, 8, 2, 25.25, 12, 1, 0, 0, 0], "num_keypoints": 2, **changes,
    }  # fmt: skip


def write_dataset(folder: Path, document: Any) -> tuple[Path, Path]:
    """A json (a document, or text as it is) and the images of `toy_document`, of noise; returns json and folder."""
    images = folder / "images"
    images.mkdir(parents=True, exist_ok=True)
    json_file = folder / "toy.json"
    json_file.write_text(document if isinstance(document, str) else json.dumps(document), encoding="utf-8")
    generator = np.random.default_rng(0)
    for entry in toy_document()["images"]:
        pixels = generator.integers(0, 256, (entry["height"], entry["width"], 3), dtype=np.uint8)
        Image.fromarray(pixels).save(images / entry["file_name"])
    return json_file, images


def count_reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The json files that are read from now on, in a list that grows."""
    reads: list[str] = []
    read_bytes = Path.read_bytes

    def read_and_note(path: Path) -> bytes:
        if path.suffix == ".json":
            reads.append(str(path))
        return read_bytes(path)

    monkeypatch.setattr(Path, "read_bytes", read_and_note)
    return reads


def read_records(json_file: Path, images: Path, skeleton: Skeleton = TOY_SKELETON) -> list[dict[str, Any]]:
    """The records of a json without errors."""
    return read_annotations(json_file, images, skeleton).require_sound().records()
