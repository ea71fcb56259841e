"""The part of detectron2 that this project uses, for where detectron2 is not installed.

Names, arguments, files on disk and errors are detectron2's, so that the code above the seam cannot tell the two apart
(where detectron2 asserts, this raises AssertionError with a message that helps). Written from the documented behaviour;
a deviation is stated where it is, after "Deviates:". Nothing outside of `querypose.d2` imports this package.
"""

from __future__ import annotations

from querypose.d2.builtin import comm, hooks
from querypose.d2.builtin.boxes import Boxes, BoxMode, pairwise_iou
from querypose.d2.builtin.catalog import DatasetCatalog, MetadataCatalog
from querypose.d2.builtin.checkpoint import Checkpointer, DetectionCheckpointer, PeriodicCheckpointer
from querypose.d2.builtin.config import CfgNode, configurable, get_cfg
from querypose.d2.builtin.defaults import create_ddp_model, default_argument_parser, default_setup
from querypose.d2.builtin.env import seed_all_rng
from querypose.d2.builtin.evaluation import (
    DatasetEvaluator,
    DatasetEvaluators,
    inference_on_dataset,
    print_csv_format,
    verify_results,
)
from querypose.d2.builtin.events import EventStorage, get_event_storage
from querypose.d2.builtin.file_io import PathManager
from querypose.d2.builtin.launch import launch
from querypose.d2.builtin.loader import DatasetFromList, build_detection_test_loader, build_detection_train_loader
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
from querypose.d2.builtin.predictor import DefaultPredictor
from querypose.d2.builtin.schedule import LR_SCHEDULES, build_lr_scheduler
from querypose.d2.builtin.structures import ImageList, Instances, Keypoints
from querypose.d2.builtin.train_loop import HookBase, SimpleTrainer, TrainerBase
from querypose.d2.builtin.trainer import DefaultTrainer
from querypose.d2.builtin.writers import CommonMetricPrinter, EventWriter, JSONWriter, TensorboardXWriter

__version__ = "1.0"
