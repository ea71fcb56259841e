"""A chart that compares rows by dots, one column for each kind of figure, with a scale of its own."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image, ImageDraw

from querypose.visualization.charts import (
    CURVE_COLORS,
    GRID,
    INK,
    PALE_INK,
    SUPERSAMPLING,
    tick_label,
    ticks,
)
from querypose.visualization.poses import Color, load_font

_ROW_HEIGHT = 44
_COLUMN_WIDTH = 380
_TOP, _BOTTOM, _MARGIN = 52, 40, 24
_LEAST_RANGE = 1.0  # a difference smaller than a hundredth of this is not worth a chart

Values = Sequence[float]


def save_dot_chart(names: Sequence[str], columns: Mapping[str, Sequence[Values]], out_png: str | Path) -> None:
    """Draws a row per name: in every column a pale dot per value, and their mean as a strong dot with its number.

    Columns have scales of their own, which need not begin at 0: differences within a column are what is shown.

    Args:
        names: of the rows, from the top.
        columns: by title the values of every row; a row may have none, a column must have one.
        out_png: the picture; its folder is made.
    """
    factor = SUPERSAMPLING
    font = load_font(15 * factor)
    measure = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    left = int(max(measure.textlength(name, font=font) for name in names)) + 2 * _MARGIN * factor
    width = left + len(columns) * (_COLUMN_WIDTH + _MARGIN) * factor
    height = (_TOP + _ROW_HEIGHT * len(names) + _BOTTOM) * factor
    canvas = Image.new("RGB", (width, height), (255, 255, 255))
    draw = ImageDraw.Draw(canvas)
    for index, name in enumerate(names):
        draw.text((left - _MARGIN * factor, _row_y(index, factor)), name, fill=INK, font=font, anchor="rm")
    for index, (title, rows) in enumerate(columns.items()):
        color = CURVE_COLORS[1 + index % (len(CURVE_COLORS) - 1)]
        _draw_column(draw, title, rows, left + index * (_COLUMN_WIDTH + _MARGIN) * factor, color, factor)
    Path(out_png).parent.mkdir(parents=True, exist_ok=True)
    canvas.resize((width // factor, height // factor), Image.Resampling.LANCZOS).save(out_png)


def _row_y(index: int, factor: int) -> float:
    return (_TOP + _ROW_HEIGHT * (index + 0.5)) * factor


def _draw_column(
    draw: ImageDraw.ImageDraw, title: str, rows: Sequence[Values], left: int, color: Color, factor: int
) -> None:
    values = [value for row in rows for value in row]
    middle, half = (min(values) + max(values)) / 2, max(max(values) - min(values), _LEAST_RANGE) * 0.65
    low, high = middle - half, middle + half
    top, bottom = _TOP * factor, (_TOP + _ROW_HEIGHT * len(rows)) * factor
    font, title_font = load_font(13 * factor), load_font(17 * factor)

    def place(value: float) -> float:
        return left + (value - low) / (high - low) * _COLUMN_WIDTH * factor

    draw.text((left, 14 * factor), title, fill=INK, font=title_font, anchor="lt")
    for tick in ticks(low, high):
        draw.line([(place(tick), top), (place(tick), bottom)], fill=GRID, width=factor)
        draw.text((place(tick), bottom + 9 * factor), tick_label(tick), fill=PALE_INK, font=font, anchor="mt")
    draw.line([(left, bottom), (left + _COLUMN_WIDTH * factor, bottom)], fill=PALE_INK, width=factor)
    pale: Color = tuple(round(255 - 0.4 * (255 - channel)) for channel in color)  # type: ignore[assignment]  # three
    for index, row in enumerate(rows):
        y = _row_y(index, factor)
        if len(row) > 1:
            for value in row:
                _draw_dot(draw, place(value), y, 4 * factor, pale)
        if row:
            mean = statistics.fmean(row)
            _draw_dot(draw, place(mean), y, 6 * factor, color)
            draw.text((place(mean), y - 9 * factor), f"{mean:.1f}", fill=INK, font=font, anchor="mb")


def _draw_dot(draw: ImageDraw.ImageDraw, x: float, y: float, radius: float, color: Color) -> None:
    draw.ellipse([x - radius, y - radius, x + radius, y + radius], fill=color)
