"""The registry of metrics. A metric is a function of annotations and detections:

    @METRIC_REGISTRY.register()
    def found_heads(annotations: PoseAnnotations, detections: Detections) -> dict[str, float]:
        ...
        return {"heads": 97.5, "heads50": 99.1}

It returns percentages by name, the main metric first, NaN for an undefined one. The evaluator also calls it before the
inference, without any detection: a metric that cannot use the annotations raises an `EvaluationError` then, and no
inference is wasted. A dataset's metadata names its metric (`evaluator_type`), and TEST.METRICS adds more.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping

import numpy as np

from querypose.d2 import MetadataCatalog, Registry
from querypose.data.coco import PoseAnnotations
from querypose.evaluation.detections import Detections, EvaluationError, Poses

Metric = Callable[[PoseAnnotations, Detections], dict[str, float]]

METRIC_REGISTRY = Registry("METRIC")

# The task of the dataset's own metric in the results; a further metric's task is its name.
MAIN_TASK = "keypoints"


def find_metric(name: str, where: str) -> Metric:
    """A registered metric.

    Raises:
        EvaluationError: there is none of that name; names the place `where` it was asked for.
    """
    if name not in METRIC_REGISTRY:
        known = ", ".join(known for known, _ in METRIC_REGISTRY)
        remedy = "use one of these, or import the module with your own"
        raise EvaluationError(f"{where} is {name!r}, but the registered metrics are {known}", remedy)
    metric: Metric = METRIC_REGISTRY.get(name)
    return metric


def metrics_of_dataset(dataset_name: str, further: Iterable[str] = ()) -> dict[str, Metric]:
    """The metrics that a dataset is evaluated by, by task.

    Args:
        dataset_name: a registered dataset.
        further: names of metrics besides its own, see TEST.METRICS.

    Raises:
        EvaluationError: one is not registered.
    """
    own = MetadataCatalog.get(dataset_name).evaluator_type
    metrics = {MAIN_TASK: find_metric(own, f"evaluator of dataset {dataset_name!r}")}
    return metrics | {name: find_metric(name, "TEST.METRICS") for name in further if name != own}


def require_persons(annotations: PoseAnnotations) -> None:
    """Refuses annotations with which nothing can be compared.

    Raises:
        EvaluationError: there are none, or none is a person to be found.
    """
    remedy = "use the json of another split, or correct this one"
    if not annotations.has_annotations:
        raise EvaluationError(f"{annotations.path} has no 'annotations' to compare with", remedy)
    if not (annotations.is_usable & ~annotations.is_crowd & (annotations.num_keypoints > 0)).any():
        raise EvaluationError(
            f"{annotations.path}: none of its {len(annotations.ids)} annotations is a person with a box in its image "
            "and a labeled keypoint, so that there is nothing to measure",
            remedy,
        )


def require_usable(annotations: PoseAnnotations, metrics: Mapping[str, Metric]) -> list[str]:
    """Runs the metrics, given by task, without any detection.

    Returns:
        the name of each of their values, as "task/metric"; none where there are no annotations: a server evaluates.

    Raises:
        EvaluationError: nobody is there to be found, or a metric cannot use the annotations.
    """
    if not annotations.has_annotations:
        return []
    require_persons(annotations)
    nothing = Detections(np.zeros(0, np.int64), Poses.joined((), annotations.skeleton.num_keypoints))
    return [f"{task}/{name}" for task, metric in metrics.items() for name in metric(annotations, nothing)]


def format_metrics(metrics: Mapping[str, float], title: str = "") -> str:
    """A table of percentages for logs and terminals: one line of names, one of values."""
    values = {name: "-" if math.isnan(value) else f"{value:.2f}" for name, value in metrics.items()}
    widths = {name: max(len(name), len(value), 5) for name, value in values.items()}
    rows = [
        " | ".join(name.center(widths[name]) for name in values),
        "-+-".join("-" * widths[name] for name in values),
        " | ".join(value.rjust(widths[name]) for name, value in values.items()),
    ]
    return "\n".join(([title] if title else []) + [f" {row}" for row in rows])
