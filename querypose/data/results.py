"""The one reader of results files: detected poses, or boxes of persons, in the COCO format.

`tools/evaluate_results.py`, `tools/visualize_results.py`, the analysis of errors, DATASETS.PERSON_BOXES and the demo's
--boxes all take its `Results`, so that none of them accepts what another one refuses. What it cannot know, whether an
image or a category is one of a dataset, `Results.of_dataset` checks.

Letters of shapes: N results, K keypoints.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from querypose.data.coco import INFINITE, PoseAnnotations
from querypose.data.json_files import read_json
from querypose.data.problems import DatasetError
from querypose.paths import short
from querypose.skeleton import Skeleton


class ResultsError(DatasetError):
    """Results that cannot be used: names the file, the entry, the field, and what is allowed there."""


@dataclass(frozen=True)
class Results:
    """The content of a results file, in its order.

    Coordinates are those of the file: keypoints are pixel indices (the center of the first pixel is 0), boxes are
    continuous.

    Attributes:
        source: name of the file, for messages.
        image_ids: (N).
        category_ids: (N).
        scores: (N).
        keypoints: x, y, score (N, K, 3); None where only boxes were asked for.
        boxes_xywh: (N, 4), widths and heights not negative; None where the file has none.
        visibilities: in [0, 1] (N, K); None where the file has none.
        file_names: of the images, without folders; None where the file does not say them (N).
    """

    source: str
    image_ids: list[int]
    category_ids: list[int]
    scores: NDArray[np.float64]
    keypoints: NDArray[np.float64] | None
    boxes_xywh: NDArray[np.float64] | None
    visibilities: NDArray[np.float64] | None
    file_names: list[str | None]

    def __len__(self) -> int:
        return len(self.image_ids)

    @property
    def boxes_xyxy(self) -> NDArray[np.float64]:
        """Corners (N, 4) of results that were read for their boxes."""
        assert self.boxes_xywh is not None
        corners = self.boxes_xywh.copy()
        corners[:, 2:] += corners[:, :2]
        return corners

    def of_dataset(self, annotations: PoseAnnotations) -> NDArray[np.int64]:
        """The image of each result, as its place in `annotations.image_ids` (N).

        Raises:
            ResultsError: an image is not in the dataset, or, of poses, a category is not the dataset's.
        """
        index_of_image = {image_id: index for index, image_id in enumerate(annotations.image_ids)}
        for index, image_id in enumerate(self.image_ids):
            if image_id not in index_of_image:
                raise ResultsError(
                    f"{self._where(index)}: {annotations.path} has no image of this id (it has "
                    f"{_some(annotations.image_ids)}); use the results and the annotations of one dataset and split."
                )
            if self.keypoints is not None and self.category_ids[index] != annotations.category_id:
                raise ResultsError(
                    f"{self._where(index)} has category_id {self.category_ids[index]}; allowed: "
                    f"{annotations.category_id}, as in {annotations.path}."
                )
        return np.array([index_of_image[image_id] for image_id in self.image_ids], np.int64)

    def _where(self, index: int) -> str:
        return f"{self.source}: result {index} (image {self.image_ids[index]})"


def read_results(file: str | Path, skeleton: Skeleton | None = None) -> Results:
    """Reads and checks a results file.

    Args:
        file: a json; a list of objects.
        skeleton: that of the poses. With None the boxes are read, which then every result must have, and keypoints are
            not.

    Raises:
        JsonError, ResultsError: the file is missing, no json, or a result is none; names it.
    """
    return parse_results(read_json(file), str(file), skeleton)


def parse_results(content: Any, source: str = "the results", skeleton: Skeleton | None = None) -> Results:
    """Checks a list of results, see `read_results`.

    Raises:
        ResultsError: a field is missing, not finite, of the wrong type or length, or in some results alone.
    """
    if not isinstance(content, Sequence) or isinstance(content, str | bytes):
        raise ResultsError(f"{source} must be a list of results, not a {type(content).__name__}.")
    image_ids, category_ids = [], []
    for index, result in enumerate(content):
        where = f"{source}: result {index}"
        if not isinstance(result, Mapping):
            raise ResultsError(f"{where} is a {type(result).__name__}; allowed: an object with {_fields(skeleton)}.")
        image_ids.append(_id_of(result, "image_id", where))
        category_ids.append(_id_of(result, "category_id", where))
    keypoints = visibilities = None
    if skeleton is not None:
        K = skeleton.num_keypoints
        meaning = f"x, y and score of each of the {K} keypoints of skeleton {skeleton.name!r}"
        keypoints = _rows(content, "keypoints", 3 * K, meaning, source).reshape(-1, K, 3)
        if _all_have(content, "visibilities", source):
            visibilities = _rows(content, "visibilities", K, f"one of each of the {K} keypoints", source)
    boxes = None
    if skeleton is None or _all_have(content, "bbox", source):
        boxes = _rows(content, "bbox", 4, "x, y, width, height", source)
        for index in np.flatnonzero((boxes[:, 2:] < 0).any(axis=1))[:1].tolist():
            # For the COCO API such a detection is outside every area range, so that it never counts as false.
            raise ResultsError(
                f"{source}: result {index} (image {image_ids[index]}) has bbox {list(content[index]['bbox'])}; "
                "allowed: x, y, width, height with width and height >= 0."
            )
    return Results(
        source, image_ids, category_ids, _scores(content, source), keypoints, boxes, visibilities,
        [_file_name(result, f"{source}: result {index}") for index, result in enumerate(content)],
    )  # fmt: skip


def _fields(skeleton: Skeleton | None) -> str:
    return "image_id, category_id, score, " + ("bbox" if skeleton is None else "keypoints")


def _get(result: Mapping[str, Any], field: str, where: str) -> Any:
    if field not in result:
        raise ResultsError(f"{where} has no {field!r}; every result needs one.")
    return result[field]


def _id_of(result: Mapping[str, Any], field: str, where: str) -> int:
    """An integer; some programs write 17.0."""
    value = _get(result, field, where)
    is_number = isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)
    if not is_number or not abs(value) < INFINITE or int(value) != value:
        raise ResultsError(f"{where} has {field} {short(value)}; allowed: an integer.")
    return int(value)


def _scores(results: Sequence[Mapping[str, Any]], source: str) -> NDArray[np.float64]:
    scores = []
    for index, result in enumerate(results):
        score = _get(result, "score", f"{source}: result {index}")
        is_number = isinstance(score, int | float | np.number) and not isinstance(score, bool | complex)
        if not is_number or not abs(score) < INFINITE:
            where = f"{source}: result {index} (image {result['image_id']!r})"
            raise ResultsError(f"{where} has score {short(score)}; allowed: a finite number.")
        scores.append(float(score))
    return np.array(scores, np.float64)


def _file_name(result: Mapping[str, Any], where: str) -> str | None:
    name = result.get("file_name")
    if name is not None and not isinstance(name, str):
        raise ResultsError(f"{where} has file_name {short(name)}; allowed: the name of an image, or no such field.")
    return None if name is None else os.path.basename(name)


def _all_have(results: Sequence[Mapping[str, Any]], field: str, source: str) -> bool:
    """Whether the results have the field: all or none."""

    def has(result: Mapping[str, Any]) -> bool:
        value = result.get(field)
        return value is not None and (not isinstance(value, Sequence | np.ndarray) or len(value) > 0)

    first = bool(results) and has(results[0])
    for index, result in enumerate(results):
        if has(result) != first:
            raise ResultsError(
                f"{source}: result {index} (image {result['image_id']!r}) {'has no' if first else 'has a'} {field!r}, "
                f"unlike the first result; allowed: a {field!r} in all results, or in none."
            )
    return first


def _rows(
    results: Sequence[Mapping[str, Any]], field: str, length: int, meaning: str, source: str
) -> NDArray[np.float64]:
    """A field of all results as one array (N, length) of finite numbers.

    Raises:
        ResultsError: a value is missing, of another length, or not a finite number; a NaN would match a person and
            raise the AP.
    """
    for index, result in enumerate(results):
        values = _get(result, field, f"{source}: result {index}")
        where = f"{source}: result {index} (image {result['image_id']!r})"
        if not isinstance(values, Sequence | np.ndarray) or isinstance(values, str | bytes):
            raise ResultsError(f"{where} has {field} {short(values)}; allowed: a list of {length} numbers: {meaning}.")
        if len(values) != length:
            raise ResultsError(f"{where} has {len(values)} values in {field!r}; allowed: {length} numbers, {meaning}.")
    if not results:
        return np.zeros((0, length))
    try:
        rows = np.asarray([result[field] for result in results])
    except ValueError:  # one of them holds a list
        rows = np.zeros(0, object)
    if rows.dtype.kind not in "iuf" or rows.ndim != 2:
        for index, result in enumerate(results):
            for value in result[field]:
                if not isinstance(value, int | float | np.number) or isinstance(value, bool):
                    raise ResultsError(
                        f"{source}: result {index} (image {result['image_id']!r}) has {short(value)} in {field!r}, "
                        f"which is not a number; allowed: {length} numbers, {meaning}."
                    )
        # An integer may be greater than any number of the machine.
        rows = np.array([[float(min(max(v, -INFINITE), INFINITE)) for v in result[field]] for result in results])
    rows = rows.astype(np.float64)
    bad = np.flatnonzero(~(np.abs(rows) < INFINITE).all(axis=1)).tolist()
    if bad:
        images = list(dict.fromkeys(results[index]["image_id"] for index in bad))
        raise ResultsError(
            f"{source}: {len(bad)} of {len(rows)} results have NaN or infinite {field!r}, in the images "
            f"{_some(images)} (first: result {bad[0]}). The model that predicted them has diverged; use an earlier "
            "checkpoint."
        )
    return rows


def _some(values: Sequence[Any], count: int = 5) -> str:
    """The first few values, for a message."""
    return ", ".join(map(repr, values[:count])) + (", …" if len(values) > count else "")
