"""Evaluation: collects poses, finishes them, and scores them by registered metrics."""

from querypose.evaluation import config as config
from querypose.evaluation.detections import (
    Detections,
    EvaluationError,
    Poses,
    dataset_category_ids,
    detections_of,
    instances_to_results,
    read_detections,
    write_json,
)
from querypose.evaluation.early_metrics import progress as progress
from querypose.evaluation.evaluator import RESULTS_FILE, PoseEvaluator, inference_folder
from querypose.evaluation.finishing import FINISHING_REGISTRY, FinishingStep
from querypose.evaluation.metrics import (
    METRIC_REGISTRY,
    Metric,
    find_metric,
    format_metrics,
    metrics_of_dataset,
    require_persons,
    require_usable,
)
from querypose.evaluation.oks import METRICS
from querypose.evaluation.pckh import pckh as pckh

__all__ = [
    "FINISHING_REGISTRY",
    "METRICS",
    "METRIC_REGISTRY",
    "RESULTS_FILE",
    "Detections",
    "EvaluationError",
    "FinishingStep",
    "Metric",
    "PoseEvaluator",
    "Poses",
    "dataset_category_ids",
    "detections_of",
    "find_metric",
    "format_metrics",
    "inference_folder",
    "instances_to_results",
    "metrics_of_dataset",
    "read_detections",
    "require_persons",
    "require_usable",
    "write_json",
]
