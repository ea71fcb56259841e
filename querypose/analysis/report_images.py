"""The images of a report: which ones are worth a look, and what is drawn over them.

Letters of shapes: I images, K keypoints.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from querypose.data import ImageReadError, read_image
from querypose.data.coco import PIXEL_INDEX_TO_CONTINUOUS, PoseAnnotations
from querypose.evaluation.error_analysis import KINDS, UNLABELED, ErrorAnalysis, best_oks
from querypose.evaluation.resampling import PrecisionCurves
from querypose.progress import progress

_JPEG_QUALITY = 85
_SIZE_BOUNDS = (32.0**2, 96.0**2)
_SIZES = ("small", "medium", "large")


def choose_images(
    losses: Sequence[NDArray[np.float64]], has_person_I: NDArray[np.bool_], count: int
) -> dict[int, list[str]]:
    """Up to `count` images, an equal share of them each the worst, the best and, of two runs, the most changed ones.

    Args:
        losses: of AP by image (I), of every run.
        has_person_I: whether somebody is to be found; the best are among these.
        count: at most.

    Returns:
        places of the images, worst first, and the lists that each is in.
    """
    latest_I = losses[-1]
    worst_I, best_I = np.argsort(-latest_I, kind="stable"), np.argsort(latest_I, kind="stable")
    rankings = {"worst": worst_I, "best": best_I[has_person_I[best_I]]}
    if len(losses) > 1:
        rankings["changed"] = np.argsort(-np.abs(losses[1] - losses[0]), kind="stable")
    share = -(-count // len(rankings))
    lists = {name: dict.fromkeys(order[:share].tolist()) for name, order in rankings.items()}
    candidates = [image for of_list in lists.values() for image in of_list] + worst_I.tolist()
    chosen = sorted(list(dict.fromkeys(candidates))[:count], key=lambda image: -latest_I[image])
    return {image: [name for name, of_list in lists.items() if image in of_list] for image in chosen}


def image_entries(
    analyses: Mapping[str, ErrorAnalysis], count: int, folder: Path, max_side: int
) -> tuple[list[dict[str, Any]], int]:
    """Everything that the page draws of the chosen images, whose JPEGs are written to `folder`.

    Args:
        analyses: of the runs, of one dataset.
        count: images at most.
        folder: for the JPEGs.
        max_side: of a JPEG, in pixels.

    Returns:
        an entry an image, and how many images could not be read.
    """
    file = next(iter(analyses.values())).evaluation.annotations
    losses = [PrecisionCurves(analysis.evaluation).loss_of_images() for analysis in analyses.values()]
    has_person_I = np.bincount(file.image_indices, minlength=len(file.image_ids)) > 0
    chosen = choose_images(losses, has_person_I, count)
    folder.mkdir(parents=True, exist_ok=True)
    shown = {run: _Shown(analysis) for run, analysis in analyses.items()}
    entries, num_missing = [], 0
    for number, (image, lists) in enumerate(progress(chosen.items(), "images of the report")):
        height, width = file.sizes_hw[image].tolist()
        name = f"{number:04d}.jpg"
        is_written = write_jpeg(file, image, folder / name, max_side)
        num_missing += not is_written
        entries.append(
            {
                "id": file.image_ids[image],
                "name": file.file_names[image],
                "file": f"{folder.name}/{name}" if is_written else None,
                "width": width,
                "height": height,
                "lists": lists,
                "persons": _persons(file, image, next(iter(analyses.values())).evaluation.areas_N),
                "runs": [
                    {"loss": float(loss_I[image]), **of_run.entry(image)}
                    for loss_I, of_run in zip(losses, shown.values(), strict=True)
                ],
            }
        )
    return entries, num_missing


def write_jpeg(file: PoseAnnotations, image: int, path: Path, max_side: int) -> bool:
    """Writes an image of a dataset, no side longer than `max_side`; False where it cannot be read."""
    try:
        picture = Image.fromarray(read_image(file.image_file(image)))
    except ImageReadError:
        return False
    picture.thumbnail((max_side, max_side))
    picture.save(path, quality=_JPEG_QUALITY)
    return True


class _Shown:
    """What is drawn of one run, by image."""

    def __init__(self, analysis: ErrorAnalysis) -> None:
        self._analysis = analysis
        self._best_F = best_oks(analysis.evaluation)
        self._match_of = {detection: index for index, detection in enumerate(analysis.errors.detection_M.tolist())}
        self._scores_F = analysis.evaluation.candidates.scores_F

    def entry(self, image: int) -> dict[str, Any]:
        """Detections, best first, and the persons that nobody found, as numbers within the image."""
        analysis, candidates = self._analysis, self._analysis.evaluation.candidates
        place = analysis.evaluation.annotations.of_image(image)
        first, last = np.searchsorted(candidates.image_F, (image, image + 1)).tolist()
        detections = []
        for detection in range(first, last):
            xy_K2 = candidates.keypoints_FK2[detection] + PIXEL_INDEX_TO_CONTINUOUS
            entry: dict[str, Any] = {
                "score": float(self._scores_F[detection]),
                "oks": float(self._best_F[detection]),
                "keypoints": np.round(xy_K2, 1).tolist(),
                "false": bool(analysis.false_positive_F[detection]),
            }
            if detection in self._match_of:
                match = self._match_of[detection]
                kinds = analysis.errors.kind_MK[match].tolist()
                entry["person"] = int(analysis.errors.person_M[match]) - place.start
                entry["kinds"] = [None if kind == UNLABELED else KINDS[kind] for kind in kinds]
            detections.append(entry)
        missed = np.flatnonzero(analysis.false_negative_N[place]).tolist()
        return {"detections": detections, "missed": missed}


def _persons(file: PoseAnnotations, image: int, areas_N: NDArray[np.float64]) -> list[dict[str, Any]]:
    """The annotated persons of an image."""
    place = file.of_image(image)
    keypoints = file.keypoints[place].copy()
    keypoints[..., :2] += PIXEL_INDEX_TO_CONTINUOUS
    return [
        {
            "keypoints": np.round(of_person, 1).tolist(),
            "box": np.round(box, 1).tolist(),
            "size": _SIZES[int(np.digitize(area, _SIZE_BOUNDS))],
            "crowd": bool(is_crowd),
        }
        for of_person, box, area, is_crowd in zip(
            keypoints, file.boxes_xywh[place], areas_N[place], file.is_crowd[place], strict=True
        )
    ]


def best_threshold(analysis: ErrorAnalysis) -> float:
    """The score from which on detections have the best F1 at an OKS of 0.5: what the page shows at first."""
    evaluation = analysis.evaluation
    matches = evaluation.match(np.array([0.5]))
    order_F = np.argsort(-evaluation.candidates.scores_F, kind="stable")
    if not len(order_F) or not analysis.num_persons:
        return 0.0
    true_F, false_F = matches.is_true_TF[0, order_F].cumsum(), matches.is_false_TF[0, order_F].cumsum()
    f1_F = 2 * true_F / (true_F + false_F + analysis.num_persons)
    return float(evaluation.candidates.scores_F[order_F[int(f1_F.argmax())]])
