from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from querypose.visualization import plot_metrics, plot_precisions
from querypose.visualization.charts import ticks as round_ticks
from querypose.visualization.plots import read_metrics
from tests.visualization.pixels import coloured_pixels


def write(path: Path, rows: list[dict[str, Any]], tail: str = "") -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + tail)
    return path


def training_rows(count: int = 50) -> list[dict[str, Any]]:
    return [
        {
            "iteration": 20 * index,
            "total_loss": 5 / (index + 1),
            "loss_cls": 2 / (index + 1),
            "loss_cls_0": 1.0,
            "lr": 1e-4,
        }
        for index in range(count)
    ]


def size_of(path: Path) -> tuple[int, int]:
    with Image.open(path) as image:
        return image.size


def test_panels(tmp_path: Path) -> None:
    metrics = write(tmp_path / "metrics.json", training_rows())
    plot_metrics(metrics, tmp_path / "new" / "loss.png")
    evaluations: list[dict[str, Any]] = [
        {"iteration": 500, "keypoints/AP": 12.0, "keypoints/AP50": 30.0, "keypoints/APm": float("nan")}
    ]
    write(metrics, training_rows() + evaluations)
    plot_metrics(metrics, tmp_path / "both.png")
    width, height = size_of(tmp_path / "new" / "loss.png")
    assert size_of(tmp_path / "both.png") == (2 * width, height)
    write(metrics, evaluations)
    plot_metrics(metrics, tmp_path / "ap.png")
    assert size_of(tmp_path / "ap.png") == (width, height)


def test_the_curve_goes_where_the_values_go(tmp_path: Path) -> None:
    rows = [{"iteration": index, "total_loss": float(index)} for index in range(100)]
    plot_metrics(write(tmp_path / "metrics.json", rows), tmp_path / "rising.png")
    with Image.open(tmp_path / "rising.png") as image:
        pixels = np.asarray(image.convert("L")).astype(int)
    height, width = pixels.shape
    heights = []
    for column in (width // 5, width // 2):
        dark = np.flatnonzero(pixels[60 : height - 65, column] < 90)
        heights.append(dark.mean())
    assert heights[0] > heights[1]  # further down at first


def test_a_resumed_run_and_a_cut_last_line(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"iteration": 0, "a": 1.0},
        {"iteration": 20, "a": 2.0},
        {"iteration": 20, "a": 3.0},
        {"a": 5},
    ]
    curves = read_metrics(write(tmp_path / "metrics.json", rows, tail='{"iteration": 40, "a'))
    assert curves == {"a": [(0, 1.0), (20, 3.0)]}


def test_files_that_cannot_be_plotted(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no metrics file"):
        plot_metrics(tmp_path / "none.json", tmp_path / "x.png")
    with pytest.raises(ValueError, match="no loss and no keypoints/AP"):
        plot_metrics(write(tmp_path / "empty.json", [{"iteration": 1, "lr": 0.1}]), tmp_path / "x.png")
    (tmp_path / "broken.json").write_text('{"iteration": 1}\n{broken\n{"iteration": 3}\n')
    with pytest.raises(ValueError, match="line 2 is not json"):
        read_metrics(tmp_path / "broken.json")


@pytest.mark.parametrize("rows", [1, 2])
def test_very_short_runs(tmp_path: Path, rows: int) -> None:
    plot_metrics(write(tmp_path / "metrics.json", training_rows(rows)), tmp_path / "x.png")
    plot_metrics(write(tmp_path / "metrics.json", [{"iteration": 0, "total_loss": 0.0}]), tmp_path / "x.png")


@pytest.mark.parametrize(("low", "high"), [(0, 100), (-3.2, 7.7), (0, 1e-4), (0, 140000), (5, 5.001)])
def test_ticks_are_round_and_inside(low: float, high: float) -> None:
    ticks = round_ticks(low, high)
    assert 3 <= len(ticks) <= 8
    assert all(low - 1e-9 <= tick <= high * (1 + 1e-9) for tick in ticks)
    steps = np.diff(ticks)
    assert np.allclose(steps, steps[0])
    mantissa = steps[0] / 10 ** np.floor(np.log10(steps[0]) + 1e-9)
    assert round(float(mantissa), 6) in (1, 2, 5)


def test_curves_of_precision(tmp_path: Path) -> None:
    curves = {"first": [(500.0, 3.0), (1000.0, 9.0)], "second": [(500.0, 12.0), (1000.0, 20.0)]}
    plot_precisions(curves, tmp_path / "ap.png")
    blue = coloured_pixels(tmp_path / "ap.png")  # the second curve; the first is dark
    left, right = blue[blue[:, 1] < 420], blue[(blue[:, 1] > 650) & (blue[:, 0] < 300)]
    assert left[:, 0].mean() > right[:, 0].mean()
