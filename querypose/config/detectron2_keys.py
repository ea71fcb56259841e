"""detectron2's own keys, and which of them a run on detectron2 reads.

A config that was written on detectron2 has all of them; it must load where detectron2 is not installed too.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from querypose import d2
from querypose.config.keys import leaf_names, lookup
from querypose.d2 import CfgNode, comm

# Keys, and sections as a whole, of detectron2's default config that are no keys here.
_KEYS_OF_DETECTRON2 = (
    "DATALOADER.REPEAT_SQRT",
    "DATALOADER.REPEAT_THRESHOLD",
    "DATALOADER.SAMPLER_TRAIN",
    "DATASETS.PRECOMPUTED_PROPOSAL_TOPK_TEST",
    "DATASETS.PRECOMPUTED_PROPOSAL_TOPK_TRAIN",
    "DATASETS.PROPOSAL_FILES_TEST",
    "DATASETS.PROPOSAL_FILES_TRAIN",
    "FLOAT32_PRECISION",
    "GLOBAL",
    "INPUT.CROP.ENABLED",
    "INPUT.CROP.TYPE",
    "INPUT.MASK_FORMAT",
    "INPUT.MIN_SIZE_TRAIN_SAMPLING",
    "MODEL.ANCHOR_GENERATOR",
    "MODEL.FPN.FUSE_TYPE",
    "MODEL.FPN.IN_FEATURES",
    "MODEL.KEYPOINT_ON",
    "MODEL.LOAD_PROPOSALS",
    "MODEL.MASK_ON",
    "MODEL.PANOPTIC_FPN",
    "MODEL.PROPOSAL_GENERATOR",
    "MODEL.RESNETS",
    "MODEL.RETINANET",
    "MODEL.ROI_BOX_CASCADE_HEAD",
    "MODEL.ROI_BOX_HEAD",
    "MODEL.ROI_HEADS",
    "MODEL.ROI_KEYPOINT_HEAD",
    "MODEL.ROI_MASK_HEAD",
    "MODEL.RPN",
    "MODEL.SEM_SEG_HEAD",
    "SOLVER.BASE_LR_END",
    "SOLVER.BIAS_LR_FACTOR",
    "SOLVER.CLIP_GRADIENTS.CLIP_TYPE",
    "SOLVER.MOMENTUM",
    "SOLVER.NESTEROV",
    "SOLVER.NUM_DECAYS",
    "SOLVER.REFERENCE_WORLD_SIZE",
    "SOLVER.RESCALE_INTERVAL",
    "TEST.AUG",
    "TEST.KEYPOINT_OKS_SIGMAS",
    "TEST.PRECISE_BN",
    "VIS_PERIOD",
)

# Those that its schedules, its setup and `PoseTrainer` read, where detectron2 is the engine.
_READ_ON_DETECTRON2 = (
    "FLOAT32_PRECISION",
    "SOLVER.BASE_LR_END",
    "SOLVER.REFERENCE_WORLD_SIZE",
    "SOLVER.RESCALE_INTERVAL",
)


def is_key_of_detectron2(name: str) -> bool:
    """Whether it is one of detectron2's keys that are no keys here, or a section of them."""
    return _entry(name) is not None


def warn_of_unread_keys(cfg: CfgNode, left_out: Sequence[str]) -> None:
    """Logs one warning with the keys of detectron2 that a config sets without effect.

    Args:
        cfg: merged, with what `MODEL.META_ARCHITECTURE` and `MODEL.BACKBONE.NAME` are.
        left_out: names that `cfg` had no place for, since detectron2 is not the engine.
    """
    logger = logging.getLogger(__name__)
    if not comm.is_main_process():
        return
    if left_out:
        named = ", ".join(dict.fromkeys(_entry(name) or name for name in left_out))
        logger.warning(
            f"The config sets {len(left_out)} keys and sections that only detectron2 has; they are left out, because "
            f"the engine of this run is {d2.ENGINE}: {named}."
        )
    if d2.ENGINE == "detectron2" and (unread := _unread(cfg)):
        named = ", ".join(f"{name} ({lookup(cfg, name)!r})" for name in unread)
        logger.warning(
            f"The config sets keys of detectron2 that nothing in this project reads: {named}. They have no effect; "
            "docs/config.md lists the keys that have one."
        )


def _unread(cfg: CfgNode) -> list[str]:
    """Keys of detectron2 with another value than its default that no part of the run reads."""
    defaults = d2.get_cfg()
    model = d2.META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE)
    backbone = d2.BACKBONE_REGISTRY.get(cfg.MODEL.BACKBONE.NAME)
    read: tuple[str, ...] = _READ_ON_DETECTRON2
    if any(part.__module__.startswith("detectron2.") for part in (model, backbone)):
        read += ("MODEL",)
    return [
        name
        for name in leaf_names(cfg)
        if is_key_of_detectron2(name)
        and not _entry(name, read)
        and _as_lists(lookup(cfg, name)) != _as_lists(lookup(defaults, name))
    ]


def _as_lists(value: Any) -> Any:
    """`value` as YAML gives it: YAML has no tuples."""
    return [_as_lists(element) for element in value] if isinstance(value, list | tuple) else value


def _entry(name: str, entries: Sequence[str] = _KEYS_OF_DETECTRON2) -> str | None:
    """The key itself, or the section that it is in, where `entries` have one of them."""
    return next((entry for entry in entries if f"{name}.".startswith(f"{entry}.")), None)
