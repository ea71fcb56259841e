from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from querypose.data.augmentations import (
    AUGMENTATION_REGISTRY,
    GeometricAugmentation,
    PersonAugmentation,
    PixelAugmentation,
    RandomCrop,
    RandomFlip,
    RandomRescale,
    RandomResize,
    RandomRotation,
    RandomScale,
    RandomShift,
    RandomSquare,
    augment,
)
from querypose.data.transforms import identity, resize

SIZE = (60, 80)


def test_random_rotation_stays_within_its_bounds() -> None:
    generator = np.random.default_rng(0)
    drawn = [RandomRotation(0.5, 25.0).draw(SIZE, generator) for _ in range(400)]
    angles = np.degrees([np.arctan2(transform.matrix[1, 0], transform.matrix[0, 0]) for transform in drawn])
    assert 160 < np.count_nonzero(angles) < 240
    turned = angles[angles != 0]
    assert -25 <= turned.min() < -20
    assert 20 < turned.max() <= 25
    assert all(transform.output_size == SIZE and not transform.mirrors for transform in drawn)


def test_random_resize_draws_all_sizes_and_zero_keeps_the_size() -> None:
    generator = np.random.default_rng(0)
    drawn = {RandomResize((30, 45, 60)).draw(SIZE, generator).output_size for _ in range(60)}
    assert drawn == {(30, 40), (45, 60), (60, 80)}
    assert RandomResize((0,), 20).draw(SIZE, generator).output_size == SIZE


def test_random_flip_has_its_probability() -> None:
    generator = np.random.default_rng(0)
    flips = sum(RandomFlip(0.3).draw(SIZE, generator).mirrors for _ in range(1000))
    assert 250 < flips < 350
    assert not any(RandomFlip(0.0).draw(SIZE, generator).mirrors for _ in range(50))


def test_random_crop_has_the_size_it_has_after_the_resize() -> None:
    size, generator = (427, 640), np.random.default_rng(0)
    random_crop = RandomCrop(1.0, (400, 500, 600), (384, 600))
    heights, positions = [], []
    for _ in range(300):
        transform = random_crop.draw(size, generator)
        height, width = transform.output_size
        x0, y0 = -transform.matrix[:, 2]
        assert 0 <= x0 <= size[1] - width
        assert 0 <= y0 <= size[0] - height
        heights.append(height)
        positions.append(x0)
        assert transform.apply_image(np.zeros((*size, 3), np.uint8)).shape == (height, width, 3)
    # Resized to 600: 384 to 600 of 600; resized to 400: 384 to 400 of 400. In pixels of the source:
    assert min(heights) >= round(384 / 600 * 427) - 1
    assert min(heights) < 300
    assert max(heights) == 427
    assert np.ptp(positions) > 150


def test_random_crop_has_its_probability() -> None:
    generator = np.random.default_rng(0)
    crops = sum(RandomCrop(0.5, (100,), (20, 50)).draw(SIZE, generator).output_size != SIZE for _ in range(400))
    assert 160 < crops < 240


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    height=st.integers(1, 900),
    width=st.integers(1, 900),
    bounds=st.tuples(st.integers(1, 700), st.integers(1, 700)).map(sorted),
    seed=st.integers(0, 2**32),
)
def test_any_image_can_be_cropped_and_resized(height: int, width: int, bounds: list[int], seed: int) -> None:
    generator = np.random.default_rng(seed)
    cropping = RandomCrop(1.0, (400, 500, 600), (bounds[0], bounds[1])).draw((height, width), generator)
    assert min(cropping.output_size) >= 1
    transform = cropping.then(RandomResize((32,), 64).draw(cropping.output_size, generator))
    assert max(transform.output_size) <= 64
    assert transform.apply_image(np.zeros((height, width, 3), np.uint8)).shape == (*transform.output_size, 3)
    box = np.array([[0.0, 0.0, width, height]])
    low, high = transform.apply_boxes(box)[0][:2], transform.apply_boxes(box)[0][2:]
    assert (low <= 1e-6).all()
    assert (high >= np.array(transform.output_size[::-1]) - 1e-6).all()


