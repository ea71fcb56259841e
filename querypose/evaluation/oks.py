"""Average precision and recall over object keypoint similarity (OKS), by the COCO and the CrowdPose protocol.

The protocols are followed to the letter, so that figures can be compared with published ones: all images of the
annotation file count, the 20 best detections of each, scores as the model gave them. faster-coco-eval does the
computing; `tests/evaluation/test_oks.py` holds it to pycocotools.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from faster_coco_eval import COCO, COCOeval_faster
from numpy.typing import NDArray

from querypose.evaluation.ground_truth import (
    EvaluationError,
    GroundTruth,
    Protocol,
    read_detections,
    read_ground_truth,
)
from querypose.skeleton import Skeleton

MAX_DETECTIONS = 20

# Names of the figures, in the order of a table.
METRICS: Mapping[Protocol, tuple[str, ...]] = {
    "coco": ("AP", "AP50", "AP75", "APm", "APl", "AR", "AR50", "AR75", "ARm", "ARl"),
    "crowdpose": ("AP", "AP50", "AP75", "APE", "APM", "APH", "AR", "AR50", "AR75"),
}
_CROWD_METRICS = {"easy": "APE", "medium": "APM", "hard": "APH"}


def evaluate_oks(
    ground_truth: Mapping[str, Any] | GroundTruth,
    detections: Sequence[Mapping[str, Any]],
    skeleton: Skeleton,
    protocol: Protocol = "coco",
    *,
    detections_name: str = "the results",
) -> dict[str, float]:
    """The figures of a keypoint benchmark.

    Under "crowdpose" a person's area is 0.53 of its box, and APE, APM, APH are AP over the images of easy, medium and
    hard `crowdIndex`. Deviates: the CrowdPose code rounds those three to 0.01 %; here they are not rounded.

    Args:
        ground_truth: content of a COCO keypoints file, or what `read_ground_truth` made of it.
        detections: results in the COCO keypoints format, in the coordinates of the file. None at all is an AP of 0.
        skeleton: gives K and the OKS sigmas.
        protocol: "coco" or "crowdpose".
        detections_name: what error messages call `detections`.

    Returns:
        the figures named in `METRICS`, in percent; NaN where there is nobody to find.

    Raises:
        EvaluationError: see `read_ground_truth` and `read_detections`.
    """
    if not isinstance(ground_truth, GroundTruth):
        ground_truth = read_ground_truth(ground_truth, skeleton, protocol)
    if ground_truth.num_keypoints != skeleton.num_keypoints or bool(ground_truth.splits) != (protocol == "crowdpose"):
        raise EvaluationError(f"{ground_truth.name} was read for another skeleton or protocol.")
    evaluation = _OksEvaluation(
        ground_truth,
        read_detections(detections, ground_truth, detections_name),
        np.asarray(skeleton.sigmas, dtype=np.float64),
    )
    evaluation.run_on(list(ground_truth.image_numbers.values()))
    figures = {
        "AP": evaluation.average("precision"),
        "AP50": evaluation.average("precision", threshold=0.5),
        "AP75": evaluation.average("precision", threshold=0.75),
        "APm": evaluation.average("precision", area="medium"),
        "APl": evaluation.average("precision", area="large"),
        "AR": evaluation.average("recall"),
        "AR50": evaluation.average("recall", threshold=0.5),
        "AR75": evaluation.average("recall", threshold=0.75),
        "ARm": evaluation.average("recall", area="medium"),
        "ARl": evaluation.average("recall", area="large"),
    }
    for split, images in ground_truth.splits.items():
        evaluation.run_on(images)
        figures[_CROWD_METRICS[split]] = evaluation.average("precision")
    return {name: figures[name] for name in METRICS[protocol]}


def format_metrics(metrics: Mapping[str, float], title: str = "") -> str:
    """A table of figures in percent for logs and terminals: one line of names, one of values."""
    values = {name: "-" if math.isnan(value) else f"{value:.2f}" for name, value in metrics.items()}
    widths = {name: max(len(name), len(value), 5) for name, value in values.items()}
    rows = [
        " | ".join(name.center(widths[name]) for name in values),
        "-+-".join("-" * widths[name] for name in values),
        " | ".join(value.rjust(widths[name]) for name, value in values.items()),
    ]
    return "\n".join(([title] if title else []) + [f" {row}" for row in rows])


def _silent(*_: object) -> None:
    """Takes the lines that the library prints; the table is written by `format_metrics`."""


class _OksEvaluation(COCOeval_faster):
    """An evaluation that can be run on one set of images after another and computes every OKS once."""

    def __init__(
        self, ground_truth: GroundTruth, detections: Sequence[dict[str, Any]], sigmas_K: NDArray[np.float64]
    ) -> None:
        super().__init__(
            _coco(ground_truth, ground_truth.annotations),
            _coco(ground_truth, detections),
            "keypoints",
            kpt_oks_sigmas=list(sigmas_K),
            print_function=_silent,
        )
        self.params.catIds = sorted(ground_truth.category_numbers.values())
        self.params.maxDets = [MAX_DETECTIONS]
        self._known_oks: dict[tuple[int, int], Any] = {}

    def run_on(self, images: Sequence[int]) -> None:
        """Evaluates on these images; the library itself leaves the last set that it ran on in its parameters."""
        if not images or not self.params.catIds:
            self.eval = {"precision": np.full((1, 1, 1, 3, 1), -1.0), "recall": np.full((1, 1, 3, 1), -1.0)}
            return
        self.params.imgIds = list(images)
        self.evaluate()
        self.accumulate()

    def computeOks(self, image: int, category: int) -> Any:  # the library's name
        """OKS (D, G) of an image's detections, best first, and persons; computed the first time it is asked for."""
        key = (int(image), int(category))
        if key not in self._known_oks:
            self._known_oks[key] = super().computeOks(image, category)
        return self._known_oks[key]

    def average(self, what: str, *, threshold: float | None = None, area: str = "all") -> float:
        """Mean of `precision` or `recall` in percent, at one OKS threshold or over all, NaN where it is undefined."""
        values = self.eval[what][..., self.params.areaRngLbl.index(area), 0]
        if threshold is not None and len(values) > 1:
            values = values[np.isclose(self.params.iouThrs, threshold)]
        defined = values[values > -1]
        return 100.0 * float(np.mean(defined)) if defined.size else math.nan


def _coco(ground_truth: GroundTruth, annotations: Sequence[dict[str, Any]]) -> COCO:
    """The library's index over annotations or detections."""
    coco = COCO(print_function=_silent)
    coco.dataset = {
        "images": [{"id": number} for number in ground_truth.image_numbers.values()],
        "categories": [{"id": number} for number in ground_truth.category_numbers.values()],
        # Fresh dicts: the library writes marks of its own into them.
        "annotations": [dict(annotation) for annotation in annotations],
    }
    coco.createIndex()
    return coco
