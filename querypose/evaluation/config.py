"""Keys of inference and evaluation."""

from __future__ import annotations

from querypose.config import (
    ConfigError,
    Key,
    add_keys,
    at_least,
    below,
    is_finite,
    list_of_names,
    part_list,
    registered,
)
from querypose.d2 import CfgNode
from querypose.evaluation.finishing import FINISHING_REGISTRY
from querypose.evaluation.oks import METRIC_REGISTRY
from querypose.layers.precision import PRECISIONS


def check_expected_results(cfg: CfgNode) -> None:
    """Refuses expected results that are none, or that could be those of several datasets."""
    for row in cfg.TEST.EXPECTED_RESULTS:
        has_shape = isinstance(row, list | tuple) and len(row) == 4 and all(isinstance(name, str) for name in row[:2])
        if not has_shape or not all(map(is_finite, row[2:])) or row[3] < 0:
            raise ConfigError(
                f"TEST.EXPECTED_RESULTS has {row!r}; allowed: [task, metric, value, tolerance], such as "
                "['keypoints', 'AP', 64.2, 0.5]."
            )
    if cfg.TEST.EXPECTED_RESULTS and len(cfg.DATASETS.TEST) != 1:
        raise ConfigError(
            f"TEST.EXPECTED_RESULTS needs one dataset, but DATASETS.TEST is {list(cfg.DATASETS.TEST)}; name one "
            "dataset there, or set TEST.EXPECTED_RESULTS []."
        )


def check_evaluators(cfg: CfgNode) -> None:
    """Refuses custom datasets whose metric is not registered."""
    for entry in cfg.DATASETS.CUSTOM:
        name = entry.get("evaluator", "coco")
        if not isinstance(name, str) or name not in METRIC_REGISTRY:
            known = ", ".join(known for known, _ in METRIC_REGISTRY)
            raise ConfigError(
                f"DATASETS.CUSTOM, entry {entry.get('name', '?')!r}: evaluator is {name!r}; allowed: {known}. For a "
                "metric of your own, name its module in IMPORTS."
            )


def check_early_stopping(cfg: CfgNode) -> None:
    """Refuses to stop early where nothing is evaluated on the way."""
    if cfg.TEST.EARLY_STOPPING.PATIENCE and not (cfg.TEST.EVAL_PERIOD or cfg.TEST.EVAL_EPOCHS):
        raise ConfigError(
            "TEST.EARLY_STOPPING.PATIENCE counts evaluations, but TEST.EVAL_PERIOD and TEST.EVAL_EPOCHS are 0; set one "
            "of them, or PATIENCE 0."
        )


def check_evaluation(cfg: CfgNode) -> None:
    """Runs the checks of this file."""
    check_expected_results(cfg)
    check_evaluators(cfg)
    check_early_stopping(cfg)


# fmt: off
add_keys((
    Key("TEST.EVAL_PERIOD", 0, "iterations between two evaluations while training; 0: at the end alone", at_least(0)),
    Key("TEST.EVAL_EPOCHS", 0.0, "epochs between two evaluations, in place of EVAL_PERIOD", at_least(0),
        instead_of="TEST.EVAL_PERIOD"),
    Key("TEST.IMS_PER_BATCH", 1, "images per evaluation batch and process; 1 pads to the stride only", at_least(1)),
    Key("TEST.DETECTIONS_PER_IMAGE", 20, "poses kept per image; the COCO protocol counts 20", at_least(1)),
    Key("TEST.SCORE_THRESHOLD", 0.0, "poses with a score not above it are left out, and not computed; above 0 costs AP",
        below(0, 1)),
    Key("TEST.PRECISION", "float32", "of the forward pass in inference; geometry and regressors stay float32",
        registered(PRECISIONS, without=("float16",))),
    Key("TEST.COMPILE", False, "compile backbone and decoder stages for inference; pays where there are many images"),
    Key("TEST.BEST_METRIC", "keypoints",
        "its best weights stay as model_best.pth: a metric such as keypoints/AP, or a task, of which the first one "
        "counts (keypoints: the dataset's own, AP or MPII's PCKh); of several datasets the first one's; '' keeps none"),
    Key("TEST.EARLY_STOPPING.PATIENCE", 0,
        "evaluations without a new best value after which the training ends; 0: it runs to its end", at_least(0)),
    Key("TEST.EARLY_STOPPING.METRIC", "progress/OKS", "the value that must rise; of several datasets the first one's"),
    Key("TEST.METRICS", ["progress"], "registered metrics besides the dataset's own; each is a task of the results. "
        "progress moves while AP is still 0: mean OKS, PCK, AP50 of boxes, share of persons found",
        list_of_names(METRIC_REGISTRY)),
    Key("TEST.FINISHING", [], "steps for the poses of an image before its metrics, such as {name: oks_nms}",
        part_list(FINISHING_REGISTRY, given=("skeleton",))),
    Key("TEST.PICTURES", 0, "images of every test dataset that each evaluation draws, always the same, into "
        "OUTPUT_DIR/pictures (with an animation) and for TensorBoard; 0: none", at_least(0)),
    Key("TEST.EXPECTED_RESULTS", [], "[task, metric, value, tolerance] that the final evaluation must meet"),
), check_evaluation)
# fmt: on
