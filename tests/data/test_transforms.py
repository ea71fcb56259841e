from __future__ import annotations

import numpy as np
import pytest

from querypose.data.transforms import (
    GeometricTransform,
    box_to_canvas,
    crop,
    horizontal_flip,
    identity,
    resize,
    rotate,
    scale,
    shift,
    shortest_edge_size,
)
from tests.data.toy_dataset import TOY_SKELETON

SIZE = (60, 80)


def _transforms() -> dict[str, GeometricTransform]:
    return {
        "identity": identity(SIZE),
        "flip": horizontal_flip(SIZE),
        "enlarge": resize(SIZE, (150, 200)),
        "shrink": resize(SIZE, (31, 37)),
        "crop": crop(SIZE, 13, 7, 50, 41),
        "flip, crop, enlarge": horizontal_flip(SIZE).then(crop(SIZE, 13, 7, 50, 41)).then(resize((41, 50), (97, 120))),
        "enlarge, crop to a fraction of a pixel": resize(SIZE, (150, 200)).then(crop((150, 200), 33, 21, 101, 97)),
        "rotation": rotate(SIZE, 25),
        "shift": shift(SIZE, 4.25, -3.5),
        "scale": scale(SIZE, 1.3),
        "box on a canvas": box_to_canvas(SIZE, (15, 10, 65, 50), (96, 72), 1.1),
        "flip, rotation, enlarge": horizontal_flip(SIZE).then(rotate(SIZE, -40)).then(resize(SIZE, (121, 163))),
    }


def _blob(size: tuple[int, int], center: np.ndarray, sigma: float = 2.5) -> np.ndarray:
    """A white spot whose center of mass is at `center`, continuous coordinates."""
    y, x = np.mgrid[: size[0], : size[1]] + 0.5
    spot = 255 * np.exp(-((x - center[0]) ** 2 + (y - center[1]) ** 2) / (2 * sigma**2))
    return np.repeat(spot[:, :, None].round().astype(np.uint8), 3, axis=2)


def _center_of_mass(image: np.ndarray) -> np.ndarray:
    weights = image[:, :, 0].astype(np.float64)
    y, x = np.mgrid[: image.shape[0], : image.shape[1]] + 0.5
    return np.array([(x * weights).sum(), (y * weights).sum()]) / weights.sum()


@pytest.mark.parametrize("name", _transforms())
def test_a_spot_in_the_image_goes_where_its_coordinates_go(name: str) -> None:
    transform = _transforms()[name]
    for center in (np.array([37.3, 30.1]), np.array([44.5, 24.5])):
        image = transform.apply_image(_blob(SIZE, center))
        assert image.shape == (*transform.output_size, 3)
        assert image.transpose(2, 0, 1).flags.c_contiguous
        np.testing.assert_allclose(_center_of_mass(image), transform.apply_coords(center), atol=0.03)


@pytest.mark.parametrize("name", _transforms())
def test_inverse_brings_everything_back(name: str) -> None:
    transform = _transforms()[name]
    back = transform.then(transform.inverse())
    points = np.random.default_rng(0).uniform(-50, 150, size=(7, 5, 2))
    np.testing.assert_allclose(back.apply_coords(points), points, atol=1e-9)
    assert back.source_size == back.output_size == SIZE
    spot = np.array([40.5, 28.5])
    returned = transform.inverse().apply_image(transform.apply_image(_blob(SIZE, spot)))
    np.testing.assert_allclose(_center_of_mass(returned), spot, atol=0.05)


@pytest.mark.parametrize("name", _transforms())
def test_chain_maps_as_its_links_one_by_one(name: str) -> None:
    first = _transforms()[name]
    second = resize(first.output_size, (33, 44))
    points = np.random.default_rng(1).uniform(0, 60, size=(9, 2))
    np.testing.assert_allclose(
        first.then(second).apply_coords(points), second.apply_coords(first.apply_coords(points)), atol=1e-9
    )