def test_random_shift_and_scale_stay_within_their_bounds() -> None:
    generator = np.random.default_rng(0)
    shifts = np.array([RandomShift(1.0, 0.2).draw(SIZE, generator).matrix[:, 2] for _ in range(200)]) / [80, 60]
    assert (np.abs(shifts) <= 0.2).all()
    assert (shifts.min(axis=0) < -0.18).all()
    assert (shifts.max(axis=0) > 0.18).all()
    factors = [RandomScale(1.0, (0.5, 1.5)).draw(SIZE, generator).matrix[0, 0] for _ in range(200)]
    assert 0.5 <= min(factors) < 0.55
    assert 1.45 < max(factors) <= 1.5
    for augmentation in (RandomShift(0.3, 0.2), RandomScale(0.3, (0.5, 0.9))):
        moved = sum((augmentation.draw(SIZE, generator).matrix != np.eye(2, 3)).any() for _ in range(400))
        assert 80 < moved < 160


def test_random_square_stays_within_its_bounds() -> None:
    generator = np.random.default_rng(0)
    drawn = [RandomSquare(64, (0.75, 1.5), 0.2, 30.0).draw(SIZE, generator) for _ in range(400)]
    assert {transform.output_size for transform in drawn} == {(64, 64)}
    linear = np.array([transform.matrix[:, :2] for transform in drawn])
    sides = 64 / np.sqrt(np.linalg.det(linear)) / min(SIZE)
    assert 0.75 <= sides.min() < 0.77
    assert 1.48 < sides.max() <= 1.5
    angles = np.degrees(np.arctan2(linear[:, 1, 0], linear[:, 0, 0]))
    assert -30 <= angles.min() < -28
    assert 28 < angles.max() <= 30
    middles = np.array([transform.inverse().apply_coords(np.array([32, 32])) for transform in drawn])
    shifts = (middles - [40, 30]) / (sides * min(SIZE))[:, None]
    assert (np.abs(shifts) <= 0.2).all()
    assert (shifts.max(axis=0) > 0.19).all()
    assert (shifts.min(axis=0) < -0.19).all()


class Invert:
    def apply(self, image_CHW: Tensor, generator: np.random.Generator) -> Tensor:
        return 255 - image_CHW


def test_augmentations_are_applied_in_their_order() -> None:
    image = np.random.default_rng(0).integers(0, 256, (*SIZE, 3), dtype=np.uint8)
    flip, smaller = RandomFlip(1.0), RandomResize((30,))
    pixels, frame = augment(image, identity(SIZE), [flip, Invert(), smaller, Invert()], np.random.default_rng(0))
    expected = 255 - resize(SIZE, (30, 40)).apply_image(255 - np.ascontiguousarray(image[:, ::-1]))
    assert torch.equal(pixels, torch.from_numpy(expected).permute(2, 0, 1))
    assert pixels.is_contiguous()
    np.testing.assert_allclose(frame.apply_coords(np.array([10, 20])), [35, 10])
    assert (frame.source_size, frame.output_size) == (SIZE, (30, 40))


def test_neighbors_are_resampled_as_one() -> None:
    image = np.random.default_rng(0).integers(0, 256, (*SIZE, 3), dtype=np.uint8)
    there_and_back = [RandomResize((15,)), RandomResize((60,))]
    pixels, _ = augment(image, identity(SIZE), there_and_back, np.random.default_rng(0))
    np.testing.assert_allclose(pixels.permute(1, 2, 0).numpy(), image, atol=1)


def test_every_registered_augmentation_is_of_one_kind() -> None:
    assert len(list(AUGMENTATION_REGISTRY)) >= 7
    for name, augmentation in AUGMENTATION_REGISTRY:
        kinds = (GeometricAugmentation, PixelAugmentation, PersonAugmentation)
        assert sum(issubclass(augmentation, kind) for kind in kinds) == 1, name


def test_random_rescale_stays_within_its_bounds_and_keeps_the_aspect() -> None:
    generator = np.random.default_rng(0)
    sizes = np.array([RandomRescale((0.5, 2.0)).draw((100, 200), generator).output_size for _ in range(200)])
    assert 50 <= sizes[:, 0].min() < 55
    assert 195 < sizes[:, 0].max() <= 200
    assert np.abs(sizes[:, 1] - 2 * sizes[:, 0]).max() <= 1
    assert RandomRescale((1e-3, 1e-3)).draw((100, 200), generator).output_size == (1, 1)
