from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from querypose.skeleton import COCO_SKELETON, CROWDPOSE_SKELETON, Skeleton
from querypose.visualization import draw_poses, drawn_visibilities, image_grid, person_color

TWO = Skeleton("two", ("a", "b"), (), (0.1, 0.1), edges=((0, 1),))


def gray(height: int = 120, width: int = 160) -> np.ndarray:
    return np.full((height, width, 3), 100, dtype=np.uint8)


def changed(drawn: np.ndarray, image: np.ndarray) -> np.ndarray:
    return np.abs(drawn.astype(int) - image.astype(int)).max(axis=2) > 0


def random_poses(skeleton: Skeleton, count: int, size: tuple[int, int] = (120, 160)) -> np.ndarray:
    return np.random.default_rng(0).uniform(0, size[::-1], (count, skeleton.num_keypoints, 2))


@pytest.mark.parametrize("skeleton", [COCO_SKELETON, CROWDPOSE_SKELETON, TWO])
def test_any_skeleton_and_the_input_stays(skeleton: Skeleton) -> None:
    image = gray()
    drawn = draw_poses(image, random_poses(skeleton, 3), skeleton, scores=[0.2, 0.9, 0.5])
    assert drawn.shape == image.shape
    assert drawn.dtype == np.uint8
    assert changed(drawn, image).any()
    assert (image == 100).all()


def test_nobody_changes_nothing() -> None:
    image = gray()
    no_keypoints: list[Any] = [[], np.zeros((0, 17, 2)), np.zeros((0, 17, 3))]
    for nobody in no_keypoints:
        drawn = draw_poses(image, nobody, COCO_SKELETON, scores=[], boxes=[], keypoint_scores=[], visibilities=[])
        assert np.array_equal(drawn, image)


@pytest.mark.parametrize("at", [(40.5, 60.5), (40.0, 60.0), (80.25, 30.75)])
def test_a_joint_is_drawn_where_it_is(at: tuple[float, float]) -> None:
    # The center of what is drawn, with pixel centers at +0.5.
    image = gray()
    drawn = draw_poses(image, [[at, (np.nan, np.nan)]], TWO)
    weights = np.abs(drawn.astype(float) - image).sum(axis=2)
    rows, columns = np.mgrid[:120, :160] + 0.5
    assert (columns * weights).sum() / weights.sum() == pytest.approx(at[0], abs=0.15)
    assert (rows * weights).sum() / weights.sum() == pytest.approx(at[1], abs=0.15)


def test_mirrored_poses_give_the_mirrored_picture() -> None:
    image = gray()
    pose = random_poses(COCO_SKELETON, 1)
    mirrored = pose * [-1, 1] + [160, 0]
    difference = (
        draw_poses(image, pose, COCO_SKELETON).astype(int) - draw_poses(image, mirrored, COCO_SKELETON)[:, ::-1]
    )
    assert np.abs(difference).mean() < 1.0  # smooth edges differ by what a subpixel is


def test_limbs_follow_the_edges() -> None:
    image = gray()
    drawn = draw_poses(image, [[(20, 60), (140, 60)]], TWO)
    assert changed(drawn, image)[60, 20:140].all()
    without_edge = Skeleton("loose", ("a", "b"), (), (0.1, 0.1))
    assert not changed(draw_poses(image, [[(20, 60), (140, 60)]], without_edge), image)[60, 40:120].any()


def test_visibilities() -> None:
    image = gray()
    pose = [[(20, 60), (140, 60)]]
    strengths = []
    for visibility in (0, 1, 2):
        drawn = draw_poses(image, pose, TWO, visibilities=[[visibility, 2]])
        strengths.append(np.abs(drawn.astype(int) - image)[50:70, 10:30].sum())
        assert changed(drawn, image)[60, 80] == (visibility > 0)
    assert strengths[0] == 0 < strengths[1] < strengths[2]


def test_predicted_visibilities_are_drawn_as_annotated_ones() -> None:
    assert drawn_visibilities([[0.0, 0.04, 0.06, 0.49, 0.5, 1.0]]).tolist() == [[0, 0, 1, 1, 2, 2]]


def test_unsure_keypoints_are_pale_and_below_the_threshold_left_out() -> None:
    image = gray()
    pose = [[(20, 60), (140, 60)]]
    strengths = [
        np.abs(draw_poses(image, pose, TWO, keypoint_scores=[[score, 1]]).astype(int) - image)[50:70, 10:30].sum()
        for score in (0.0, 0.3, 1.0)
    ]
    assert 0 < strengths[0] < strengths[1] < strengths[2]
    drawn = draw_poses(image, pose, TWO, keypoint_scores=[[0.3, 1]], keypoint_threshold=0.5)
    assert not changed(drawn, image)[50:70, 10:30].any()


