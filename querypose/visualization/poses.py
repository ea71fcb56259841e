"""Draws poses into photos.

Coordinates are those of the models: continuous, the center of the first pixel at 0.5. Every person is drawn on a small
layer of its own at a multiple of the resolution, which makes edges smooth, and put onto the photo, the best score last.
"""

from __future__ import annotations

import colorsys
import math
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageDraw, ImageFont

from querypose.skeleton import Skeleton

Color = tuple[int, int, int]

# Of the image's mean side: bounds of a line's width; and of a person's extent: the width in between.
_WIDTH_BOUNDS = (0.0033, 0.0095)
_WIDTH_OF_EXTENT = 0.025
_OPACITY_OF_HIDDEN = 0.55
_OPACITY_OF_UNSURE = 0.25
# Predicted visibilities: at least this is drawn at all, and at least this as visible.
_MIN_VISIBILITY = 0.05
_VISIBLE_FROM = 0.5
_HALO: Color = (16, 18, 24)
# Hues of the persons; each is far from the ones before it.
_HUES = (0.55, 0.09, 0.37, 0.88, 0.15, 0.70, 0.99, 0.47, 0.28, 0.78)


class _Pen(NamedTuple):
    """Sizes for one person, in pixels of the image."""

    line: float
    joint: float
    halo: float
    supersampling: int


def person_color(index: int) -> Color:
    """The color of the index-th person; neighboring indices have hues far apart."""
    rounds, position = divmod(index, len(_HUES))
    saturation = (0.85, 0.60)[rounds % 2]
    red, green, blue = colorsys.hsv_to_rgb((_HUES[position] + 0.035 * rounds) % 1.0, saturation, 1.0)
    return round(255 * red), round(255 * green), round(255 * blue)


def drawn_visibilities(predicted_NK: ArrayLike) -> NDArray[np.float64]:
    """Predicted visibilities (N, K) in [0, 1] as `draw_poses` takes them: 2 from 0.5 on, 1 below, 0 below 0.05."""
    predicted = np.asarray(predicted_NK, dtype=np.float64)
    return np.select([predicted >= _VISIBLE_FROM, predicted >= _MIN_VISIBILITY], [2.0, 1.0], default=0.0)


def draw_poses(
    image: NDArray[np.uint8],
    keypoints_NKD: ArrayLike,
    skeleton: Skeleton,
    *,
    keypoint_scores: ArrayLike | None = None,
    scores: ArrayLike | None = None,
    boxes: ArrayLike | None = None,
    visibilities: ArrayLike | None = None,
    keypoint_threshold: float = 0.0,
    colors: Sequence[Color] | None = None,
    line_scale: float = 1.0,
) -> NDArray[np.uint8]:
    """Draws N poses, each in a color of its own.

    Args:
        image: (H, W, 3) RGB, 0..255; it is not changed.
        keypoints_NKD: (N, K, 2), in continuous coordinates of the image; a third column is not read. Keypoints that
            are not finite are left out.
        skeleton: names K and the edges.
        keypoint_scores: (N, K) in [0, 1]; the less sure a keypoint is, the paler it is.
        scores: (N) in [0, 1], written at each person; they also decide who is in front.
        boxes: (N, 4) x1, y1, x2, y2, drawn thinly.
        visibilities: (N, K) of COCO: 0 is left out, 1 (hidden) is drawn hollow and paler, 2 in full.
        keypoint_threshold: keypoints of a lower score are left out.
        colors: one per person; by default `person_color`.
        line_scale: factor of all widths; by default they follow the sizes of image and person.

    Returns:
        (H, W, 3) uint8.

    Raises:
        ValueError: an argument has a shape that does not fit the others.
    """
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ValueError(f"draw_poses needs a uint8 image (H, W, 3), not {image.dtype} {image.shape}.")
    keypoints = _array(keypoints_NKD, "keypoints_NKD", (None, skeleton.num_keypoints, None))
    count = len(keypoints)
    per_keypoint = (count, skeleton.num_keypoints)
    certainty_NK = (
        np.ones(per_keypoint) if keypoint_scores is None else _array(keypoint_scores, "keypoint_scores", per_keypoint)
    )
    visibility_NK = (
        np.full(per_keypoint, 2.0) if visibilities is None else _array(visibilities, "visibilities", per_keypoint)
    )
    scores_N = None if scores is None else _array(scores, "scores", (count,))
    boxes_N4 = None if boxes is None else _array(boxes, "boxes", (count, 4))
    if colors is not None and len(colors) < count:
        raise ValueError(f"draw_poses got {len(colors)} colors for {count} persons.")

    canvas = Image.fromarray(image).convert("RGBA")
    drawn_NK = (visibility_NK > 0) & (certainty_NK >= keypoint_threshold) & np.isfinite(keypoints[:, :, :2]).all(axis=2)
    opacity_NK = _OPACITY_OF_UNSURE + (1 - _OPACITY_OF_UNSURE) * np.clip(np.nan_to_num(certainty_NK), 0, 1)
    opacity_NK = np.where(visibility_NK == 1, _OPACITY_OF_HIDDEN * opacity_NK, opacity_NK)
    order = range(count) if scores_N is None else np.argsort(scores_N, kind="stable").tolist()
    labels: list[tuple[int, NDArray[np.float64], Color]] = []
    for person in order:
        color = person_color(person) if colors is None else colors[person]
        box = None if boxes_N4 is None else boxes_N4[person]
        joints_J = np.flatnonzero(drawn_NK[person])
        extent = keypoints[person, joints_J, :2] if box is None or joints_J.size else box.reshape(2, 2)
        if not len(extent):
            continue
        pen = _pen(extent, canvas.size, line_scale)
        if box is not None and np.isfinite(box).all():
            _draw_box(canvas, box, color, pen)
        if joints_J.size:
            points_KD = np.clip(np.nan_to_num(keypoints[person, :, :2]), -4 * max(canvas.size), 5 * max(canvas.size))
            _draw_person(
                canvas,
                points_KD,
                drawn_NK[person],
                opacity_NK[person],
                visibility_NK[person] == 1,
                skeleton,
                color,
                pen,
            )
        if scores_N is not None:
            # At the box's corner, or above the highest keypoint.
            anchor = extent[extent[:, 1].argmin()] - (0, 2 * pen.joint) if box is None else box[:2]
            labels.append((person, anchor, color))
    taken: list[tuple[int, int, int, int]] = []
    for person, anchor, color in reversed(labels):
        assert scores_N is not None
        _draw_label(canvas, f"{scores_N[person]:.2f}", anchor, color, line_scale, taken, centered=boxes_N4 is None)
    return np.asarray(canvas.convert("RGB"))


