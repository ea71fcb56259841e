"""Training curves from metrics.json: losses, and AP where there was an evaluation."""

from __future__ import annotations

import json
import math
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from querypose.visualization.poses import Color, load_font

Curve = list[tuple[float, float]]

_PANEL = (760, 480)
_MARGINS = (74, 54, 22, 58)  # left, top, right, bottom of a panel
_SUPERSAMPLING = 2
_INK: Color = (40, 44, 52)
_PALE_INK: Color = (120, 126, 138)
_GRID: Color = (228, 231, 236)
_CURVE_COLORS: tuple[Color, ...] = (
    (33, 37, 45), (31, 119, 210), (232, 106, 23), (44, 160, 77), (205, 44, 84), (131, 83, 196), (20, 160, 170),
    (150, 110, 60),
)  # fmt: skip
_STAGE_SUFFIX = re.compile(r"_\d+$")
_AP_NAMES = ("AP", "AP50", "AP75")


class _Panel(NamedTuple):
    title: str
    curves: Mapping[str, Curve]
    limits: tuple[float, float]
    smooth: bool


def read_metrics(metrics_json: str | Path) -> dict[str, Curve]:
    """The scalars of a metrics.json (one json object a line) as curves over the iteration.

    A run that was resumed from a checkpoint wrote some iterations twice; the later row counts. A last line cut off
    by the end of a killed run is left out, and so are values that are not finite.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a line other than the last is not json.
    """
    path = Path(metrics_json)
    if not path.is_file():
        raise FileNotFoundError(f"There is no metrics file {str(path)!r}.")
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    values: dict[str, dict[float, float]] = defaultdict(dict)
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
        except ValueError as error:
            if number == len(lines):
                break
            raise ValueError(f"{path}: line {number} is not json ({error}).") from error
        iteration = row.get("iteration")
        if iteration is None:
            continue
        for name, value in row.items():
            if name != "iteration" and isinstance(value, int | float) and math.isfinite(value):
                values[name][iteration] = value
    return {name: sorted(points.items()) for name, points in values.items()}


def plot_metrics(metrics_json: str | Path, out_png: str | Path) -> None:
    """Draws the curves of a run: the total loss and its terms, each summed over the stages; and AP, AP50, AP75.

    Args:
        metrics_json: as a run writes it.
        out_png: the picture; its folder is made.

    Raises:
        FileNotFoundError: there is no metrics file.
        ValueError: the file holds neither a loss nor an AP.
    """
    curves = read_metrics(metrics_json)
    panels = []
    if losses := _loss_curves(curves):
        panels.append(_Panel("loss", losses, _robust_limits(losses.values()), smooth=True))
    precisions = {
        name.replace("keypoints/", ""): points
        for name, points in curves.items()
        if "keypoints/" in name and name.rpartition("/")[2] in _AP_NAMES
    }
    if precisions:
        panels.append(_Panel("AP (%)", precisions, (0.0, 100.0), smooth=False))
    if not panels:
        raise ValueError(f"{metrics_json} holds no loss and no keypoints/AP, so there is nothing to plot.")
    last = max(points[-1][0] for panel in panels for points in panel.curves.values())
    first = min(0.0, *(points[0][0] for panel in panels for points in panel.curves.values()))
    factor = _SUPERSAMPLING
    canvas = Image.new("RGB", (factor * _PANEL[0] * len(panels), factor * _PANEL[1]), (255, 255, 255))
    for index, panel in enumerate(panels):
        _draw_panel(ImageDraw.Draw(canvas), panel, factor * _PANEL[0] * index, (first, max(last, first + 1)), factor)
    Path(out_png).parent.mkdir(parents=True, exist_ok=True)
    canvas.resize((_PANEL[0] * len(panels), _PANEL[1]), Image.Resampling.LANCZOS).save(out_png)


def _loss_curves(curves: Mapping[str, Curve]) -> dict[str, Curve]:
    """The total and, for every term, the sum over the stages: `loss_cls` is loss_cls + loss_cls_0 + …"""
    sums: dict[str, dict[float, float]] = {}
    if "total_loss" in curves:
        sums["total_loss"] = dict(curves["total_loss"])
    for name in sorted(curves):
        if name.startswith("loss_"):
            term = sums.setdefault(_STAGE_SUFFIX.sub("", name), defaultdict(float))
            for iteration, value in curves[name]:
                term[iteration] += value
    return {name: sorted(points.items()) for name, points in sums.items()}


def _robust_limits(curves: Iterable[Curve]) -> tuple[float, float]:
    """The range of the losses, without the few huge values of the first iterations if there are any."""
    values = np.array([value for points in curves for _, value in points])
    low, usual, high = min(0.0, float(values.min())), float(np.percentile(values, 98)), float(values.max())
    if high - low > 2 * (usual - low) > 0:
        high = usual
    return low, high + 0.04 * max(high - low, 1e-6)


def _ticks(low: float, high: float, count: int = 6) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten apart) within [low, high]."""
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(multiple * power for multiple in (1, 2, 5, 10) if multiple * power >= raw * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    return [index * step for index in range(first, math.floor(high / step + 1e-9) + 1)]


def _tick_label(value: float) -> str:
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
    draw: ImageDraw.ImageDraw, panel: _Panel, offset: int, x_limits: tuple[float, float], factor: int
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

    for tick in _ticks(y_low, y_high):
        _, y_pixel = place(x_low, tick)
        draw.line([(left, y_pixel), (right, y_pixel)], fill=_GRID, width=factor)
        draw.text((left - 8 * factor, y_pixel), _tick_label(tick), fill=_PALE_INK, font=font, anchor="rm")
    for tick in _ticks(x_low, x_high):
        x_pixel, _ = place(tick, y_low)
        draw.line([(x_pixel, bottom), (x_pixel, bottom + 5 * factor)], fill=_PALE_INK, width=factor)
        draw.text((x_pixel, bottom + 9 * factor), _tick_label(tick), fill=_PALE_INK, font=font, anchor="mt")
    draw.line([(left, bottom), (right, bottom)], fill=_PALE_INK, width=factor)
    draw.text((left, 14 * factor), panel.title, fill=_INK, font=title_font, anchor="lt")
    draw.text(((left + right) / 2, bottom + 32 * factor), "iteration", fill=_PALE_INK, font=font, anchor="mt")

    for index, points in reversed(list(enumerate(panel.curves.values()))):
        color = _CURVE_COLORS[index % len(_CURVE_COLORS)]
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


def _draw_legend(draw: ImageDraw.ImageDraw, panel: _Panel, right: float, top: float, factor: int) -> None:
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
        [x, y, x + width, y + height], radius=6 * factor, fill=(255, 255, 255), outline=_GRID, width=factor
    )
    for index, label in enumerate(labels):
        middle = y + 5 * factor + row * (index + 0.5)
        color = _CURVE_COLORS[index % len(_CURVE_COLORS)]
        draw.line([(x + 10 * factor, middle), (x + 30 * factor, middle)], fill=color, width=3 * factor)
        draw.text((x + 38 * factor, middle), label, fill=_INK, font=font, anchor="lm")
