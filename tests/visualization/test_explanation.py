"""What led to poses, drawn: every kind of layer, wherever it lies."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from querypose.modeling import BoxLayer, Layer, MapLayer, PatchLayer, PointLayer, PoseLayer, ValueLayer
from querypose.skeleton import COCO_SKELETON
from querypose.visualization.explanation import draw_explanation, draw_stages
from querypose.visualization.media import save_animation

GRAY = np.full((60, 80, 3), 120, dtype=np.uint8)
POSE = np.random.default_rng(0).uniform((20, 10), (60, 50), (17, 2)).astype(np.float32)


def pose(stage: int, shift: float = 0) -> PoseLayer:
    return PoseLayer(name="pose", stage=stage, pose=0, keypoints_KD=POSE + np.float32(shift), score=0.8)


def test_a_picture_of_the_image_and_one_of_each_pose() -> None:
    layers: list[Layer] = [
        BoxLayer(
            name="boxes", stage=1, boxes_N4=np.array([[5, 5, 40, 40]], np.float32), scores_N=np.ones(1, np.float32)
        ),
        PatchLayer(name="patches", relevance_HW=np.eye(3, 4, dtype=np.float32), is_refined_HW=np.eye(3, 4) > 0),
        pose(1),
        pose(2),
        MapLayer(name="attention", stage=1, pose=0, values_HW=np.eye(4, dtype=np.float32), box=(20, 10, 60, 50)),
        PointLayer(name="points", stage=2, pose=1, points_ND=POSE, from_ND=POSE[:1].repeat(17, axis=0)),
        ValueLayer(name="gates", stage=1, pose=0, values={"left arm": 0.25}),
    ]
    pictures = draw_explanation(GRAY, layers, COCO_SKELETON)
    assert set(pictures) == {"image", "pose_1", "pose_2"}
    assert all(picture.dtype == np.uint8 and picture.ndim == 3 for picture in pictures.values())


def red(picture: np.ndarray) -> np.ndarray:
    """How much more red than green each pixel has."""
    return picture[..., 0].astype(int) - picture[..., 1]


def test_heat_lies_where_the_weights_are() -> None:
    weights = np.zeros((4, 4), dtype=np.float32)
    weights[0, 3] = 1  # the upper right quarter of a quarter
    layer = MapLayer(name="attention", values_HW=weights, box=(0, 0, 80, 60))
    picture = draw_explanation(GRAY, [layer], COCO_SKELETON)["image"]
    rows, columns = (red(picture) > 100).nonzero()
    assert rows.mean() < 0.35 * picture.shape[0]
    assert columns.mean() > 0.7 * picture.shape[1]


@pytest.mark.parametrize("box", [(-500, -500, 900, 900), (200, 200, 300, 300), (30, 30, 30, 30), (50, 50, 20, 20)])
def test_boxes_beyond_the_image_or_empty_are_drawn_as_far_as_they_are_seen(box: tuple[float, ...]) -> None:
    layer = MapLayer(name="attention", values_HW=np.eye(3, dtype=np.float32), box=box)  # type: ignore[arg-type]
    picture = draw_explanation(GRAY, [layer], COCO_SKELETON)["image"]
    assert (red(picture) > 100).any() == (box[0] < 0)


def test_frames_follow_the_stages_and_make_an_animation(tmp_path: Path) -> None:
    frames = draw_stages(GRAY, [pose(2, shift=15), pose(1)], COCO_SKELETON)
    assert len(frames) == 2
    assert (frames[0] != frames[1]).any()
    save_animation(tmp_path / "new/stages.gif", frames)
    with Image.open(tmp_path / "new/stages.gif") as animation:
        assert getattr(animation, "n_frames") == 2  # noqa: B009
    save_animation(tmp_path / "one.gif", frames[:1])
    assert draw_stages(GRAY, [], COCO_SKELETON) == []
