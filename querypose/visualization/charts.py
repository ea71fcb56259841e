"""Charts of lines, drawn with Pillow alone, and what all charts share: colours and round ticks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from querypose.visualization.poses import Color, load_font

Curve = list[tuple[float, float]]

_PANEL = (760, 480)
_MARGINS = (74, 54, 22, 58)  # left, top, right, bottom of a panel
SUPERSAMPLING = 2
INK: Color = (40, 44, 52)
PALE_INK: Color = (120, 126, 138)
GRID: Color = (228, 231, 236)
CURVE_COLORS: tuple[Color, ...] = (
    (33, 37, 45), (31, 119, 210), (232, 106, 23), (44, 160, 77), (205, 44, 84), (131, 83, 196), (20, 160, 170),
    (150, 110, 60),
)  # fmt: skip


class Panel(NamedTuple):
    """A chart of lines: title, points (x, y) by name, the range of y, and whether a running mean is drawn."""

    title: str
    curves: Mapping[str, Curve]
    limits: tuple[float, float]
    smooth: bool


def save_panels(panels: Sequence[Panel], out_png: str | Path) -> None:
    """Draws panels side by side, over the iterations from 0 to the last.

    Args:
        panels: each with at least one curve.
        out_png: the picture; its folder is made.
    """
    last = max(points[-1][0] for panel in panels for points in panel.curves.values())
    first = min(0.0, *(points[0][0] for panel in panels for points in panel.curves.values()))
    factor = SUPERSAMPLING
    canvas = Image.new("RGB", (factor * _PANEL[0] * len(panels), factor * _PANEL[1]), (255, 255, 255))
    for index, panel in enumerate(panels):
        _draw_panel(ImageDraw.Draw(canvas), panel, factor * _PANEL[0] * index, (first, max(last, first + 1)), factor)
    Path(out_png).parent.mkdir(parents=True, exist_ok=True)
    canvas.resize((_PANEL[0] * len(panels), _PANEL[1]), Image.Resampling.LANCZOS).save(out_png)


def ticks(low: float, high: float, count: int = 6) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten apart) within [low, high]."""
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(multiple * power for multiple in (1, 2, 5, 10) if multiple * power >= raw * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    return [index * step for index in range(first, math.floor(high / step + 1e-9) + 1)]


def tick_label(value: float) -> str:
    """The number, short."""
    if abs(value) >= 10000:
        return f"{value / 1000:g}k"
    return f"{value:.4g}" if value else "0"


def _smoothed(points: Curve) -> Curve:
    """A running mean over about a thirtieth of the curve."""
    values = np.array([value for _, value in points])
    half = len(values) // 60
    return [
        (iteration, float(values[max(0, index - half) : index + half + 1].mean()))
        for index, (iteration, _) in enumerate(points)
    ]


def _draw_panel(
    draw: ImageDraw.ImageDraw, panel: Panel, offset: int, x_limits: tuple[float, float], factor: int
) -> None:
    left, top, right, bottom = (
        offset + factor * _MARGINS[0], factor * _MARGINS[1],
        offset + factor * (_PANEL[0] - _MARGINS[2]), factor * (_PANEL[1] - _MARGINS[3]),
    )  # fmt: skip
    (x_low, x_high), (y_low, y_high) = x_limits, panel.limits
    font, title_font = load_font(13 * factor), load_font(17 * factor)

    def place(x: float, y: float) -> tuple[float, float]:
        y = min(max(y, y_low), y_high)
        return left + (x - x_low) / (x_high - x_low) * (right - left), bottom - (y - y_low) / (y_high - y_low) * (
            bottom - top
        )

    for tick in ticks(y_low, y_high):
        _, y_pixel = place(x_low, tick)
        draw.line([(left, y_pixel), (right, y_pixel)], fill=GRID, width=factor)
        draw.text((left - 8 * factor, y_pixel), tick_label(tick), fill=PALE_INK, font=font, anchor="rm")
    for tick in ticks(x_low, x_high):
        x_pixel, _ = place(tick, y_low)
        draw.line([(x_pixel, bottom), (x_pixel, bottom + 5 * factor)], fill=PALE_INK, width=factor)
        draw.text((x_pixel, bottom + 9 * factor), tick_label(tick), fill=PALE_INK, font=font, anchor="mt")
    draw.line([(left, bottom), (right, bottom)], fill=PALE_INK, width=factor)
    draw.text((left, 14 * factor), panel.title, fill=INK, font=title_font, anchor="lt")
    draw.text(((left + right) / 2, bottom + 32 * factor), "iteration", fill=PALE_INK, font=font, anchor="mt")

    for index, points in reversed(list(enumerate(panel.curves.values()))):
        color = CURVE_COLORS[index % len(CURVE_COLORS)]
        if panel.smooth:
            pale = tuple(round(255 - 0.28 * (255 - channel)) for channel in color)
            draw.line([place(*point) for point in points], fill=pale, width=factor, joint="curve")
        line = [place(*point) for point in (_smoothed(points) if panel.smooth else points)]
        draw.line(line, fill=color, width=round((2.6 if index == 0 else 2.0) * factor), joint="curve")
        if not panel.smooth:
            for x, y in line:
                radius = 3.2 * factor
                draw.ellipse([x - radius, y - radius, x + radius, y + radius], fill=color)
    _draw_legend(draw, panel, right, top, factor)


def _draw_legend(draw: ImageDraw.ImageDraw, panel: Panel, right: float, top: float, factor: int) -> None:
    """Names and last values: of losses at the upper right, of AP at the lower right, where curves seldom are."""
    font = load_font(13 * factor)
    labels = []
    for name, points in panel.curves.items():
        value = (_smoothed(points) if panel.smooth else points)[-1][1]
        labels.append(f"{name}  {value:.4g}" if panel.smooth else f"{name}  {value:.1f}")
    width = max(draw.textlength(label, font=font) for label in labels) + 46 * factor
    row = 20 * factor
    height = row * len(labels) + 10 * factor
    panel_bottom = factor * (_PANEL[1] - _MARGINS[3])
    y = top + 4 * factor if panel.smooth else panel_bottom - height - 8 * factor
    x = right - width - 6 * factor
    draw.rounded_rectangle(
        [x, y, x + width, y + height], radius=6 * factor, fill=(255, 255, 255), outline=GRID, width=factor
    )
    for index, label in enumerate(labels):
        middle = y + 5 * factor + row * (index + 0.5)
        color = CURVE_COLORS[index % len(CURVE_COLORS)]
        draw.line([(x + 10 * factor, middle), (x + 30 * factor, middle)], fill=color, width=3 * factor)
        draw.text((x + 38 * factor, middle), label, fill=INK, font=font, anchor="lm")
