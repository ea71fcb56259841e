"""The seam: every detectron2 name that the project uses, from detectron2 itself or from the built-in part of it.

detectron2 is taken where it can be imported; the environment variable QUERYPOSE_ENGINE, "detectron2" or "builtin",
forces one. Nothing outside of this package imports either of them.

The built-in part holds what the product reaches, and no more. What a user's own model, dataset, metric or hook has in
its hands (`FOR_USERS`) has all the methods that detectron2 documents, save where a docstring says "Deviates:".

Attributes:
    ENGINE: which one is active, "detectron2" or "builtin".
    ENGINE_VERSION: its version.
    FOR_USERS: names that are offered to users' own code, whether or not this project uses all of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from querypose.d2.download import download
from querypose.d2.engine_choice import choose_engine
from querypose.d2.errors import CheckpointError
from querypose.d2.files import atomic_write, check_weights, read_checkpoint
from querypose.d2.plain_values import to_plain
from querypose.d2.processes import RunStopped, run_and_leave

ENGINE, ENGINE_VERSION = choose_engine()
FOR_USERS = (
    "Backbone", "BoxMode", "Boxes", "DatasetCatalog", "EventStorage", "HookBase", "ImageList", "Instances", "Keypoints",
    "MetadataCatalog", "Registry",
)  # fmt: skip

# The names themselves are the list at the end. For a type checker they are the built-in ones, which are always there.
if TYPE_CHECKING or ENGINE == "builtin":
    from querypose.d2.builtin import *  # noqa: F403
else:
    from querypose.d2.upstream import *  # noqa: F403

# fmt: off
__all__ = [  # noqa: F405
    "ENGINE",
    "ENGINE_VERSION",
    "FOR_USERS",
    "BACKBONE_REGISTRY",
    "LR_SCHEDULES",
    "META_ARCH_REGISTRY",
    "Backbone",
    "BoxMode",
    "Boxes",
    "CfgNode",
    "CheckpointError",
    "DatasetCatalog",
    "DatasetEvaluator",
    "DefaultTrainer",
    "DetectionCheckpointer",
    "EventStorage",
    "EventWriter",
    "HookBase",
    "ImageList",
    "Instances",
    "JSONWriter",
    "Keypoints",
    "LRMultiplier",
    "MetadataCatalog",
    "PathManager",
    "Registry",
    "RunStopped",
    "ShapeSpec",
    "TensorboardXWriter",
    "TrainerBase",
    "atomic_write",
    "build_backbone",
    "build_model",
    "check_weights",
    "comm",
    "configurable",
    "default_argument_parser",
    "default_setup",
    "download",
    "get_cfg",
    "get_event_storage",
    "hooks",
    "launch",
    "read_checkpoint",
    "run_and_leave",
    "seed_all_rng",
    "setup_logger",
    "to_plain",
    "verify_results",
]
# fmt: on
