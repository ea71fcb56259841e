from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from PIL import Image

from querypose.visualization.charts import MetricsError, plot_comparison, plot_metrics, plot_rows, read_metrics


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


def labels(axes: Axes) -> list[str]:
    legend = axes.get_legend()
    assert legend is not None
    return [text.get_text() for text in legend.get_texts()]


def test_a_run_has_a_panel_of_losses_and_one_of_ap(tmp_path: Path) -> None:
    metrics = write(tmp_path / "metrics.json", training_rows())
    assert [axes.get_title(loc="left") for axes in plot_metrics(metrics, tmp_path / "new" / "a.png").axes] == ["loss"]
    evaluations: list[dict[str, Any]] = [
        {"iteration": 500, "keypoints/AP": 12.0, "keypoints/AP50": 30.0, "keypoints/APm": float("nan")}
    ]
    write(metrics, training_rows() + evaluations)
    losses, precisions = plot_metrics(metrics, tmp_path / "both.png").axes
    assert labels(losses) == ["total_loss  0.1", "loss_cls  1.04"]
    assert labels(precisions) == ["AP  12.0", "AP50  30.0"]
    assert precisions.get_ylim() == (0, 100)
    np.testing.assert_array_equal(precisions.lines[0].get_xydata(), [[500, 12]])
    with Image.open(tmp_path / "both.png") as both, Image.open(tmp_path / "new" / "a.png") as one:
        assert both.size == (2 * one.width, one.height)
    write(metrics, evaluations)
    assert len(plot_metrics(metrics, tmp_path / "ap.png").axes) == 1


def test_a_term_is_the_sum_over_the_stages_in_every_iteration(tmp_path: Path) -> None:
    figure = plot_metrics(write(tmp_path / "metrics.json", training_rows(3)), tmp_path / "a.png")
    lines = {line.get_label(): line for line in figure.axes[0].lines}
    points = np.asarray(lines[f"loss_cls  {1 + 2 / 3:.4g}"].get_xydata(), dtype=float)
    np.testing.assert_allclose(points, np.array([[0, 3], [20, 2], [40, 1 + 2 / 3]]))


def test_the_first_huge_losses_do_not_hide_the_others(tmp_path: Path) -> None:
    rows = [{"iteration": index, "total_loss": 1000.0 if index < 3 else 2.0} for index in range(100)]
    figure = plot_metrics(write(tmp_path / "metrics.json", rows), tmp_path / "a.png")
    assert 2 < figure.axes[0].get_ylim()[1] < 3


@pytest.mark.parametrize("count", [1, 8])
def test_the_legend_stands_beside_the_curves(tmp_path: Path, count: int) -> None:
    curves = {f"a model of a long name {index}": [(500.0, 3.0), (1000.0, 9.0 + index)] for index in range(count)}
    figure = plot_comparison({"AP": curves, "OKS": curves}, tmp_path / "ap.png", x_label="CPU-seconds")
    axes, other = figure.axes
    assert (axes.get_title("left"), other.get_xlabel()) == ("AP", "CPU-seconds")
    legend = axes.get_legend()
    assert legend is not None
    extent = legend.get_window_extent()
    assert extent.x0 >= axes.get_window_extent().x1
    assert extent.x1 <= other.get_window_extent().x0  # nothing is covered
    assert labels(axes)[0] == "a model of a long name 0  9.0"


def test_rows_have_a_dot_for_each_value_and_one_at_the_mean(tmp_path: Path) -> None:
    columns = {"measured": [[10.0, 20.0], [30.0], []], "paper": [[2.0], [1.0], [1.5]]}
    figure = plot_rows(["first", "second", "third"], columns, tmp_path / "new" / "rows.png")
    measured, paper = figure.axes
    assert [text.get_text() for text in measured.get_yticklabels()] == ["first", "second", "third"]
    dots = [line.get_xydata().tolist() for line in measured.lines]  # type: ignore[union-attr]
    assert dots == [[[10, 0], [20, 0]], [[15, 0]], [[30, 1]], [[30, 1]]]
    assert [text.get_text() for text in measured.texts] == ["15.0", "30.0"]
    assert [text.get_text() for text in paper.texts] == ["2.0", "1.0", "1.5"]
    low, high = measured.get_ylim()
    assert low > high  # the first row is at the top
    assert measured.get_xlim()[0] > 5  # a column has a scale of its own
    assert (tmp_path / "new" / "rows.png").stat().st_size > 0


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
    with pytest.raises(MetricsError, match="no metrics file"):
        plot_metrics(tmp_path / "none.json", tmp_path / "x.png")
    with pytest.raises(ValueError, match="no loss and no keypoints/AP"):
        plot_metrics(write(tmp_path / "empty.json", [{"iteration": 1, "lr": 0.1}]), tmp_path / "x.png")


def test_damaged_lines_are_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    lines = [
        '{"iteration": 1, "a": 1}',
        "{broken",
        "[3]",
        '{"iteration": "x", "a": 2}',
        '{"iteration": 3, "a": 3}',
        "\udcff",
    ]
    (tmp_path / "broken.json").write_text("\n".join(lines), errors="surrogateescape")
    assert read_metrics(tmp_path / "broken.json") == {"a": [(1, 1), (3, 3)]}
    assert "damaged lines are left out: 2, 3, 4" in caplog.text


@pytest.mark.parametrize("rows", [1, 2])
def test_very_short_runs(tmp_path: Path, rows: int) -> None:
    plot_metrics(write(tmp_path / "metrics.json", training_rows(rows)), tmp_path / "x.png")
    plot_metrics(write(tmp_path / "metrics.json", [{"iteration": 0, "total_loss": 0.0}]), tmp_path / "x.png")


def test_the_package_and_training_load_neither_matplotlib_nor_the_drawn_people() -> None:
    program = (
        "import sys, querypose, querypose.engine, querypose.visualization\n"
        "print([name for name in sys.modules if name.startswith(('matplotlib', 'querypose.data.synthetic'))])"
    )
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert loaded.strip() == "[]"
