"""The same names from detectron2. Importing this module fails where detectron2 is missing."""

from __future__ import annotations

import functools
import warnings
from typing import Any

from querypose.d2.files import read_checkpoint, refuse_pickle
from querypose.d2.processes import run_and_leave

with warnings.catch_warnings():
    # detectron2 and what it imports (fvcore.nn, torch.jit, pkg_resources, PIL) use functions that newer versions of
    # their libraries warn about: at import, all of them deprecations, which only detectron2 could mend.
    warnings.simplefilter("ignore", DeprecationWarning)
    warnings.simplefilter("ignore", FutureWarning)
    warnings.simplefilter("ignore", SyntaxWarning)
    import detectron2
    from detectron2.checkpoint import DetectionCheckpointer as _DetectionCheckpointer
    from detectron2.config import CfgNode, configurable, get_cfg
    from detectron2.data import DatasetCatalog, MetadataCatalog
    from detectron2.engine import (
        DefaultTrainer,
        HookBase,
        TrainerBase,
        default_argument_parser,
        default_setup,
        hooks,
    )
    from detectron2.engine import launch as _launch
    from detectron2.evaluation import DatasetEvaluator, verify_results
    from detectron2.layers import ShapeSpec
    from detectron2.modeling import BACKBONE_REGISTRY, META_ARCH_REGISTRY, Backbone, build_backbone, build_model
    from detectron2.solver import LRMultiplier
    from detectron2.structures import Boxes, BoxMode, ImageList, Instances, Keypoints
    from detectron2.utils import comm
    from detectron2.utils.env import seed_all_rng
    from detectron2.utils.events import (
        EventStorage,
        EventWriter,
        JSONWriter,
        TensorboardXWriter,
        get_event_storage,
    )
    from detectron2.utils.file_io import PathManager
    from detectron2.utils.logger import setup_logger
    from detectron2.utils.registry import Registry

VERSION: str = detectron2.__version__

# Of the schedules of detectron2's `build_lr_scheduler`, which has no table of them, those that need no further keys.
LR_SCHEDULES = dict.fromkeys(("WarmupMultiStepLR", "WarmupCosineLR"))


class DetectionCheckpointer(_DetectionCheckpointer):
    """detectron2's, which never runs code that a file brings."""

    def _load_file(self, filename: str) -> Any:
        refuse_pickle(filename)
        return super()._load_file(filename)

    def _torch_load(self, f: str) -> Any:
        return read_checkpoint(f)


def launch(main_func: Any, num_gpus_per_machine: int, num_machines: int = 1, *args: Any, **kwargs: Any) -> None:
    """detectron2's function, whose processes leave their group in the end: at times they aborted on leaving."""
    if num_gpus_per_machine * num_machines > 1:
        main_func = functools.partial(run_and_leave, _run_and_forget_groups, main_func)
    _launch(main_func, num_gpus_per_machine, num_machines, *args, **kwargs)


def _run_and_forget_groups(main_func: Any, *args: Any) -> None:
    try:
        main_func(*args)
    finally:
        # detectron2 keeps two groups in its module, for as long as the process lives.
        comm._get_global_gloo_group.cache_clear()
        comm._LOCAL_PROCESS_GROUP = None
