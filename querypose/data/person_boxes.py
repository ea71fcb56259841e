"""Detected boxes of persons: a COCO results file, as detectors write it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, NamedTuple

from querypose.data.problems import DatasetError


class PersonBox(NamedTuple):
    """One detection.

    Attributes:
        image_id: of its image.
        category_id: of what was found.
        box_xyxy: corners, in continuous pixels.
        score: of the detector.
        file_name: of its image, where the file says it.
    """

    image_id: Any
    category_id: Any
    box_xyxy: tuple[float, float, float, float]
    score: float
    file_name: str | None = None

    @property
    def has_area(self) -> bool:
        """Whether it is wider and higher than nothing."""
        x0, y0, x1, y1 = self.box_xyxy
        return x1 > x0 and y1 > y0


def read_person_boxes(file: str | Path) -> list[PersonBox]:
    """The boxes of a COCO results file, in its order.

    Raises:
        DatasetError: there is no such file, or an entry is no detected box; names it.
    """
    path = Path(file)
    if not path.is_file():
        raise DatasetError(f"There is no file {str(file)!r} of person boxes.")
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DatasetError(f"{file} is not valid json ({error}); write it again.") from error
    if not isinstance(entries, list):
        raise DatasetError(f"{file} is no COCO results file: it holds a {type(entries).__name__}, not a list of boxes.")
    return [_read_box(entry, f"{file}, entry {index}") for index, entry in enumerate(entries)]


def _read_box(entry: Any, where: str) -> PersonBox:
    try:
        x, y, width, height = map(float, entry["bbox"])
        box = PersonBox(
            entry["image_id"], entry["category_id"], (x, y, x + width, y + height), float(entry["score"]),
            entry.get("file_name"),
        )  # fmt: skip
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DatasetError(
            f"{where}, is no detected box ({error!r}); a COCO results file has image_id, category_id, bbox (x, y, "
            "width, height) and score in each."
        ) from error
    if not all(map(math.isfinite, (*box.box_xyxy, box.score))):
        raise DatasetError(f"{where}, has a bbox or score that is NaN or infinite; such a detector has diverged.")
    return box
