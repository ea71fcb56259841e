"""Draws what led a model to its poses: the layers of `querypose.modeling.explanation`, of any model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from querypose.modeling.explanation import (
    BoxLayer,
    Layer,
    MapLayer,
    PatchLayer,
    PointLayer,
    PoseLayer,
    ValueLayer,
)
from querypose.skeleton import Skeleton
from querypose.visualization.grid import image_grid
from querypose.visualization.patches import draw_patches
from querypose.visualization.poses import draw_poses, load_font, person_color

Picture = NDArray[np.uint8]
_CELL = 260
_MARGIN = 0.2
_SHOWN_BOXES = 20
_HEAT, _PAPER, _INK = (255, 60, 30), (250, 250, 252), (40, 44, 52)


class _View(NamedTuple):
    """A part of the input, enlarged: its picture, its first corner and the enlargement."""

    picture: Picture
    corner: tuple[float, float]
    scale: float

    def place(self, xy: NDArray[np.floating]) -> NDArray[np.float64]:
        """Positions (…, 2) of the input in the picture."""
        return np.asarray((np.asarray(xy, dtype=np.float64) - self.corner) * self.scale)


def draw_explanation(image: Picture, layers: Sequence[Layer], skeleton: Skeleton) -> dict[str, Picture]:
    """One picture of the image's own layers, `image`, and one of each pose, `pose_1` and so on: a row a stage.

    Args:
        image: the model's input, (H, W, 3) RGB.
        layers: of it.
        skeleton: of the poses.

    Returns:
        the pictures by name; `image` is left out where no layer belongs to the image.
    """
    pictures = {}
    for pose in sorted({-1 if layer.pose is None else layer.pose for layer in layers}):
        chosen = [layer for layer in layers if (-1 if layer.pose is None else layer.pose) == pose]
        view = _view(image, chosen if pose >= 0 else ())
        rows = []
        for stage in sorted({layer.stage for layer in chosen}):
            of_stage = [layer for layer in chosen if layer.stage == stage]
            titles = [f"stage {stage}: {layer.name}" if stage else layer.name for layer in of_stage]
            rows.append(list(zip(titles, (_draw(view, layer, skeleton) for layer in of_stage), strict=True)))
        pictures["image" if pose < 0 else f"pose_{pose + 1}"] = _table(rows)
    return pictures


def draw_stages(image: Picture, layers: Sequence[Layer], skeleton: Skeleton) -> list[Picture]:
    """The poses, and the points that led to them, as they were after each stage: the frames of an animation."""
    shown = [layer for layer in layers if isinstance(layer, PoseLayer | PointLayer)]
    whole = _view(image, ())
    frames = []
    for stage in sorted({layer.stage for layer in shown}):
        picture = whole.picture
        for layer in (layer for layer in shown if layer.stage == stage):
            picture = _draw(whole._replace(picture=picture), layer, skeleton)
        canvas = Image.fromarray(picture)
        _label(canvas, f"stage {stage}")
        frames.append(np.asarray(canvas))
    return frames


def _view(image: Picture, layers: Sequence[Layer]) -> _View:
    """The part of the image about the poses and boxes of some layers; the whole image without any."""
    points = [layer.keypoints_KD for layer in layers if isinstance(layer, PoseLayer)]
    points += [np.reshape(layer.box, (2, 2)) for layer in layers if isinstance(layer, PoseLayer) and layer.box]
    height, width = image.shape[:2]
    low, high = np.zeros(2), np.array([width, height], dtype=float)
    if points:
        all_points = np.concatenate(points)
        margin = _MARGIN * max(float(np.ptp(all_points, axis=0).max()), 16.0)
        low = np.clip(np.floor(all_points.min(axis=0) - margin), 0, high - 1)
        high = np.clip(np.ceil(all_points.max(axis=0) + margin), low + 1, high)
    scale = _CELL / float((high - low).max()) if points else max(1.0, 2 * _CELL / max(width, height))
    size = [max(1, round(side)) for side in ((high - low) * scale).tolist()]
    left, top, right, bottom = (round(value) for value in (*low.tolist(), *high.tolist()))
    part = Image.fromarray(image).crop((left, top, right, bottom)).resize((size[0], size[1]), Image.Resampling.BICUBIC)
    return _View(np.asarray(part), (float(left), float(top)), scale)


def _draw(view: _View, layer: Layer, skeleton: Skeleton) -> Picture:
    color = person_color(layer.pose or 0)
    match layer:
        case MapLayer():
            return _draw_map(view, layer)
        case PoseLayer():
            boxes = None if layer.box is None else view.place(np.reshape(layer.box, (2, 2))).reshape(1, 4)
            xy_1KD = view.place(layer.keypoints_KD)[None]
            return draw_poses(view.picture, xy_1KD, skeleton, scores=[layer.score], boxes=boxes, colors=[color])
        case PointLayer():
            return _draw_points(view, layer, color)
        case BoxLayer():
            return _draw_boxes(view, layer)
        case PatchLayer():
            return draw_patches(view.picture, layer.relevance_HW, layer.is_refined_HW, ratio=layer.ratio)
        case ValueLayer():
            return _draw_values(layer, color)
    raise TypeError(f"{type(layer).__name__} is no kind of layer that can be drawn.")


def _draw_map(view: _View, layer: MapLayer) -> Picture:
    """The picture, dark and gray, with heat where the weights are."""
    picture = Image.fromarray(view.picture)
    dark = picture.convert("L").point(lambda value: value * 5 // 8).convert("RGB")
    mask = Image.new("L", picture.size)
    (left, top), (right, bottom) = np.round(view.place(np.reshape(layer.box, (2, 2)))).astype(int).tolist()
    # What is the same everywhere shows nothing.
    weights_HW = (layer.values_HW - layer.values_HW.min()) / max(float(layer.values_HW.max()), 1e-12)
    has_extent = right > left and bottom > top
    if has_extent:
        # Only the part that is seen is enlarged: a box may be far larger than the picture.
        seen = max(left, 0), max(top, 0), min(right, picture.width), min(bottom, picture.height)
        if seen[0] < seen[2] and seen[1] < seen[3]:
            rows, columns = weights_HW.shape
            per_x, per_y = columns / (right - left), rows / (bottom - top)
            part = (
                (seen[0] - left) * per_x, (seen[1] - top) * per_y, (seen[2] - left) * per_x, (seen[3] - top) * per_y,
            )  # fmt: skip
            size = (seen[2] - seen[0], seen[3] - seen[1])
            heat = Image.fromarray(np.uint8(np.round(235 * np.clip(weights_HW, 0, 1))))
            mask.paste(heat.resize(size, Image.Resampling.BILINEAR, box=part), seen[:2])
    drawn = Image.composite(Image.new("RGB", picture.size, _HEAT), dark, mask)
    if has_extent:
        ImageDraw.Draw(drawn).rectangle((left, top, right - 1, bottom - 1), outline=(255, 255, 255))
    return np.asarray(drawn)


def _draw_points(view: _View, layer: PointLayer, color: tuple[int, int, int]) -> Picture:
    """A disc at every point, and a line from where it was reached."""
    picture = Image.fromarray(view.picture)
    draw = ImageDraw.Draw(picture, "RGBA")
    points = view.place(layer.points_ND).tolist()
    if layer.from_ND is not None:
        for start, end in zip(view.place(layer.from_ND).tolist(), points, strict=True):
            draw.line([*start, *end], fill=(*color, 200), width=1)
    radius = 2 if len(points) > 40 else 3
    for x, y in points:
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=(*color, 255), outline=(16, 18, 24, 220))
    return np.asarray(picture)


def _draw_boxes(view: _View, layer: BoxLayer) -> Picture:
    """The boxes with the best scores, the surer the stronger."""
    picture = Image.fromarray(view.picture)
    draw = ImageDraw.Draw(picture, "RGBA")
    best = np.argsort(-layer.scores_N, kind="stable")[:_SHOWN_BOXES]
    for rank, index in reversed(list(enumerate(best.tolist()))):
        (left, top), (right, bottom) = view.place(layer.boxes_N4[index].reshape(2, 2)).tolist()
        if right > left and bottom > top:
            opacity = round(60 + 195 * float(np.clip(layer.scores_N[index], 0, 1)))
            draw.rectangle((left, top, right, bottom), outline=(*person_color(rank), opacity), width=2)
    return np.asarray(picture)


def _draw_values(layer: ValueLayer, color: tuple[int, int, int]) -> Picture:
    """A line of text a value, on a bar as long as the value is high."""
    height = 22
    picture = Image.new("RGB", (_CELL, height * len(layer.values) + 8), _PAPER)
    draw = ImageDraw.Draw(picture)
    pale = tuple(255 - (255 - channel) * 2 // 5 for channel in color)
    for index, (name, value) in enumerate(layer.values.items()):
        top = 4 + height * index
        length = round((_CELL - 8) * float(np.clip(value, 0, 1)))
        draw.rectangle((4, top + 2, 4 + length, top + height - 3), fill=pale)
        draw.text((8, top + height / 2), f"{value:.2f}  {name}", fill=_INK, font=load_font(12), anchor="lm")
    return np.asarray(picture)


def _table(rows: Sequence[Sequence[tuple[str, Picture]]]) -> Picture:
    """Rows of titled pictures; shorter ones end in white."""
    columns = max(map(len, rows))
    blank = np.full((1, 1, 3), _PAPER, dtype=np.uint8)
    cells = [cell for row in rows for cell in [*row, *[("", blank)] * (columns - len(row))]]
    shapes = [picture.shape for row in rows for _, picture in row]
    size = max(shape[1] for shape in shapes), max(shape[0] for shape in shapes)
    titles = [title if len(title) <= 44 else f"{title[:43]}…" for title, _ in cells]
    return image_grid([picture for _, picture in cells], columns=columns, titles=titles, cell_size=size)


def _label(canvas: Image.Image, text: str) -> None:
    draw, font = ImageDraw.Draw(canvas), load_font(16)
    left, top, right, bottom = draw.textbbox((8, 8), text, font=font)
    draw.rectangle((left - 4, top - 4, right + 4, bottom + 4), fill=(16, 18, 24))
    draw.text((8, 8), text, fill=(255, 255, 255), font=font)
