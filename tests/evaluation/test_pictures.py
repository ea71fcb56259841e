"""TEST.PICTURES: the same images at every evaluation."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from querypose.d2 import EventStorage
from querypose.data import PoseAnnotations, read_annotations
from querypose.evaluation import Poses
from querypose.evaluation.pictures import EvaluationPictures
from querypose.skeleton import COCO_SKELETON
from tests.engine.toy_pose import write_toy_dataset


@pytest.fixture(name="annotations")
def annotations_of_toys(tmp_path: Path) -> PoseAnnotations:
    json_file = write_toy_dataset(tmp_path / "data")
    return read_annotations(json_file, json_file.parent, COCO_SKELETON)


def poses(annotations: PoseAnnotations, image: int) -> Poses:
    """Of the image's person, and a worse one that is not to be drawn."""
    keypoints = np.repeat(annotations.keypoints[annotations.of_image(image)], 2, axis=0)
    keypoints[1, :, :2] = 3
    return Poses(keypoints, np.array([0.02, 0.01]))


def test_every_evaluation_adds_a_picture_a_frame_and_an_image_for_tensorboard(
    annotations: PoseAnnotations, tmp_path: Path
) -> None:
    pictures = EvaluationPictures(annotations, 2, tmp_path / "pictures")
    with EventStorage(0) as storage:
        for iteration in (99, 199):
            storage.iter = iteration
            pictures.draw({index: poses(annotations, index) for index in range(6)})
        tags = [(name, len(image), at) for name, image, at in storage._vis_data]
    assert tags == [("pictures/1", 3, 99), ("pictures/6", 3, 99), ("pictures/1", 3, 199), ("pictures/6", 3, 199)]
    names = sorted(str(path.relative_to(tmp_path / "pictures")) for path in (tmp_path / "pictures").rglob("*.*"))
    assert names == ["1.gif", "1/0000100.jpg", "1/0000200.jpg", "6.gif", "6/0000100.jpg", "6/0000200.jpg"]
    with Image.open(tmp_path / "pictures/1.gif") as animation:
        assert getattr(animation, "n_frames") == 2  # noqa: B009


def test_images_without_poses_and_images_that_are_gone(
    annotations: PoseAnnotations, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert annotations.image_root is not None
    Path(annotations.image_root, "0.png").unlink()
    with caplog.at_level(logging.WARNING):
        EvaluationPictures(annotations, 100, tmp_path / "pictures").draw({})
    assert "Image 1 is not drawn" in caplog.text
    assert sorted(path.name for path in (tmp_path / "pictures").glob("*.gif")) == [
        f"{number}.gif" for number in range(2, 7)
    ]