def _array(values: ArrayLike, name: str, shape: tuple[int | None, ...]) -> NDArray[np.float64]:
    array = np.asarray(values, dtype=np.float64)
    if array.size == 0 and shape[0] in (None, 0):
        array = array.reshape(0, *(2 if side is None else side for side in shape[1:]))
    if array.ndim != len(shape) or any(
        side not in (None, given) for side, given in zip(shape, array.shape, strict=True)
    ):
        wanted = ", ".join("any" if side is None else str(side) for side in shape)
        raise ValueError(f"draw_poses: {name} has shape {array.shape}; needed: ({wanted}).")
    return array


def _pen(extent: NDArray[np.float64], size: tuple[int, int], line_scale: float) -> _Pen:
    """Widths that suit both a portrait and a person far away in a crowd."""
    mean_side = sum(size) / 2
    low, high = (bound * mean_side for bound in _WIDTH_BOUNDS)
    sides = np.ptp(extent, axis=0) + 1
    side = max(float(np.sqrt(np.prod(sides))), 0.5 * float(sides.max()))  # the latter for a person seen from the side
    line = max(1.3, float(np.clip(_WIDTH_OF_EXTENT * side, low, high))) * line_scale
    return _Pen(
        line=line,
        joint=0.95 * line + 0.4,
        halo=0.22 * line + 0.5,
        supersampling=4 if line < 4 else 3 if line < 8 else 2,
    )


def _draw_person(
    canvas: Image.Image,
    points_KD: NDArray[np.float64],
    drawn_K: NDArray[np.bool_],
    opacity_K: NDArray[np.float64],
    hidden_K: NDArray[np.bool_],
    skeleton: Skeleton,
    color: Color,
    pen: _Pen,
) -> None:
    """Draws one skeleton: its outline first, then limbs and joints, the palest first."""
    margin = pen.joint + pen.halo + 2
    region = _region(points_KD[drawn_K], margin, canvas.size)
    if region is None:
        return
    left, top, right, bottom = region
    factor = pen.supersampling
    layer = Image.new("RGBA", ((right - left) * factor, (bottom - top) * factor))
    draw = ImageDraw.Draw(layer)
    places = [(float(x), float(y)) for x, y in (points_KD - (left, top)) * factor]
    edges = [(a, b) for a, b in skeleton.edges if drawn_K[a] and drawn_K[b]]
    edges.sort(key=lambda edge: min(opacity_K[edge[0]], opacity_K[edge[1]]))
    joints = sorted(np.flatnonzero(drawn_K).tolist(), key=lambda joint: opacity_K[joint])
    line, joint_radius, halo = pen.line * factor, pen.joint * factor, pen.halo * factor
    for a, b in edges:
        alpha = round(150 * min(opacity_K[a], opacity_K[b]))
        _draw_limb(draw, places[a], places[b], line + 2 * halo, (*_HALO, alpha))
    for joint in joints:
        _draw_disc(draw, places[joint], joint_radius + halo, (*_HALO, round(190 * opacity_K[joint])))
    for a, b in edges:
        alpha = round(235 * min(opacity_K[a], opacity_K[b]))
        _draw_limb(draw, places[a], places[b], line, (*color, alpha))
    light = tuple(round(0.25 * channel + 0.75 * 255) for channel in color)
    for joint in joints:
        alpha = round(255 * opacity_K[joint])
        _draw_disc(draw, places[joint], joint_radius, (*color, alpha))
        inner = _HALO if hidden_K[joint] else light
        _draw_disc(draw, places[joint], 0.52 * joint_radius, (*inner, alpha))
    layer = layer.resize((right - left, bottom - top), Image.Resampling.BOX)
    canvas.alpha_composite(layer, (left, top))


