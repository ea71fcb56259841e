"""OKS evaluation by the protocols of COCO and CrowdPose."""

from querypose.evaluation import config as config
from querypose.evaluation.evaluator import (
    RESULTS_FILE,
    PoseEvaluator,
    build_pose_evaluator,
    dataset_category_ids,
    inference_folder,
    instances_to_results,
    read_json,
    write_json,
)
from querypose.evaluation.ground_truth import (
    EvaluationError,
    GroundTruth,
    Protocol,
    read_detections,
    read_ground_truth,
)
from querypose.evaluation.oks import METRICS, evaluate_oks, format_metrics

__all__ = [
    "METRICS",
    "RESULTS_FILE",
    "EvaluationError",
    "GroundTruth",
    "PoseEvaluator",
    "Protocol",
    "build_pose_evaluator",
    "dataset_category_ids",
    "evaluate_oks",
    "format_metrics",
    "inference_folder",
    "instances_to_results",
    "read_detections",
    "read_ground_truth",
    "read_json",
    "write_json",
]
