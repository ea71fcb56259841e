"""Which patches of a crop a coarse-to-fine model saw finely (SHaRPose, Figure 5)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from querypose.visualization.grid import image_grid

GRID_COLOR, FINE_COLOR = (255, 255, 255), (255, 200, 40)


def draw_patches(
    crop: NDArray[np.uint8], relevance: NDArray[np.floating], is_refined: NDArray[np.bool_], *, ratio: int = 2
) -> NDArray[np.uint8]:
    """A row of three pictures: the coarse stage's patches, how relevant each is, and what the fine stage sees.

    Args:
        crop: (H, W, 3) uint8 RGB.
        relevance: of the coarse patches, (rows, columns).
        is_refined: which of them are seen finely; none where the coarse stage was sure.
        ratio: fine patches along a side of a coarse one.

    Returns:
        (H', W', 3) uint8.
    """
    rows, columns = relevance.shape
    scale = max(1, round(384 / crop.shape[0]))
    size = (crop.shape[1] * scale, crop.shape[0] * scale)
    sharp = Image.fromarray(crop).resize(size, Image.Resampling.BICUBIC)
    # As the coarse stage has it: at a fraction of the resolution.
    coarse = Image.fromarray(crop).reduce(ratio).resize(size, Image.Resampling.BILINEAR)

    first = coarse.copy()
    for place in np.ndindex(rows, columns):
        _outline(first, place, (rows, columns), GRID_COLOR)

    span = float(np.ptp(relevance))
    heat = (relevance - relevance.min()) / span if span > 0 else np.zeros_like(relevance)
    mask = Image.fromarray(np.uint8(220 * heat)).resize(size, Image.Resampling.BICUBIC)
    second = Image.composite(Image.new("RGB", size, (255, 60, 30)), coarse.point(lambda value: value // 2), mask)

    third = coarse.point(lambda value: 255 - (255 - value) // 2)
    for row, column in np.argwhere(is_refined).tolist():
        left, top, right, bottom = _bounds(size, (row, column), (rows, columns))
        third.paste(sharp.crop((left, top, right, bottom)), (left, top))
        for fine in np.ndindex(ratio, ratio):
            place = (row * ratio + fine[0], column * ratio + fine[1])
            _outline(third, place, (rows * ratio, columns * ratio), FINE_COLOR)
    share = 100 * float(np.mean(is_refined))
    titles = ["coarse stage", "relevance", f"fine stage: {share:.0f} %" if is_refined.any() else "not refined"]
    return image_grid([np.asarray(part) for part in (first, second, third)], columns=3, titles=titles)


def _bounds(size: tuple[int, int], place: tuple[int, ...], grid: tuple[int, int]) -> tuple[int, int, int, int]:
    (width, height), (row, column), (rows, columns) = size, place, grid
    return (
        round(column * width / columns), round(row * height / rows),
        round((column + 1) * width / columns), round((row + 1) * height / rows),
    )  # fmt: skip


def _outline(image: Image.Image, place: tuple[int, ...], grid: tuple[int, int], color: tuple[int, int, int]) -> None:
    ImageDraw.Draw(image).rectangle(_bounds(image.size, place, grid), outline=color)
