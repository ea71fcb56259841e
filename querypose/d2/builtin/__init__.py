"""The part of detectron2 that this project uses, for where detectron2 is not installed.

Names, arguments, files on disk and errors are detectron2's, so that the code above the seam cannot tell the two apart
(where detectron2 asserts, this raises AssertionError with a message that helps). Written from the documented behavior;
a deviation is stated where it is, after "Deviates:". Nothing outside of `querypose.d2` imports this package.
"""

from __future__ import annotations

from querypose.d2.builtin import comm, hooks
from querypose.d2.builtin.boxes import Boxes, BoxMode
from querypose.d2.builtin.catalog import DatasetCatalog, MetadataCatalog
from querypose.d2.builtin.checkpoint import DetectionCheckpointer
from querypose.d2.builtin.config import CfgNode, configurable, get_cfg
from querypose.d2.builtin.defaults import default_argument_parser, default_setup, seed_all_rng
from querypose.d2.builtin.evaluation import DatasetEvaluator, verify_results
from querypose.d2.builtin.events import EventStorage, get_event_storage
from querypose.d2.builtin.file_io import PathManager
from querypose.d2.builtin.launch import launch
from querypose.d2.builtin.logger import setup_logger
from querypose.d2.builtin.modeling import (
    BACKBONE_REGISTRY,
    META_ARCH_REGISTRY,
    Backbone,
    Registry,
    ShapeSpec,
    build_backbone,
    build_model,
)
from querypose.d2.builtin.schedule import LR_SCHEDULES, LRMultiplier
from querypose.d2.builtin.structures import ImageList, Instances, Keypoints
from querypose.d2.builtin.train_loop import HookBase, TrainerBase
from querypose.d2.builtin.trainer import DefaultTrainer
from querypose.d2.builtin.writers import EventWriter, JSONWriter, TensorboardXWriter

__version__ = "1.0"