def test_the_best_score_is_in_front() -> None:
    image = gray()
    pose = np.array([[(20.0, 60.0), (140.0, 60.0)]] * 2)
    center = [draw_poses(image, pose, TWO, scores=scores)[60, 80] for scores in ([0.9, 0.1], [0.1, 0.9])]
    for pixel, person in zip(center, (0, 1), strict=True):
        distances = [np.abs(pixel.astype(int) - person_color(other)).sum() for other in (0, 1)]
        assert np.argmin(distances) == person


def test_scores_and_boxes_are_drawn() -> None:
    image = gray()
    pose = [[(60, 60), (90, 60)]]
    plain = draw_poses(image, pose, TWO)
    with_box = draw_poses(image, pose, TWO, boxes=[[30, 30, 120, 100]])
    assert changed(with_box, plain)[30, 75]
    assert changed(with_box, plain)[65, 30]
    assert not changed(with_box, plain)[45, 45]
    assert changed(draw_poses(image, pose, TWO, scores=[0.5]), plain).any()


@pytest.mark.parametrize(
    "points",
    [
        [(-500, -500), (-400, -400)],
        [(-50, 60), (500, 60)],
        [(1e9, 60), (20, 1e12)],
        [(np.nan, 5), (np.inf, 7)],
        [(0, 0), (0, 0)],
        [(159.99, 119.99), (160, 120)],
    ],
)
def test_poses_outside_of_the_image_and_degenerate_ones(points: Any) -> None:
    image = gray()
    drawn = draw_poses(image, [points], TWO, scores=[0.5], boxes=[[*points[0], *points[1]]])
    assert drawn.shape == image.shape


@pytest.mark.parametrize("size", [(1, 1), (3, 200), (1500, 40)])
def test_images_of_odd_sizes(size: tuple[int, int]) -> None:
    drawn = draw_poses(gray(*size), [[(0, 0), (1, 1)]], TWO, scores=[0.5], boxes=[[0, 0, 1, 1]])
    assert drawn.shape == (*size, 3)


def test_lines_grow_with_person_and_image() -> None:
    def thickness(side: int, length: float) -> int:
        image = gray(side, side)
        middle = side // 2
        drawn = draw_poses(image, [[(middle, middle - length / 2), (middle + 1, middle + length / 2)]], TWO)
        return int(changed(drawn, image)[middle].sum())

    assert thickness(1600, 1000) > thickness(400, 250) > thickness(100, 60)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"keypoints_NKD": np.zeros((1, 14, 2))}, "keypoints_NKD has shape"),
        ({"keypoint_scores": np.ones((1, 3))}, "keypoint_scores has shape"),
        ({"scores": [1, 1]}, "scores has shape"),
        ({"boxes": [[1, 1, 2]]}, "boxes has shape"),
        ({"colors": []}, "0 colors for 1 persons"),
        ({"image": np.zeros((5, 5))}, "uint8 image"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(arguments: dict[str, Any], message: str) -> None:
    usual: dict[str, Any] = {"image": gray(), "keypoints_NKD": np.zeros((1, 17, 2)), "skeleton": COCO_SKELETON}
    with pytest.raises(ValueError, match=message):
        draw_poses(**(usual | arguments))


def test_colors_differ() -> None:
    colors = [person_color(index) for index in range(20)]
    assert len(set(colors)) == 20
    for first, second in itertools.pairwise(colors):
        assert np.abs(np.subtract(first, second)).max() > 80


def test_grid() -> None:
    images = [np.full((40, 60, 3), shade, dtype=np.uint8) for shade in (10, 20, 30)]
    grid = image_grid(images, columns=2, gap=4)
    assert grid.shape == (2 * 44 + 4, 2 * 64 + 4, 3)
    assert (grid[4:44, 4:64] == 10).all()
    assert (grid[4:44, 68:128] == 20).all()
    assert (grid[48:88, 4:64] == 30).all()
    assert image_grid(images, titles=["a", "b", "c"]).shape[0] > image_grid(images).shape[0]
    tall = image_grid([np.full((100, 10, 3), 5, dtype=np.uint8)], cell_size=(50, 50), gap=0, background=(255, 255, 255))
    assert tall.shape == (50, 50, 3)
    assert (tall[:, 23:27] == 5).all()
    assert (tall[:, :20] == 255).all()
    with pytest.raises(ValueError, match="at least one"):
        image_grid([])
    with pytest.raises(ValueError, match="1 titles for 3"):
        image_grid(images, titles=["a"])