def test_links_of_a_chain_must_fit() -> None:
    with pytest.raises(ValueError, match=r"\(10, 10\) cannot follow one to \(60, 80\)"):
        identity(SIZE).then(identity((10, 10)))
    with pytest.raises(ValueError, match=r"takes images of \(60, 80\), not \(10, 10\)"):
        identity(SIZE).apply_image(np.zeros((10, 10, 3), np.uint8))


def test_flip_twice_is_identity() -> None:
    flip = horizontal_flip(SIZE)
    image = np.random.default_rng(0).integers(0, 256, (*SIZE, 3), dtype=np.uint8)
    np.testing.assert_array_equal(flip.apply_image(image), image[:, ::-1])
    np.testing.assert_array_equal(flip.apply_image(flip.apply_image(image)), image)
    np.testing.assert_array_equal(flip.then(flip).apply_image(image), image)
    keypoints = np.array([[[10.5, 20.25, 2], [30.0, 5.0, 1], [79.5, 0.5, 2]]])
    flipped = flip.apply_keypoints(keypoints, TOY_SKELETON.flip_indices)
    np.testing.assert_array_equal(flipped, [[[69.5, 20.25, 2], [0.5, 0.5, 2], [50.0, 5.0, 1]]])
    np.testing.assert_array_equal(flip.apply_keypoints(flipped, TOY_SKELETON.flip_indices), keypoints)
    assert flip.mirrors
    assert not flip.then(flip).mirrors


def test_crop_and_resize_of_the_identity_are_exact() -> None:
    image = np.random.default_rng(0).integers(0, 256, (*SIZE, 3), dtype=np.uint8)
    np.testing.assert_array_equal(crop(SIZE, 13, 7, 50, 41).apply_image(image), image[7:48, 13:63])
    np.testing.assert_array_equal(resize(SIZE, SIZE).apply_image(image), image)


def test_read_only_image_is_taken() -> None:
    image = np.zeros((*SIZE, 3), np.uint8)
    image.flags.writeable = False
    for transform in _transforms().values():
        assert not transform.apply_image(image).any()


def test_shrinking_antialiases() -> None:
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 255
    for transform in (resize((64, 64), (8, 8)), rotate((64, 64), 30).then(resize((64, 64), (8, 8)))):
        inner = transform.apply_image(stripes)[2:-2, 2:-2]
        assert np.abs(inner.astype(int) - 128).max() < 20


def test_general_warp_agrees_with_the_fast_path() -> None:
    image = _blob(SIZE, np.array([33.0, 20.0]), sigma=6)
    turned = rotate(SIZE, 180).apply_image(image)
    assert np.abs(turned.astype(int) - image[::-1, ::-1]).max() <= 1


def test_boxes_follow() -> None:
    boxes = np.array([[10.0, 20.0, 30.0, 50.0]])
    np.testing.assert_allclose(horizontal_flip(SIZE).apply_boxes(boxes), [[50, 20, 70, 50]])
    np.testing.assert_allclose(crop(SIZE, 15, 5, 40, 40).apply_boxes(boxes), [[-5, 15, 15, 45]])
    np.testing.assert_allclose(resize(SIZE, (120, 240)).apply_boxes(boxes), [[30, 40, 90, 100]])
    np.testing.assert_allclose(rotate(SIZE, 90).apply_boxes(np.array([[30, 20, 50, 40]])), [[30, 20, 50, 40]])
    assert identity(SIZE).apply_boxes(np.zeros((0, 4))).shape == (0, 4)


