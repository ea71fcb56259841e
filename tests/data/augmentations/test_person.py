"""Augmentations that follow a person: bounds, what they do nothing to, and what they make of the crop."""

from __future__ import annotations

import numpy as np
import pytest

from querypose.data.augmentations import RandomBoxRotation, RandomBoxScale, RandomHalfBody, RandomPersonSquare
from querypose.skeleton import COCO_SKELETON, CROWDPOSE_SKELETON, Skeleton

SIZE = (256, 192)
NOTHING = np.eye(2, 3)


def test_box_scale_is_bounded() -> None:
    generator = np.random.default_rng(0)
    factors = np.array([RandomBoxScale(0.5).draw(SIZE, generator).matrix[0, 0] for _ in range(500)])
    assert factors.min() == pytest.approx(1 / 1.5)
    assert factors.max() == pytest.approx(2.0)
    # A third of a normal distribution lies beyond its deviation.
    assert 0.1 < np.mean(factors < 1 / 1.4999) < 0.22
    matrix = RandomBoxScale(0.5).draw(SIZE, generator)
    np.testing.assert_allclose(matrix.apply_coords(np.array([96.0, 128.0])), [96, 128])


def test_box_rotation_is_bounded_and_sometimes_none() -> None:
    generator = np.random.default_rng(0)
    maps = [RandomBoxRotation(0.6, 40.0).draw(SIZE, generator).matrix for _ in range(500)]
    degrees = np.rad2deg([np.arctan2(matrix[1, 0], matrix[0, 0]) for matrix in maps])
    assert np.abs(degrees).max() == pytest.approx(80)
    assert 0.3 < np.mean(degrees == 0) < 0.5
    assert 20 < degrees.std() < 40


def person(skeleton: Skeleton = COCO_SKELETON, num_labeled: int = 100) -> np.ndarray:
    """The upper body in the upper half of the canvas, the rest in the lower one."""
    positions = np.random.default_rng(0).uniform([20, 10], [170, 120], (skeleton.num_keypoints, 2))
    lower = [index for index in range(skeleton.num_keypoints) if index not in skeleton.upper_body]
    positions[lower, 1] += 120
    visibility = np.where(np.arange(skeleton.num_keypoints) < num_labeled, 2.0, 0.0)
    return np.concatenate([positions, visibility[:, None]], axis=1)


@pytest.mark.parametrize("skeleton", [COCO_SKELETON, CROWDPOSE_SKELETON])
def test_a_half_fills_the_crop(skeleton: Skeleton) -> None:
    generator, person_K3 = np.random.default_rng(0), person(skeleton)
    for upper_probability in (1.0, 0.0):
        is_upper = np.isin(np.arange(len(person_K3)), skeleton.upper_body) == bool(upper_probability)
        augmentation = RandomHalfBody(1.0, upper_probability=upper_probability)
        drawn = augmentation.draw_for(person_K3, skeleton, SIZE, generator)
        half = drawn.apply_coords(person_K3[is_upper, :2])
        np.testing.assert_allclose(half.mean(axis=0), [96, 128])
        assert (np.ptp(half, axis=0) / [192, 256]).max() == pytest.approx(1 / 1.5)


def test_few_keypoints_or_no_halves_leave_the_person_whole() -> None:
    generator = np.random.default_rng(0)
    for person_K3, skeleton in (
        (person(num_labeled=8), COCO_SKELETON),
        (person(), Skeleton("k", COCO_SKELETON.keypoints, (), COCO_SKELETON.sigmas)),
        (np.array([[5.0, 5.0, 2.0]] * 17), COCO_SKELETON),
    ):
        drawn = RandomHalfBody(1.0).draw_for(person_K3, skeleton, SIZE, generator)
        np.testing.assert_array_equal(drawn.matrix, NOTHING)
    assert (RandomHalfBody(0.0).draw_for(person(), COCO_SKELETON, SIZE, generator).matrix == NOTHING).all()


def test_a_square_holds_its_person_at_a_drawn_size() -> None:
    generator, person_K3 = np.random.default_rng(0), person()
    person_K3[-1, :2], person_K3[-1, 2] = 1e4, 0  # unlabeled: it counts nowhere
    labeled_ND = person_K3[:-1, :2]
    augmentation = RandomPersonSquare(96, side_bounds=(1.5, 3.0), max_shift=0.1, max_degrees=90.0)
    maps = [augmentation.draw_for(person_K3, COCO_SKELETON, SIZE, generator) for _ in range(200)]
    assert all(drawn.output_size == (96, 96) and not drawn.mirrors for drawn in maps)
    extent = np.ptp(labeled_ND, axis=0).max()
    sides = np.array([96 / np.sqrt(np.linalg.det(drawn.matrix[:, :2])) for drawn in maps]) / extent
    assert 1.5 <= sides.min() < 1.55
    assert 2.9 < sides.max() <= 3.0
    assert np.median(sides) == pytest.approx(np.sqrt(1.5 * 3.0), rel=0.1)  # evenly in the logarithm
    middle = (labeled_ND.min(axis=0) + labeled_ND.max(axis=0)) / 2
    offsets = np.array([drawn.apply_coords(middle) / 96 - 0.5 for drawn in maps])
    assert 0.09 < np.abs(offsets).max() <= 0.1
    degrees = np.rad2deg([np.arctan2(drawn.matrix[1, 0], drawn.matrix[0, 0]) for drawn in maps])
    assert 80 < np.abs(degrees).max() <= 90


def test_a_square_of_a_person_without_extent_is_about_the_image() -> None:
    for num_labeled in (0, 1):
        drawn = RandomPersonSquare(64, max_shift=0.0, max_degrees=0.0).draw_for(
            person(num_labeled=num_labeled), COCO_SKELETON, SIZE, np.random.default_rng(0)
        )
        np.testing.assert_allclose(drawn.apply_coords(np.array([[96.0, 128.0], [96.0, 0.0]])), [[32, 32], [32, 0]])
