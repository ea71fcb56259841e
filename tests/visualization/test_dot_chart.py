from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from querypose.visualization import save_dot_chart
from tests.visualization.pixels import coloured_pixels


def test_dots_stand_where_the_values_are(tmp_path: Path) -> None:
    names = ["low", "high", "none"]
    save_dot_chart(names, {"left": [[10.0], [30.0], []], "right": [[2.0], [1.0], [1.5]]}, tmp_path / "new" / "dots.png")
    marks = coloured_pixels(tmp_path / "new" / "dots.png")
    with Image.open(tmp_path / "new" / "dots.png") as image:
        width, _ = image.size
    middle = width - 380 - 24 - 12  # between the two columns
    left, right = marks[marks[:, 1] < middle], marks[marks[:, 1] > middle]
    top, second, third = (marks_of_row(left, 0), marks_of_row(left, 1), marks_of_row(left, 2))
    assert top.mean(axis=0)[1] < second.mean(axis=0)[1]
    assert len(third) == 0
    assert marks_of_row(right, 1).mean(axis=0)[1] < marks_of_row(right, 2).mean(axis=0)[1]
    assert marks_of_row(right, 2).mean(axis=0)[1] < marks_of_row(right, 0).mean(axis=0)[1]


def marks_of_row(marks: np.ndarray, row: int) -> np.ndarray:
    return marks[(marks[:, 0] >= 52 + 44 * row) & (marks[:, 0] < 52 + 44 * (row + 1))]


def test_a_mean_is_drawn_among_its_values(tmp_path: Path) -> None:
    save_dot_chart(["one"], {"AP": [[1.0, 3.0, 5.0]]}, tmp_path / "several.png")
    save_dot_chart(["one"], {"AP": [[3.0]]}, tmp_path / "single.png")
    several, single = (coloured_pixels(tmp_path / f"{name}.png")[:, 1] for name in ("several", "single"))
    assert abs(several.mean() - single.mean()) < 2  # both in the middle of their scale
