"""Charts of trainings by matplotlib: losses and AP over the iterations, and values of several rows side by side.

It is imported by name (`querypose.visualization.charts`): whoever trains or draws poses does not load matplotlib.
"""

from __future__ import annotations

import json
import logging
import re
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure  # not pyplot, which keeps global state and may open a window

from querypose.errors import UserError

Curve = list[tuple[float, float]]


class MetricsError(UserError, ValueError):
    """A metrics.json that cannot be drawn."""


_STAGE_SUFFIX = re.compile(r"_\d+$")
_AP_NAMES = ("AP", "AP50", "AP75")
_INFINITE = 1e100  # axes overflow beyond it


def read_metrics(metrics_json: str | Path) -> dict[str, Curve]:
    """The scalars of a metrics.json (one json object a line) as curves over the iteration.

    A run that was resumed from a checkpoint wrote some iterations twice; the later row counts. Values that are not
    finite are left out, and so are lines that are damaged, such as a last one cut off by the end of a killed run; the
    log names the others.

    Raises:
        MetricsError: there is no such file, or it cannot be read.
    """
    path = Path(metrics_json)
    if not path.is_file():
        raise MetricsError(f"There is no metrics file {str(path)!r}. Correct the path.")
    lines = [line for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    values: dict[str, dict[float, float]] = defaultdict(dict)
    damaged = []
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            iteration = row.pop("iteration", None)
            is_row = iteration is None or _is_finite(iteration)
        except (ValueError, AttributeError, TypeError, RecursionError):
            is_row = False
        if not is_row:
            damaged += [number] if number < len(lines) else []
        elif iteration is not None:
            for name, value in row.items():
                if _is_finite(value):
                    values[name][iteration] = value
    if damaged:
        shown = ", ".join(map(str, damaged[:5])) + (", …" if len(damaged) > 5 else "")
        logging.getLogger(__name__).warning("%s: damaged lines are left out: %s.", path, shown)
    return {name: sorted(points.items()) for name, points in values.items()}


def _is_finite(value: Any) -> bool:
    """Whether it is a number that can be drawn."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < _INFINITE


def plot_metrics(metrics_json: str | Path, out_png: str | Path) -> Figure:
    """Draws the curves of a run: the total loss and its terms, each summed over the stages; and AP, AP50, AP75.

    Args:
        metrics_json: as a run writes it.
        out_png: the picture; its folder is made.

    Raises:
        MetricsError: there is no metrics file, or it holds neither a loss nor an AP.
    """
    curves = read_metrics(metrics_json)
    losses = _loss_curves(curves)
    precisions = {
        name.replace("keypoints/", ""): points
        for name, points in curves.items()
        if "keypoints/" in name and name.rpartition("/")[2] in _AP_NAMES
    }
    num_panels = bool(losses) + bool(precisions)
    if not num_panels:
        raise MetricsError(f"{metrics_json} has no loss and no keypoints/AP, so there is nothing to plot.")
    figure = Figure(figsize=(9.5 * num_panels, 5), layout="constrained")
    panels = list(figure.subplots(1, num_panels, squeeze=False)[0])
    if losses:
        _draw_losses(panels[0], losses)
    if precisions:
        _draw_percents(panels[-1], precisions)
        panels[-1].set_ylim(0, 100)
    return _save(figure, out_png)


def plot_comparison(
    panels: Mapping[str, Mapping[str, Curve]], out_png: str | Path, x_label: str = "iteration"
) -> Figure:
    """Draws how several models get on: a panel for each metric, in it a curve for each model.

    Args:
        panels: by title of the metric the curves by name of the model, in percent.
        out_png: the picture; its folder is made.
        x_label: what the curves go over.
    """
    figure = Figure(figsize=(9.5 * len(panels), 5), layout="constrained")
    for axes, (title, curves) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        _draw_percents(axes, curves, title, x_label)
        axes.set_xlim(left=0)
        axes.set_ylim(bottom=0)
    return _save(figure, out_png)


def plot_rows(names: Sequence[str], columns: Mapping[str, Sequence[Sequence[float]]], out_png: str | Path) -> Figure:
    """Draws a row for each name: in every column a pale dot for each value, and a strong one with a number at the mean.

    Columns have scales of their own, which need not begin at 0: differences within a column are what is shown.

    Args:
        names: of the rows, from the top.
        columns: by title the values of every row; a row may have none.
        out_png: the picture; its folder is made.
    """
    figure = Figure(figsize=(2 + 4 * len(columns), 1.2 + 0.45 * len(names)), layout="constrained")
    for index, (axes, (title, rows)) in enumerate(
        zip(figure.subplots(1, len(columns), squeeze=False, sharey=True)[0], columns.items(), strict=True)
    ):
        color = f"C{index}"
        for place, values in enumerate(rows):
            if not values:
                continue
            axes.plot(values, [place] * len(values), "o", color=color, alpha=0.3, markersize=5)
            mean = statistics.fmean(values)
            axes.plot(mean, place, "o", color=color, markersize=8)
            axes.annotate(f"{mean:.1f}", (mean, place), xytext=(0, 7), textcoords="offset points", ha="center")
        axes.set_title(title, loc="left")
        axes.set_yticks(range(len(names)), names)
        axes.set_ylim(len(names) - 0.5, -0.8)  # the first row is at the top
        axes.margins(x=0.15)
        axes.grid(axis="x", alpha=0.3)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.tick_params(axis="y", length=0)
    return _save(figure, out_png)


def _draw_losses(axes: Axes, losses: Mapping[str, Curve]) -> None:
    # Losses are noisy: a pale line has every value, a strong one a running mean over about a thirtieth of the run.
    for name, points in losses.items():
        x, y = np.array(points).T
        half = len(y) // 60
        mean = [y[max(0, index - half) : index + half + 1].mean() for index in range(len(y))]
        (line,) = axes.plot(x, mean, label=f"{name}  {mean[-1]:.4g}", zorder=3)
        axes.plot(x, y, color=line.get_color(), alpha=0.25, linewidth=0.8)
    # The first iterations may be so high that nothing else would be seen.
    later = np.concatenate([[value for _, value in points[len(points) // 20 :]] for points in losses.values()])
    top = float(np.quantile(later, 0.995))
    axes.set_ylim(min(0.0, float(later.min())), 1.1 * top if top > 0 else None)
    _finish(axes, "loss")


def _draw_percents(axes: Axes, curves: Mapping[str, Curve], title: str = "AP (%)", x_label: str = "iteration") -> None:
    for name, points in curves.items():
        axes.plot(*np.array(points).T, marker="o", markersize=4, label=f"{name}  {points[-1][1]:.1f}")
    _finish(axes, title, x_label)


def _finish(axes: Axes, title: str, x_label: str = "iteration") -> None:
    axes.set_title(title, loc="left")
    axes.set_xlabel(x_label)
    axes.grid(axis="y", alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, title="last value", alignment="left")


def _save(figure: Figure, out_png: str | Path) -> Figure:
    Path(out_png).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out_png, dpi=110)
    return figure


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
