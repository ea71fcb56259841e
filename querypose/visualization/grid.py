"""Several pictures in one."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from querypose.visualization.poses import Color, load_font


def image_grid(
    images: Sequence[NDArray[np.uint8]],
    *,
    columns: int | None = None,
    titles: Sequence[str] | None = None,
    cell_size: tuple[int, int] | None = None,
    gap: int = 10,
    background: Color = (250, 250, 252),
) -> NDArray[np.uint8]:
    """Puts pictures into rows of equal cells, each scaled to fit and centered.

    Args:
        images: (H, W, 3) uint8 RGB each, of any sizes; one at least.
        columns: pictures in a row; by default as many as make the whole about 4:3.
        titles: one per picture, written above it.
        cell_size: (width, height) of a cell; by default the mean of the pictures' sizes.
        gap: pixels between and around the cells.
        background: color between the pictures.

    Returns:
        (H, W, 3) uint8.

    Raises:
        ValueError: there is no picture, or the numbers of titles and pictures differ.
    """
    if not images:
        raise ValueError("image_grid needs at least one picture.")
    if titles is not None and len(titles) != len(images):
        raise ValueError(f"image_grid got {len(titles)} titles for {len(images)} pictures.")
    width, height = cell_size or (
        max(1, round(sum(image.shape[1] for image in images) / len(images))),
        max(1, round(sum(image.shape[0] for image in images) / len(images))),
    )
    columns = columns or max(1, min(len(images), round(math.sqrt(len(images) * 4 / 3 * height / width))))
    rows = math.ceil(len(images) / columns)
    font_size = round(min(28, max(12, 0.035 * width)))
    title_height = round(1.7 * font_size) if titles is not None else 0
    canvas = Image.new("RGB", (columns * (width + gap) + gap, rows * (height + title_height + gap) + gap), background)
    draw = ImageDraw.Draw(canvas)
    for index, image in enumerate(images):
        row, column = divmod(index, columns)
        left, top = gap + column * (width + gap), gap + row * (height + title_height + gap)
        if titles is not None:
            place = (left + width / 2, top + title_height / 2)
            title = titles[index].encode(errors="replace").decode()  # a file name may be no text
            draw.text(place, title, fill=(40, 44, 52), font=load_font(font_size), anchor="mm")
        scale = min(width / image.shape[1], height / image.shape[0])
        size = max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale))
        picture = Image.fromarray(image)
        if size != picture.size:
            picture = picture.resize(size, Image.Resampling.LANCZOS)
        canvas.paste(picture, (left + (width - size[0]) // 2, top + title_height + (height - size[1]) // 2))
    return np.asarray(canvas)