def test_a_turned_box_is_around_its_ellipse_and_keypoints() -> None:
    center_and_reach = np.array([[35.0, 30.0, 8.0, 4.0]])
    boxes = np.concatenate([center_and_reach[:, :2] - [8, 4], center_and_reach[:, :2] + [8, 4]], axis=1)
    turned = rotate(SIZE, 90).apply_boxes(boxes)
    middle = rotate(SIZE, 90).apply_coords(center_and_reach[0, :2])
    np.testing.assert_allclose(turned[0], np.hstack([middle - np.array([4, 8]), middle + np.array([4, 8])]))
    # Turned by 45 degrees both axes of the ellipse count alike; the box around the corners would reach 12 / sqrt(2).
    slanted = rotate(SIZE, 45)
    middle, reach = slanted.apply_coords(center_and_reach[0, :2]), np.sqrt((8**2 + 4**2) / 2)
    np.testing.assert_allclose(slanted.apply_boxes(boxes)[0], [*(middle - reach), *(middle + reach)])
    # A labeled keypoint in the corner of the box stays inside; one outside the box or not labeled does not count.
    keypoints = np.array([[[43.0, 26.0, 2.0], [90.0, 30.0, 2.0], [27.0, 34.0, 0.0]]])
    x, y = slanted.apply_coords(keypoints[0, 0, :2])
    expected = [*(middle - reach), max(x, middle[0] + reach), max(y, middle[1] + reach)]
    np.testing.assert_allclose(slanted.apply_boxes(boxes, keypoints)[0], expected)
    assert x > middle[0] + reach + 1
    np.testing.assert_array_equal(identity(SIZE).apply_boxes(boxes, keypoints), boxes)


def test_rotation_is_clockwise_about_the_center() -> None:
    np.testing.assert_allclose(rotate(SIZE, 90).apply_coords(np.array([[40, 30], [50, 30]])), [[40, 30], [40, 40]])


def test_keypoints_outside_or_not_labeled_become_zero() -> None:
    keypoints = np.array([[[14.9, 10, 2], [15.0, 10, 1], [20, 10, 0]], [[55.0, 45.0, 2], [55.1, 45, 2], [20, 45.1, 2]]])
    mapped = crop(SIZE, 15, 5, 40, 40).apply_keypoints(keypoints, TOY_SKELETON.flip_indices)
    np.testing.assert_allclose(mapped, [[[0, 0, 0], [0, 5, 1], [0, 0, 0]], [[40, 40, 2], [0, 0, 0], [0, 0, 0]]])
    assert identity(SIZE).apply_keypoints(np.zeros((0, 3, 3)), TOY_SKELETON.flip_indices).shape == (0, 3, 3)


@pytest.mark.parametrize(
    ("size", "short_side", "max_size", "expected"),
    [
        ((480, 640), 800, 1333, (800, 1067)),
        ((640, 480), 800, 1333, (1067, 800)),
        ((427, 640), 800, 1333, (800, 1199)),
        ((300, 900), 800, 1333, (444, 1333)),
        ((500, 500), 480, None, (480, 480)),
        ((1, 5000), 800, 1333, (1, 1333)),
        ((600, 1000), 600, 1000, (600, 1000)),
    ],
)
def test_shortest_edge(size: tuple[int, int], short_side: int, max_size: int | None, expected: tuple[int, int]) -> None:
    assert shortest_edge_size(size, short_side, max_size) == expected


def test_shift_and_scale_keep_the_size() -> None:
    np.testing.assert_allclose(shift(SIZE, 3, -2).apply_coords(np.array([10, 20])), [13, 18])
    np.testing.assert_allclose(scale(SIZE, 2).apply_coords(np.array([[40, 30], [41, 29]])), [[40, 30], [42, 28]])


def test_a_box_fills_the_canvas_but_for_its_padding() -> None:
    low = box_to_canvas(SIZE, (10, 20, 50, 30), (100, 80), 1.25)  # wider than the canvas: its width counts
    np.testing.assert_allclose(low.apply_boxes(np.array([[10, 20, 50, 30]])), [[8, 42, 72, 58]])
    high = box_to_canvas(SIZE, (10, 20, 20, 60), (100, 80), 1.0)
    np.testing.assert_allclose(high.apply_boxes(np.array([[10, 20, 20, 60]])), [[27.5, 0, 52.5, 100]])
    assert high.output_size == (100, 80)
