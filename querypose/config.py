"""Every YAML key of the project: its default, its meaning, what it allows.

`KEYS` is the one list. `get_cfg()` turns it into a `CfgNode`; `load_config` merges a YAML file and command-line
overrides into it and refuses what is misspelt or impossible, naming the key, the value and what is allowed.

A key that detectron2 has too keeps detectron2's name and meaning; the default may differ (Sec. 4.1 of the paper).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from querypose import d2
from querypose.config_checks import (
    Allowed,
    ConfigError,
    Key,
    above,
    at_least,
    between,
    is_finite,
    one_of,
    sequence_of,
    validate_config,
)
from querypose.config_merging import merge_file, merge_overrides
from querypose.d2 import CfgNode

__all__ = ["KEYS", "ConfigError", "add_querypose_config", "get_cfg", "load_config"]

_NAME = Allowed("a name, not empty", lambda value: value != "" and "\0" not in value)
_SIZES = Allowed(
    "a list of positive integers (pixels), not empty",
    lambda value: (
        isinstance(value, list | tuple)
        and len(value) > 0
        and all(isinstance(size, int) and not isinstance(size, bool) and size > 0 for size in value)
    ),
)
_SHARES = sequence_of(
    "numbers in [0, 1], the smaller first", lambda value: is_finite(value) and 0 <= value <= 1, length=2
)
_THREE_NUMBERS = sequence_of("numbers, one per channel", is_finite, length=3)
_NAMES = sequence_of("names", lambda value: isinstance(value, str))
_MAPPINGS = sequence_of("mappings", lambda value: isinstance(value, dict))
_LR_FACTORS = sequence_of(
    "[part of a parameter's name, factor] pairs",
    lambda pair: isinstance(pair, list | tuple) and len(pair) == 2 and isinstance(pair[0], str) and is_finite(pair[1]),
)

# fmt: off
KEYS: tuple[Key, ...] = (
    # ---- run ----------------------------------------------------------------------------------------------------
    Key("OUTPUT_DIR", "./output", "folder that receives config.yaml, log.txt, metrics.json, checkpoints, inference/",
        _NAME),
    Key("SEED", -1, "seed of everything random; -1 draws one and logs it", between(-1, 2**32 - 1)),
    Key("DETERMINISTIC", False,
        "bit-identical runs on a GPU too: deterministic algorithms alone; an operation that has none is an error"),
    Key("CUDNN_BENCHMARK", False, "let cuDNN time its algorithms; faster where input sizes repeat"),
    Key("KEEP_FREED_MEMORY", True,
        "on a CPU: keep the memory of freed tensors for the next ones; faster, at the risk of a higher peak"),
    Key("LOG_PERIOD", 20, "iterations between two progress lines and two rows of metrics.json", at_least(1)),
    # ---- model --------------------------------------------------------------------------------------------------
    Key("MODEL.META_ARCHITECTURE", "QueryPose", "class in META_ARCH_REGISTRY"),
    Key("MODEL.DEVICE", "auto", "'auto' (a GPU where there is one, else the CPU), 'cpu', 'cuda' or 'cuda:N'"),
    Key("MODEL.WEIGHTS", "", "checkpoint to start from; '' starts from the initialisation"),
    Key("MODEL.PIXEL_MEAN", [123.675, 116.28, 103.53], "per channel, range 0..255, order of INPUT.FORMAT",
        _THREE_NUMBERS),
    Key("MODEL.PIXEL_STD", [58.395, 57.12, 57.375], "per channel, range 0..255, order of INPUT.FORMAT",
        sequence_of("numbers > 0, one per channel", lambda value: is_finite(value) and value > 0, length=3)),
    Key("MODEL.SYNC_BATCH_NORM", False, "every BatchNorm shares its statistics over the processes (GPU only)"),
    Key("MODEL.CHANNELS_LAST", False,
        "convolutions keep the channels of a cell side by side in memory (channels_last); equal but for rounding"),
    Key("MODEL.COMPILE", [],
        "components that torch.compile translates at their first call: backbone, box_decoder, keypoint_decoder",
        _NAMES),
    Key("MODEL.RECOMPUTE", [],
        "components whose activations the backward pass computes again instead of keeping them (activation "
        "checkpointing): less memory, more time; names as in MODEL.COMPILE", _NAMES),
    # ---- backbone -----------------------------------------------------------------------------------------------
    Key("MODEL.BACKBONE.NAME", "build_timm_fpn_backbone", "builder in BACKBONE_REGISTRY"),
    Key("MODEL.BACKBONE.ARCH", "resnet50", "timm model with features_only; for build_swin_fpn_backbone: swin_t/b/l"),
    Key("MODEL.BACKBONE.PRETRAINED", False,
        "start from ImageNet weights (timm's or torchvision's; needs network or cache), unless MODEL.WEIGHTS is set"),
    Key("MODEL.BACKBONE.NORM", "FrozenBN", "BatchNorm of the backbone: statistics and affine frozen, or trained",
        one_of("FrozenBN", "BN")),
    Key("MODEL.BACKBONE.FREEZE_AT", 2, "freeze the first N stages as detectron2 counts: 1 stem, 2 also res2; 0 none",
        one_of(0, 1, 2, 3, 4, 5)),
    Key("MODEL.BACKBONE.DROP_PATH_RATE", 0.0, "stochastic depth of the backbone", between(0.0, 1.0)),
    Key("MODEL.BACKBONE.OUTPUT_STRIDE", 32,
        "of the last features; less than 32 by dilation in place of stride (16 with ResNet-50: R50-DC5)",
        one_of(8, 16, 32)),
    Key("MODEL.BACKBONE.OUT_FEATURES", [],
        "features that the model gets: some of p2..p5, without a pyramid of c2..c5; [] is all of them", _NAMES),
    Key("MODEL.FPN.TYPE", "fpn",
        "pyramid: FPN, those that the QueryPose authors put on HRNet-W32 and HRNet-W48, or none: c2..c5 as they are",
        one_of("fpn", "hrfpn", "hrfpn_v1", "none")),
    Key("MODEL.FPN.OUT_CHANNELS", 256, "channels of P2..P5, and width of QueryPose's instance queries", at_least(1)),
    Key("MODEL.FPN.NORM", "", "normalisation of the FPN convolutions: none, group norm, or batch norm",
        one_of("", "GN", "BN")),
    # ---- QueryPose ----------------------------------------------------------------------------------------------
    Key("MODEL.QUERYPOSE.NUM_QUERIES", 100, "instance queries (with a proposal box each) per image", at_least(1)),
    Key("MODEL.QUERYPOSE.PROPOSAL_INIT", "image",
        "where the learned proposal boxes start: all on the whole image, or on a grid", one_of("image", "grid")),
    Key("MODEL.QUERYPOSE.NUM_STAGES", 6, "stages of box and keypoint decoder (S)", at_least(1)),
    Key("MODEL.QUERYPOSE.NUM_HEADS", 8, "heads of every self-attention", at_least(1)),
    Key("MODEL.QUERYPOSE.DIM_FEEDFORWARD", 2048, "hidden width of every feed-forward network", at_least(1)),
    Key("MODEL.QUERYPOSE.DIM_DYNAMIC", 64, "inner width of the dynamic interaction", at_least(1)),
    Key("MODEL.QUERYPOSE.PRIOR_PROB", 0.01, "class score of every query at initialisation", between(1e-6, 0.999999)),
    Key("MODEL.QUERYPOSE.INSTANCE_QUERY_ITERATION", "box",
        "path of the instance query: box decoder only (Figure 3a), or serially through both decoders (Figure 3b)",
        one_of("box", "serial")),
    Key("MODEL.QUERYPOSE.TRAIN_QUERIES", "auto",
        "queries the keypoint decoder trains on; auto: matched for iteration 'box', all for 'serial'",
        one_of("auto", "matched", "all")),
    Key("MODEL.QUERYPOSE.TEST_QUERIES", 0,
        "queries an image that the keypoint decoder runs on in inference, the best by class score (iteration 'serial': "
        "at each stage); 0: all that can change the result; more than 0 may cost AP", at_least(0)),
    Key("MODEL.QUERYPOSE.MASK_PADDING", True,
        "the decoder reads zeros where the batch was padded; False as in the authors' code"),
    Key("MODEL.QUERYPOSE.BOX.IN_FEATURES", ["p2", "p3", "p4", "p5"], "levels the box decoder pools from", _NAMES),
    Key("MODEL.QUERYPOSE.BOX.POOLER_RESOLUTION", 7, "side of the box region features, in cells", at_least(1)),
    Key("MODEL.QUERYPOSE.BOX.NUM_CLS_LAYERS", 1, "linear layers before the class logit", at_least(0)),
    Key("MODEL.QUERYPOSE.BOX.NUM_REG_LAYERS", 3, "linear layers before the box deltas", at_least(0)),
    Key("MODEL.QUERYPOSE.KEYPOINT.IN_FEATURE", "p2", "the level the keypoint decoder pools from"),
    Key("MODEL.QUERYPOSE.KEYPOINT.POOLER_RESOLUTION", 14, "side of the keypoint region features, in cells",
        at_least(1)),
    Key("MODEL.QUERYPOSE.KEYPOINT.NUM_CONVS", 6, "3x3 convolutions on the keypoint region", at_least(1)),
    Key("MODEL.QUERYPOSE.KEYPOINT.CONV_DIM", 512, "inner width of those convolutions", at_least(1)),
    Key("MODEL.QUERYPOSE.KEYPOINT.QUERY_TYPE", "part",
        "what keypoints are regressed from: part queries, the instance query (Table 1), or the region alone (Table 2b)",
        one_of("part", "instance", "none")),
    Key("MODEL.QUERYPOSE.KEYPOINT.INTERACTION", "spatial_attention",
        "how queries read the keypoint region (Table 1); spatial_attention is SPEGM for part queries",
        one_of("spatial_attention", "self_attention", "dynamic_channel", "dynamic_spatial", "average_pooling")),
    Key("MODEL.QUERYPOSE.KEYPOINT.PART_DIM", 128, "width of a part query (Table 2c)", at_least(1)),
    Key("MODEL.QUERYPOSE.KEYPOINT.PART_SCHEME", "",
        "part division of the skeleton, by name (Figure 4, Table 2d); '' is the skeleton's default"),
    Key("MODEL.QUERYPOSE.KEYPOINT.ITERATION", "selective", "update of the part queries from stage to stage (Table 2a)",
        one_of("none", "summation", "concatenation", "selective")),
    Key("MODEL.QUERYPOSE.KEYPOINT.DYNAMIC_INTERACTION", False,
        "refine the instance query by a dynamic interaction in the keypoint stage (the full version)"),
    Key("MODEL.QUERYPOSE.FLOW.NUM_COUPLINGS", 6, "affine couplings of the RealNVP flow", at_least(1)),
    Key("MODEL.QUERYPOSE.FLOW.DIM_HIDDEN", 64, "hidden width of the flow's networks", at_least(1)),
    Key("MODEL.QUERYPOSE.MATCHER.COST_CLASS", 2.0, "weight of the class cost in the matching", at_least(0)),
    Key("MODEL.QUERYPOSE.MATCHER.COST_BBOX", 5.0, "weight of the L1 box cost in the matching", at_least(0)),
    Key("MODEL.QUERYPOSE.MATCHER.COST_GIOU", 2.0, "weight of the GIoU cost in the matching", at_least(0)),
    Key("MODEL.QUERYPOSE.LOSS.CLS_WEIGHT", 2.0, "weight of loss_cls (Sec. 3.4)", at_least(0)),
    Key("MODEL.QUERYPOSE.LOSS.BBOX_WEIGHT", 5.0, "weight of loss_bbox, the L1 loss", at_least(0)),
    Key("MODEL.QUERYPOSE.LOSS.GIOU_WEIGHT", 2.0, "weight of loss_giou", at_least(0)),
    Key("MODEL.QUERYPOSE.LOSS.KEYPOINT_WEIGHT", 1.0, "weight of loss_keypoint", at_least(0)),
    Key("MODEL.QUERYPOSE.LOSS.HEATMAP_WEIGHT", 0.0,
        "weight of loss_heatmap, auxiliary keypoint heat maps (end of Sec. 4.3); 0: none; the authors' code has 0.5",
        at_least(0)),
    Key("MODEL.QUERYPOSE.LOSS.FOCAL_ALPHA", 0.25, "alpha of the focal loss and of the class cost", between(0, 1)),
    Key("MODEL.QUERYPOSE.LOSS.FOCAL_GAMMA", 2.0, "gamma of the focal loss and of the class cost",
        # The gradient of a power below 1 is infinite at a query that is certain.
        Allowed("0, or a number >= 1", lambda value: is_finite(value) and (value == 0 or value >= 1))),
    Key("MODEL.QUERYPOSE.LOSS.DEEP_SUPERVISION", True, "losses at every stage, not at the last alone"),
    # ---- POET ---------------------------------------------------------------------------------------------------
    Key("MODEL.POET.NUM_QUERIES", 25, "queries (N prediction slots) per image", at_least(1)),
    Key("MODEL.POET.DIM", 256, "width of the transformer; a multiple of 4 and of NUM_HEADS", at_least(4)),
    Key("MODEL.POET.NUM_HEADS", 8, "heads of every attention", at_least(1)),
    Key("MODEL.POET.DIM_FEEDFORWARD", 2048, "hidden width of every feed-forward network", at_least(1)),
    Key("MODEL.POET.NUM_ENCODER_LAYERS", 6, "layers of the encoder", at_least(0)),
    Key("MODEL.POET.NUM_DECODER_LAYERS", 6, "layers of the decoder", at_least(1)),
    Key("MODEL.POET.DROPOUT", 0.1, "of the transformer", between(0, 0.999)),
    Key("MODEL.POET.EMPTY_CLASS", False,
        "a third class, for persons without a visible keypoint, as in the authors' code; their weights need it"),
    Key("MODEL.POET.LOSS.TERMS", "paper", "terms of loss and matching: those of eq. 3, or those of the authors' code",
        one_of("paper", "released")),
    Key("MODEL.POET.LOSS.CENTER_IN_OFFSETS", False, "the centre's L1 distance in the offset term too (Table 3)"),
    Key("MODEL.POET.LOSS.CLS_WEIGHT", 1.0, "weight of loss_cls; like the others in matching too", at_least(0)),
    Key("MODEL.POET.LOSS.KEYPOINT_WEIGHT", 4.0, "weight of loss_keypoint, absolute positions (λ_abs)", at_least(0)),
    Key("MODEL.POET.LOSS.VISIBILITY_WEIGHT", 0.2, "weight of loss_visibility (λ_vis)", at_least(0)),
    Key("MODEL.POET.LOSS.CENTER_WEIGHT", 0.5, "weight of loss_center (λ_ctr)", at_least(0)),
    Key("MODEL.POET.LOSS.OFFSET_WEIGHT", 0.5, "weight of loss_offset (λ_deltas)", at_least(0)),
    Key("MODEL.POET.LOSS.NO_OBJECT_WEIGHT", 0.1, "weight of the queries without a person in loss_cls", above(0)),
    Key("MODEL.POET.LOSS.DEEP_SUPERVISION", True, "losses at every decoder layer, not at the last alone"),
    # ---- data ---------------------------------------------------------------------------------------------------
    Key("DATASETS.TRAIN", [], "names of registered datasets; all of one skeleton", _NAMES),
    Key("DATASETS.TEST", [], "names of registered datasets; all of one skeleton", _NAMES),
    Key("DATASETS.CUSTOM", [],
        "your datasets: list of {name, json, images, skeleton} and, if not coco, evaluator: crowdpose", _MAPPINGS),
    Key("DATASETS.SKELETONS", [],
        "your skeletons: list of {name, keypoints, flip_pairs, sigmas, edges, part_schemes, default_part_scheme}",
        _MAPPINGS),
    Key("DATASETS.CHECK", "annotations",
        "before training, refuse datasets with errors: in the json files; with 'files' also in the images' headers",
        one_of("off", "annotations", "files")),
    Key("DATALOADER.NUM_WORKERS", 4, "loader processes per training process; 0 loads in the main one", at_least(0)),
    Key("DATALOADER.MAX_BAD_IMAGES", 0.01,
        "share of the training images that may be unreadable: each is skipped with a warning, more are an error",
        between(0, 1)),
    Key("DATALOADER.ASPECT_RATIO_GROUPING", True, "put landscape with landscape and portrait with portrait images"),
    Key("DATALOADER.FILTER_EMPTY_ANNOTATIONS", True, "do not train on images without any annotated person"),
    Key("DATALOADER.MIN_VISIBLE_KEYPOINTS", 0,
        "do not train on persons with fewer visible keypoints, before and after augmentation", at_least(0)),
    Key("INPUT.FORMAT", "RGB", "channel order that the model sees", one_of("RGB", "BGR")),
    Key("INPUT.MIN_SIZE_TRAIN", list(range(480, 801, 32)), "short side, drawn from these, in pixels", _SIZES),
    Key("INPUT.MAX_SIZE_TRAIN", 1333, "bound of the long side, in pixels", at_least(1)),
    Key("INPUT.MIN_SIZE_TEST", 800, "short side, in pixels; 0 keeps the image's size", at_least(0)),
    Key("INPUT.MAX_SIZE_TEST", 1333, "bound of the long side, in pixels", at_least(1)),
    Key("INPUT.RANDOM_FLIP", "horizontal", "mirror half of the training images", one_of("horizontal", "none")),
    Key("INPUT.ROTATION.PROBABILITY", 0.0, "probability of turning a training image about its centre", between(0, 1)),
    Key("INPUT.ROTATION.MAX_DEGREES", 25.0, "greatest angle, either way", between(0, 180)),
    Key("INPUT.COARSE_DROPOUT.PROBABILITY", 0.0, "probability of painting cells of a training image black",
        between(0, 1)),
    Key("INPUT.COARSE_DROPOUT.SHARE", [0.05, 0.2], "bounds of the share of cells", _SHARES),
    Key("INPUT.COARSE_DROPOUT.GRID", [0.015, 0.03], "bounds of cells along a side, as a share of its pixels", _SHARES),
    Key("INPUT.COARSE_DROPOUT.PER_CHANNEL", 0.5, "probability that channels lose different cells", between(0, 1)),
    Key("INPUT.CROP.PROBABILITY", 0.5, "probability of resizing to CROP.MIN_SIZE and cropping first", between(0, 1)),
    Key("INPUT.CROP.MIN_SIZE", [400, 500, 600], "short side before the crop, drawn from these, in pixels", _SIZES),
    Key("INPUT.CROP.SIZE", [384, 600], "bounds of height and width of the crop, in pixels",
        sequence_of("positive integers, the smaller first",
                     lambda value: isinstance(value, int) and value > 0, length=2)),
    # ---- solver -------------------------------------------------------------------------------------------------
    Key("SOLVER.IMS_PER_BATCH", 16, "images per iteration over all processes, accumulation included", at_least(1)),
    Key("SOLVER.BASE_LR", 2.5e-5, "learning rate after the warm-up", above(0)),
    Key("SOLVER.LR_FACTORS", [["criterion.flow.", 10.0]],
        "[part of a parameter's name, factor of its learning rate]; the first that fits counts", _LR_FACTORS),
    Key("SOLVER.WEIGHT_DECAY", 1e-4, "decoupled weight decay of AdamW", at_least(0)),
    Key("SOLVER.WEIGHT_DECAY_NORM", 1e-4, "the same for normalisation layers", at_least(0)),
    Key("SOLVER.WEIGHT_DECAY_BIAS", 1e-4, "the same for biases", at_least(0)),
    Key("SOLVER.BETAS", [0.9, 0.999], "of AdamW",
        sequence_of("numbers in [0, 1)", lambda value: is_finite(value) and 0 <= value < 1, length=2)),
    Key("SOLVER.MAX_ITER", 140000, "iterations in all", at_least(1)),
    Key("SOLVER.LR_SCHEDULER_NAME", "WarmupMultiStepLR", "shape of the schedule after the warm-up",
        one_of("WarmupMultiStepLR", "WarmupCosineLR")),
    Key("SOLVER.STEPS", [110000, 130000], "iterations at which the rate is multiplied by GAMMA",
        sequence_of("integers", lambda value: isinstance(value, int))),
    Key("SOLVER.GAMMA", 0.1, "factor at each of STEPS", above(0)),
    Key("SOLVER.WARMUP_ITERS", 1000, "iterations of warm-up", at_least(0)),
    Key("SOLVER.WARMUP_FACTOR", 0.01, "share of the rate at which the warm-up begins", between(0, 1)),
    Key("SOLVER.WARMUP_METHOD", "linear", "shape of the warm-up", one_of("linear", "constant")),
    Key("SOLVER.CHECKPOINT_PERIOD", 5000, "iterations between two checkpoints", at_least(1)),
    Key("SOLVER.CHECKPOINTS_TO_KEEP", 0, "periodic checkpoints that stay, the newest; 0 keeps all", at_least(0)),
    Key("SOLVER.CLIP_GRADIENTS.ENABLED", True, "clip the norm of the whole model's gradient"),
    Key("SOLVER.CLIP_GRADIENTS.CLIP_VALUE", 1.0, "the greatest norm", above(0)),
    Key("SOLVER.CLIP_GRADIENTS.NORM_TYPE", 2.0, "p of the norm", above(0)),
    Key("SOLVER.NON_FINITE.ACTION", "stop",
        "an iteration with an infinite or NaN loss or gradient ends the run, or is skipped; it never changes weights",
        one_of("stop", "skip")),
    Key("SOLVER.NON_FINITE.MAX_CONSECUTIVE", 10, "iterations skipped in a row before the run ends", at_least(0)),
    Key("SOLVER.NON_FINITE.MAX_DUMPS", 3,
        "such iterations written to OUTPUT_DIR/dumps for tools/replay.py, at most; each holds the model's weights",
        at_least(0)),
    Key("SOLVER.AMP.ENABLED", False, "mixed precision; geometry, flow and losses stay float32"),
    Key("SOLVER.AMP.PRECISION", "bfloat16", "the lower precision; float16 scales the loss",
        one_of("bfloat16", "float16")),
    Key("SOLVER.ACCUMULATION_STEPS", 1, "micro-batches into which an iteration's batch is cut", at_least(1)),
    Key("SOLVER.EMA.ENABLED", False, "keep an exponential moving average of the weights and evaluate that"),
    Key("SOLVER.EMA.DECAY", 0.9998, "share of the average that an iteration keeps; n/(n+9) at update n if that is less",
        between(0, 1)),
    # ---- evaluation ---------------------------------------------------------------------------------------------
    Key("TEST.EVAL_PERIOD", 0, "iterations between two evaluations while training; 0: at the end alone", at_least(0)),
    Key("TEST.IMS_PER_BATCH", 1, "images per evaluation batch and process; 1 pads to the stride only", at_least(1)),
    Key("TEST.DETECTIONS_PER_IMAGE", 20, "poses kept per image; the COCO protocol counts 20", at_least(1)),
    Key("TEST.SCORE_THRESHOLD", 0.0, "poses with a score not above it are left out, and not computed; above 0 costs AP",
        between(0, 1)),
    Key("TEST.PRECISION", "float32", "of the forward pass in inference; geometry and regressors stay float32",
        one_of("float32", "bfloat16")),
    Key("TEST.COMPILE", False, "compile backbone and decoder stages for inference; pays where there are many images"),
    Key("TEST.BEST_METRIC", "keypoints/AP",
        "its best weights stay as model_best.pth; of several datasets the first one's; '' keeps none"),
    Key("TEST.EXPECTED_RESULTS", [], "[task, metric, value, tolerance] that the final evaluation must meet"),
)
# fmt: on


def add_querypose_config(cfg: CfgNode) -> None:
    """Adds every key of the project to `cfg`, with its default; keys that detectron2 set before are overwritten."""
    for key in KEYS:
        *parents, leaf = key.name.split(".")
        node = cfg
        for parent in parents:
            if parent not in node:
                node[parent] = CfgNode()
            node = node[parent]
        node[leaf] = key.default.copy() if isinstance(key.default, list) else key.default


def get_cfg() -> CfgNode:
    """A new `CfgNode` with every key of the project (on detectron2: and every one of detectron2's) at its default."""
    cfg = d2.get_cfg()
    add_querypose_config(cfg)
    return cfg


def load_config(config_file: str | Path | None = None, overrides: Sequence[str] = ()) -> CfgNode:
    """Reads an experiment: defaults, then `config_file` with its `_BASE_`, then KEY VALUE `overrides`.

    Args:
        config_file: a YAML file, or None for the defaults.
        overrides: `["SOLVER.MAX_ITER", "100", …]`, as they stand on the command line.

    Returns:
        the validated config, `MODEL.DEVICE` resolved to a device; not frozen.

    Raises:
        FileNotFoundError: there is no such file.
        ConfigError: a key is unknown, a value has the wrong type or is not allowed.
    """
    cfg = get_cfg()
    if config_file is not None:
        if not Path(config_file).is_file():
            raise FileNotFoundError(f"There is no config file {str(config_file)!r}.")
        merge_file(cfg, str(config_file))
    merge_overrides(cfg, overrides)
    if cfg.MODEL.DEVICE == "auto":
        cfg.MODEL.DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
    validate_config(cfg, KEYS)
    return cfg
