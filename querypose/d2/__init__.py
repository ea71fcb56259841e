"""The seam: every detectron2 name that the project uses, from detectron2 itself or from the built-in part of it.

detectron2 is taken where it can be imported; the environment variable QUERYPOSE_ENGINE, "detectron2" or "builtin",
forces one. Nothing outside of this package imports either of them.

Attributes:
    ENGINE: which one is active, "detectron2" or "builtin".
    ENGINE_VERSION: its version.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from querypose.d2.engine_choice import choose_engine
from querypose.d2.errors import CheckpointError
from querypose.d2.files import atomic_write, read_checkpoint
from querypose.d2.plain_values import to_plain
from querypose.d2.processes import RunStopped, run_and_leave

ENGINE, ENGINE_VERSION = choose_engine()

# The names themselves are the list at the end. For a type checker they are the built-in ones, which are always there.
if TYPE_CHECKING or ENGINE == "builtin":
    from querypose.d2.builtin import *  # noqa: F403
else:
    from querypose.d2.upstream import *  # noqa: F403

# fmt: off
__all__ = [  # noqa: F405
    "ENGINE",
    "ENGINE_VERSION",
    "BACKBONE_REGISTRY",
    "LR_SCHEDULES",
    "META_ARCH_REGISTRY",
    "Backbone",
    "BoxMode",
    "Boxes",
    "CfgNode",
    "CheckpointError",
    "Checkpointer",
    "CommonMetricPrinter",
    "DatasetCatalog",
    "DatasetEvaluator",
    "DatasetEvaluators",
    "DatasetFromList",
    "DefaultPredictor",
    "DefaultTrainer",
    "DetectionCheckpointer",
    "EventStorage",
    "EventWriter",
    "HookBase",
    "ImageList",
    "Instances",
    "JSONWriter",
    "Keypoints",
    "MetadataCatalog",
    "PathManager",
    "PeriodicCheckpointer",
    "Registry",
    "RunStopped",
    "ShapeSpec",
    "SimpleTrainer",
    "TensorboardXWriter",
    "TrainerBase",
    "atomic_write",
    "build_backbone",
    "build_detection_test_loader",
    "build_detection_train_loader",
    "build_lr_scheduler",
    "build_model",
    "comm",
    "configurable",
    "create_ddp_model",
    "default_argument_parser",
    "default_setup",
    "get_cfg",
    "get_event_storage",
    "hooks",
    "inference_on_dataset",
    "launch",
    "pairwise_iou",
    "print_csv_format",
    "read_checkpoint",
    "run_and_leave",
    "seed_all_rng",
    "setup_logger",
    "to_plain",
    "verify_results",
]
# fmt: on