def _draw_limb(
    draw: ImageDraw.ImageDraw, start: tuple[float, float], end: tuple[float, float], width: float, fill: tuple[int, ...]
) -> None:
    # Pillow counts pixels and cuts fractions off: the pixel that holds x is floor(x).
    pixels = [(math.floor(x), math.floor(y)) for x, y in (start, end)]
    draw.line(pixels, fill=fill, width=max(1, round(width)))
    for place in (start, end):
        _draw_disc(draw, place, width / 2, fill)


def _draw_disc(draw: ImageDraw.ImageDraw, center: tuple[float, float], radius: float, fill: tuple[int, ...]) -> None:
    diameter = max(1, round(2 * radius))
    x, y = round(center[0] - diameter / 2), round(center[1] - diameter / 2)
    draw.ellipse([x, y, x + diameter - 1, y + diameter - 1], fill=fill)


def _draw_box(canvas: Image.Image, box: NDArray[np.float64], color: Color, pen: _Pen) -> None:
    """A thin frame with rounded corners; none for a box of negative size."""
    corners = np.clip(box.reshape(2, 2), -4 * max(canvas.size), 5 * max(canvas.size))
    region = _region(corners, pen.line, canvas.size)
    if region is None:
        return
    left, top, right, bottom = region
    layer = Image.new("RGBA", (2 * (right - left), 2 * (bottom - top)))
    (x1, y1), (x2, y2) = (corners - (left, top)) * 2 - 0.5
    if x2 < x1 or y2 < y1:
        return
    width = max(2, round(0.9 * pen.line))
    ImageDraw.Draw(layer).rounded_rectangle([x1, y1, x2, y2], radius=3 * width, outline=(*color, 190), width=width)
    canvas.alpha_composite(layer.resize((right - left, bottom - top), Image.Resampling.BOX), (left, top))


def _draw_label(
    canvas: Image.Image,
    text: str,
    anchor: NDArray[np.float64],
    color: Color,
    line_scale: float,
    taken: list[tuple[int, int, int, int]],
    *,
    centered: bool,
) -> None:
    """A chip with the score on top of `anchor` (x, y), which is its middle or its left end, inside the image.

    It moves up, or down where the image ends, past the chips in `taken`, to which it adds itself.
    """
    size = float(np.clip(0.022 * sum(canvas.size) / 2, 9, 48)) * line_scale
    font = load_font(max(1, round(size)))
    left, top, right, bottom = font.getbbox(text)
    padding = max(1, round(0.3 * size))
    width, height = round(right - left) + 2 * padding, round(bottom - top) + 2 * padding
    if width > canvas.width or height > canvas.height:
        return
    x = int(np.clip(np.nan_to_num(anchor[0]) - (width / 2 if centered else 0), 0, canvas.width - width))
    lowest = int(np.clip(np.nan_to_num(anchor[1]) - height, 0, canvas.height - height))
    candidates = (lowest + step * (height + 1) for step in (0, -1, 1, -2, 2, -3, 3))
    free = (
        y
        for y in candidates
        if 0 <= y <= canvas.height - height
        and not any(x < x2 and x + width > x1 and y < y2 and y + height > y1 for x1, y1, x2, y2 in taken)
    )
    y = next(free, lowest)
    taken.append((x, y, x + width, y + height))
    factor = 2
    chip = Image.new("RGBA", (factor * width, factor * height))
    ImageDraw.Draw(chip).rounded_rectangle(
        [0, 0, factor * width - 1, factor * height - 1], radius=factor * padding, fill=(*color, 225)
    )
    chip = chip.resize((width, height), Image.Resampling.BOX)
    ImageDraw.Draw(chip).text((padding - left, padding - top), text, fill=(*_HALO, 255), font=font)
    canvas.alpha_composite(chip, (x, y))


def _region(points: NDArray[np.float64], margin: float, size: tuple[int, int]) -> tuple[int, int, int, int] | None:
    """The part of the image that a drawing around `points` can touch, in whole pixels; None if there is none."""
    (left, top), (right, bottom) = points.min(axis=0) - margin, points.max(axis=0) + margin
    region = max(0, int(left)), max(0, int(top)), min(size[0], int(right) + 1), min(size[1], int(bottom) + 1)
    return region if region[0] < region[2] and region[1] < region[3] else None


@lru_cache(maxsize=32)
def load_font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size=size)
