"""Training curves from metrics.json: losses, and AP where there was an evaluation."""

from __future__ import annotations

import json
import math
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from querypose.visualization.charts import Curve, Panel, save_panels

_STAGE_SUFFIX = re.compile(r"_\d+$")
_AP_NAMES = ("AP", "AP50", "AP75")


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
        panels.append(Panel("loss", losses, _robust_limits(losses.values()), smooth=True))
    precisions = {
        name.replace("keypoints/", ""): points
        for name, points in curves.items()
        if "keypoints/" in name and name.rpartition("/")[2] in _AP_NAMES
    }
    if precisions:
        panels.append(Panel("AP (%)", precisions, (0.0, 100.0), smooth=False))
    if not panels:
        raise ValueError(f"{metrics_json} holds no loss and no keypoints/AP, so there is nothing to plot.")
    save_panels(panels, out_png)


def plot_precisions(curves: Mapping[str, Curve], out_png: str | Path) -> None:
    """Draws AP over the iterations, a curve for each of several models.

    Args:
        curves: by name of the model, in percent.
        out_png: the picture; its folder is made.
    """
    highest = max(value for points in curves.values() for _, value in points)
    save_panels([Panel("AP (%)", curves, (0.0, max(1.0, 1.08 * highest)), smooth=False)], out_png)


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
