"""Every YAML key of the project: its default, its meaning, what it allows.

`KEYS` is the one list. `get_cfg()` turns it into a `CfgNode`; `load_config` merges a YAML file and command-line
overrides into it and refuses what is misspelt or impossible, naming the key, the value and what is allowed.

A key that detectron2 has too keeps detectron2's name and meaning; the default may differ (Sec. 4.1 of the paper).
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml

from querypose import d2
from querypose.d2 import CfgNode


class ConfigError(ValueError):
    """A configuration that cannot be used: says which key, which value and what is allowed."""


class Allowed(NamedTuple):
    """What a value must fulfil: `description` completes the sentence "allowed: …"."""

    description: str
    test: Callable[[Any], bool]


class Key(NamedTuple):
    """One YAML key. `name` is its dotted path, `meaning` one line for the user."""

    name: str
    default: Any
    meaning: str
    allowed: Allowed | None = None


def _one_of(*values: Any) -> Allowed:
    return Allowed(", ".join(repr(value) for value in values), lambda value: value in values)


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _at_least(minimum: float) -> Allowed:
    return Allowed(f"a number >= {minimum}", lambda value: _is_finite(value) and value >= minimum)


def _above(bound: float) -> Allowed:
    return Allowed(f"a number > {bound}", lambda value: _is_finite(value) and value > bound)


def _between(low: float, high: float) -> Allowed:
    return Allowed(f"a number in [{low}, {high}]", lambda value: _is_finite(value) and low <= value <= high)


def _sequence_of(description: str, test: Callable[[Any], bool], length: int | None = None) -> Allowed:
    count = "a list of" if length is None else f"{length}"
    return Allowed(
        f"{count} {description}",
        lambda value: (
            isinstance(value, list | tuple) and (length is None or len(value) == length) and all(map(test, value))
        ),
    )


_TYPE_MISMATCH = re.compile(  # as yacs words it
    r"Type mismatch \(<class '(?P<old_type>.*?)'> vs. <class '(?P<new_type>.*?)'>\) "
    r"with values \(.* vs. (?P<new>.*)\) for config key: (?P<key>\S+)",
    re.DOTALL,
)
_INTEGER = re.compile(r"[+-]?\d+")
_NAME = Allowed("a name, not empty", lambda value: value != "" and "\0" not in value)
_NO_MAPPING = "it must hold a mapping of keys, not a list or a single value."
_SIZES = Allowed(
    "a list of positive integers (pixels), not empty",
    lambda value: (
        isinstance(value, list | tuple)
        and len(value) > 0
        and all(isinstance(size, int) and not isinstance(size, bool) and size > 0 for size in value)
    ),
)
_SHARES = _sequence_of(
    "numbers in [0, 1], the smaller first", lambda value: _is_finite(value) and 0 <= value <= 1, length=2
)
_THREE_NUMBERS = _sequence_of("numbers, one per channel", _is_finite, length=3)
_NAMES = _sequence_of("names", lambda value: isinstance(value, str))
_MAPPINGS = _sequence_of("mappings", lambda value: isinstance(value, dict))
_LR_FACTORS = _sequence_of(
    "[part of a parameter's name, factor] pairs",
    lambda pair: isinstance(pair, list | tuple) and len(pair) == 2 and isinstance(pair[0], str) and _is_finite(pair[1]),
)

# fmt: off
KEYS: tuple[Key, ...] = (
    # ---- run ----------------------------------------------------------------------------------------------------
    Key("OUTPUT_DIR", "./output", "folder that receives config.yaml, log.txt, metrics.json, checkpoints, inference/",
        _NAME),
    Key("SEED", -1, "seed of everything random; -1 draws one and logs it", _between(-1, 2**32 - 1)),
    Key("DETERMINISTIC", False,
        "bit-identical runs on a GPU too: deterministic algorithms alone; an operation that has none is an error"),
    Key("CUDNN_BENCHMARK", False, "let cuDNN time its algorithms; faster where input sizes repeat"),
    Key("KEEP_FREED_MEMORY", True,
        "on a CPU: keep the memory of freed tensors for the next ones; faster, at the risk of a higher peak"),
    Key("LOG_PERIOD", 20, "iterations between two progress lines and two rows of metrics.json", _at_least(1)),
    # ---- model --------------------------------------------------------------------------------------------------
    Key("MODEL.META_ARCHITECTURE", "QueryPose", "class in META_ARCH_REGISTRY"),
    Key("MODEL.DEVICE", "auto", "'auto' (a GPU where there is one, else the CPU), 'cpu', 'cuda' or 'cuda:N'"),
    Key("MODEL.WEIGHTS", "", "checkpoint to start from; '' starts from the initialisation"),
    Key("MODEL.PIXEL_MEAN", [123.675, 116.28, 103.53], "per channel, range 0..255, order of INPUT.FORMAT",
        _THREE_NUMBERS),
    Key("MODEL.PIXEL_STD", [58.395, 57.12, 57.375], "per channel, range 0..255, order of INPUT.FORMAT",
        _sequence_of("numbers > 0, one per channel", lambda value: _is_finite(value) and value > 0, length=3)),
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
        _one_of("FrozenBN", "BN")),
    Key("MODEL.BACKBONE.FREEZE_AT", 2, "freeze the first N stages as detectron2 counts: 1 stem, 2 also res2; 0 none",
        _one_of(0, 1, 2, 3, 4, 5)),
    Key("MODEL.BACKBONE.DROP_PATH_RATE", 0.0, "stochastic depth of the backbone", _between(0.0, 1.0)),
    Key("MODEL.BACKBONE.OUTPUT_STRIDE", 32,
        "of the last features; less than 32 by dilation in place of stride (16 with ResNet-50: R50-DC5)",
        _one_of(8, 16, 32)),
    Key("MODEL.BACKBONE.OUT_FEATURES", [],
        "features that the model gets: some of p2..p5, without a pyramid of c2..c5; [] is all of them", _NAMES),
    Key("MODEL.FPN.TYPE", "fpn",
        "pyramid: FPN, those that the QueryPose authors put on HRNet-W32 and HRNet-W48, or none: c2..c5 as they are",
        _one_of("fpn", "hrfpn", "hrfpn_v1", "none")),
    Key("MODEL.FPN.OUT_CHANNELS", 256, "channels of P2..P5, and width of QueryPose's instance queries", _at_least(1)),
    Key("MODEL.FPN.NORM", "", "normalisation of the FPN convolutions: none, group norm, or batch norm",
        _one_of("", "GN", "BN")),
    # ---- QueryPose ----------------------------------------------------------------------------------------------
    Key("MODEL.QUERYPOSE.NUM_QUERIES", 100, "instance queries (with a proposal box each) per image", _at_least(1)),
    Key("MODEL.QUERYPOSE.PROPOSAL_INIT", "image",
        "where the learned proposal boxes start: all on the whole image, or on a grid", _one_of("image", "grid")),
    Key("MODEL.QUERYPOSE.NUM_STAGES", 6, "stages of box and keypoint decoder (S)", _at_least(1)),
    Key("MODEL.QUERYPOSE.NUM_HEADS", 8, "heads of every self-attention", _at_least(1)),
    Key("MODEL.QUERYPOSE.DIM_FEEDFORWARD", 2048, "hidden width of every feed-forward network", _at_least(1)),
    Key("MODEL.QUERYPOSE.DIM_DYNAMIC", 64, "inner width of the dynamic interaction", _at_least(1)),
    Key("MODEL.QUERYPOSE.PRIOR_PROB", 0.01, "class score of every query at initialisation", _between(1e-6, 0.999999)),
    Key("MODEL.QUERYPOSE.INSTANCE_QUERY_ITERATION", "box",
        "path of the instance query: box decoder only (Figure 3a), or serially through both decoders (Figure 3b)",
        _one_of("box", "serial")),
    Key("MODEL.QUERYPOSE.TRAIN_QUERIES", "auto",
        "queries the keypoint decoder trains on; auto: matched for iteration 'box', all for 'serial'",
        _one_of("auto", "matched", "all")),
    Key("MODEL.QUERYPOSE.TEST_QUERIES", 0,
        "queries an image that the keypoint decoder runs on in inference, the best by class score (iteration 'serial': "
        "at each stage); 0: all that can change the result; more than 0 may cost AP", _at_least(0)),
    Key("MODEL.QUERYPOSE.MASK_PADDING", True,
        "the decoder reads zeros where the batch was padded; False as in the authors' code"),
    Key("MODEL.QUERYPOSE.BOX.IN_FEATURES", ["p2", "p3", "p4", "p5"], "levels the box decoder pools from", _NAMES),
    Key("MODEL.QUERYPOSE.BOX.POOLER_RESOLUTION", 7, "side of the box region features, in cells", _at_least(1)),
    Key("MODEL.QUERYPOSE.BOX.NUM_CLS_LAYERS", 1, "linear layers before the class logit", _at_least(0)),
    Key("MODEL.QUERYPOSE.BOX.NUM_REG_LAYERS", 3, "linear layers before the box deltas", _at_least(0)),
    Key("MODEL.QUERYPOSE.KEYPOINT.IN_FEATURE", "p2", "the level the keypoint decoder pools from"),
    Key("MODEL.QUERYPOSE.KEYPOINT.POOLER_RESOLUTION", 14, "side of the keypoint region features, in cells",
        _at_least(1)),
    Key("MODEL.QUERYPOSE.KEYPOINT.NUM_CONVS", 6, "3x3 convolutions on the keypoint region", _at_least(1)),
    Key("MODEL.QUERYPOSE.KEYPOINT.CONV_DIM", 512, "inner width of those convolutions", _at_least(1)),
    Key("MODEL.QUERYPOSE.KEYPOINT.QUERY_TYPE", "part",
        "what keypoints are regressed from: part queries, the instance query (Table 1), or the region alone (Table 2b)",
        _one_of("part", "instance", "none")),
    Key("MODEL.QUERYPOSE.KEYPOINT.INTERACTION", "spatial_attention",
        "how queries read the keypoint region (Table 1); spatial_attention is SPEGM for part queries",
        _one_of("spatial_attention", "self_attention", "dynamic_channel", "dynamic_spatial", "average_pooling")),
    Key("MODEL.QUERYPOSE.KEYPOINT.PART_DIM", 128, "width of a part query (Table 2c)", _at_least(1)),
    Key("MODEL.QUERYPOSE.KEYPOINT.PART_SCHEME", "",
        "part division of the skeleton, by name (Figure 4, Table 2d); '' is the skeleton's default"),
    Key("MODEL.QUERYPOSE.KEYPOINT.ITERATION", "selective", "update of the part queries from stage to stage (Table 2a)",
        _one_of("none", "summation", "concatenation", "selective")),
    Key("MODEL.QUERYPOSE.KEYPOINT.DYNAMIC_INTERACTION", False,
        "refine the instance query by a dynamic interaction in the keypoint stage (the full version)"),
    Key("MODEL.QUERYPOSE.FLOW.NUM_COUPLINGS", 6, "affine couplings of the RealNVP flow", _at_least(1)),
    Key("MODEL.QUERYPOSE.FLOW.DIM_HIDDEN", 64, "hidden width of the flow's networks", _at_least(1)),
    Key("MODEL.QUERYPOSE.MATCHER.COST_CLASS", 2.0, "weight of the class cost in the matching", _at_least(0)),
    Key("MODEL.QUERYPOSE.MATCHER.COST_BBOX", 5.0, "weight of the L1 box cost in the matching", _at_least(0)),
    Key("MODEL.QUERYPOSE.MATCHER.COST_GIOU", 2.0, "weight of the GIoU cost in the matching", _at_least(0)),
    Key("MODEL.QUERYPOSE.LOSS.CLS_WEIGHT", 2.0, "weight of loss_cls (Sec. 3.4)", _at_least(0)),
    Key("MODEL.QUERYPOSE.LOSS.BBOX_WEIGHT", 5.0, "weight of loss_bbox, the L1 loss", _at_least(0)),
    Key("MODEL.QUERYPOSE.LOSS.GIOU_WEIGHT", 2.0, "weight of loss_giou", _at_least(0)),
    Key("MODEL.QUERYPOSE.LOSS.KEYPOINT_WEIGHT", 1.0, "weight of loss_keypoint", _at_least(0)),
    Key("MODEL.QUERYPOSE.LOSS.HEATMAP_WEIGHT", 0.0,
        "weight of loss_heatmap, auxiliary keypoint heat maps (end of Sec. 4.3); 0: none; the authors' code has 0.5",
        _at_least(0)),
    Key("MODEL.QUERYPOSE.LOSS.FOCAL_ALPHA", 0.25, "alpha of the focal loss and of the class cost", _between(0, 1)),
    Key("MODEL.QUERYPOSE.LOSS.FOCAL_GAMMA", 2.0, "gamma of the focal loss and of the class cost",
        # The gradient of a power below 1 is infinite at a query that is certain.
        Allowed("0, or a number >= 1", lambda value: _is_finite(value) and (value == 0 or value >= 1))),
    Key("MODEL.QUERYPOSE.LOSS.DEEP_SUPERVISION", True, "losses at every stage, not at the last alone"),
    # ---- POET ---------------------------------------------------------------------------------------------------
    Key("MODEL.POET.NUM_QUERIES", 25, "queries (N prediction slots) per image", _at_least(1)),
    Key("MODEL.POET.DIM", 256, "width of the transformer; a multiple of 4 and of NUM_HEADS", _at_least(4)),
    Key("MODEL.POET.NUM_HEADS", 8, "heads of every attention", _at_least(1)),
    Key("MODEL.POET.DIM_FEEDFORWARD", 2048, "hidden width of every feed-forward network", _at_least(1)),
    Key("MODEL.POET.NUM_ENCODER_LAYERS", 6, "layers of the encoder", _at_least(0)),
    Key("MODEL.POET.NUM_DECODER_LAYERS", 6, "layers of the decoder", _at_least(1)),
    Key("MODEL.POET.DROPOUT", 0.1, "of the transformer", _between(0, 0.999)),
    Key("MODEL.POET.EMPTY_CLASS", False,
        "a third class, for persons without a visible keypoint, as in the authors' code; their weights need it"),
    Key("MODEL.POET.LOSS.TERMS", "paper", "terms of loss and matching: those of eq. 3, or those of the authors' code",
        _one_of("paper", "released")),
    Key("MODEL.POET.LOSS.CENTER_IN_OFFSETS", False, "the centre's L1 distance in the offset term too (Table 3)"),
    Key("MODEL.POET.LOSS.CLS_WEIGHT", 1.0, "weight of loss_cls; like the others in matching too", _at_least(0)),
    Key("MODEL.POET.LOSS.KEYPOINT_WEIGHT", 4.0, "weight of loss_keypoint, absolute positions (λ_abs)", _at_least(0)),
    Key("MODEL.POET.LOSS.VISIBILITY_WEIGHT", 0.2, "weight of loss_visibility (λ_vis)", _at_least(0)),
    Key("MODEL.POET.LOSS.CENTER_WEIGHT", 0.5, "weight of loss_center (λ_ctr)", _at_least(0)),
    Key("MODEL.POET.LOSS.OFFSET_WEIGHT", 0.5, "weight of loss_offset (λ_deltas)", _at_least(0)),
    Key("MODEL.POET.LOSS.NO_OBJECT_WEIGHT", 0.1, "weight of the queries without a person in loss_cls", _above(0)),
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
        _one_of("off", "annotations", "files")),
    Key("DATALOADER.NUM_WORKERS", 4, "loader processes per training process; 0 loads in the main one", _at_least(0)),
    Key("DATALOADER.MAX_BAD_IMAGES", 0.01,
        "share of the training images that may be unreadable: each is skipped with a warning, more are an error",
        _between(0, 1)),
    Key("DATALOADER.ASPECT_RATIO_GROUPING", True, "put landscape with landscape and portrait with portrait images"),
    Key("DATALOADER.FILTER_EMPTY_ANNOTATIONS", True, "do not train on images without any annotated person"),
    Key("DATALOADER.MIN_VISIBLE_KEYPOINTS", 0,
        "do not train on persons with fewer visible keypoints, before and after augmentation", _at_least(0)),
    Key("INPUT.FORMAT", "RGB", "channel order that the model sees", _one_of("RGB", "BGR")),
    Key("INPUT.MIN_SIZE_TRAIN", list(range(480, 801, 32)), "short side, drawn from these, in pixels", _SIZES),
    Key("INPUT.MAX_SIZE_TRAIN", 1333, "bound of the long side, in pixels", _at_least(1)),
    Key("INPUT.MIN_SIZE_TEST", 800, "short side, in pixels; 0 keeps the image's size", _at_least(0)),
    Key("INPUT.MAX_SIZE_TEST", 1333, "bound of the long side, in pixels", _at_least(1)),
    Key("INPUT.RANDOM_FLIP", "horizontal", "mirror half of the training images", _one_of("horizontal", "none")),
    Key("INPUT.ROTATION.PROBABILITY", 0.0, "probability of turning a training image about its centre", _between(0, 1)),
    Key("INPUT.ROTATION.MAX_DEGREES", 25.0, "greatest angle, either way", _between(0, 180)),
    Key("INPUT.COARSE_DROPOUT.PROBABILITY", 0.0, "probability of painting cells of a training image black",
        _between(0, 1)),
    Key("INPUT.COARSE_DROPOUT.SHARE", [0.05, 0.2], "bounds of the share of cells", _SHARES),
    Key("INPUT.COARSE_DROPOUT.GRID", [0.015, 0.03], "bounds of cells along a side, as a share of its pixels", _SHARES),
    Key("INPUT.COARSE_DROPOUT.PER_CHANNEL", 0.5, "probability that channels lose different cells", _between(0, 1)),
    Key("INPUT.CROP.PROBABILITY", 0.5, "probability of resizing to CROP.MIN_SIZE and cropping first", _between(0, 1)),
    Key("INPUT.CROP.MIN_SIZE", [400, 500, 600], "short side before the crop, drawn from these, in pixels", _SIZES),
    Key("INPUT.CROP.SIZE", [384, 600], "bounds of height and width of the crop, in pixels",
        _sequence_of("positive integers, the smaller first",
                     lambda value: isinstance(value, int) and value > 0, length=2)),
    # ---- solver -------------------------------------------------------------------------------------------------
    Key("SOLVER.IMS_PER_BATCH", 16, "images per iteration over all processes, accumulation included", _at_least(1)),
    Key("SOLVER.BASE_LR", 2.5e-5, "learning rate after the warm-up", _above(0)),
    Key("SOLVER.LR_FACTORS", [["criterion.flow.", 10.0]],
        "[part of a parameter's name, factor of its learning rate]; the first that fits counts", _LR_FACTORS),
    Key("SOLVER.WEIGHT_DECAY", 1e-4, "decoupled weight decay of AdamW", _at_least(0)),
    Key("SOLVER.WEIGHT_DECAY_NORM", 1e-4, "the same for normalisation layers", _at_least(0)),
    Key("SOLVER.WEIGHT_DECAY_BIAS", 1e-4, "the same for biases", _at_least(0)),
    Key("SOLVER.BETAS", [0.9, 0.999], "of AdamW",
        _sequence_of("numbers in [0, 1)", lambda value: _is_finite(value) and 0 <= value < 1, length=2)),
    Key("SOLVER.MAX_ITER", 140000, "iterations in all", _at_least(1)),
    Key("SOLVER.LR_SCHEDULER_NAME", "WarmupMultiStepLR", "shape of the schedule after the warm-up",
        _one_of("WarmupMultiStepLR", "WarmupCosineLR")),
    Key("SOLVER.STEPS", [110000, 130000], "iterations at which the rate is multiplied by GAMMA",
        _sequence_of("integers", lambda value: isinstance(value, int))),
    Key("SOLVER.GAMMA", 0.1, "factor at each of STEPS", _above(0)),
    Key("SOLVER.WARMUP_ITERS", 1000, "iterations of warm-up", _at_least(0)),
    Key("SOLVER.WARMUP_FACTOR", 0.01, "share of the rate at which the warm-up begins", _between(0, 1)),
    Key("SOLVER.WARMUP_METHOD", "linear", "shape of the warm-up", _one_of("linear", "constant")),
    Key("SOLVER.CHECKPOINT_PERIOD", 5000, "iterations between two checkpoints", _at_least(1)),
    Key("SOLVER.CHECKPOINTS_TO_KEEP", 0, "periodic checkpoints that stay, the newest; 0 keeps all", _at_least(0)),
    Key("SOLVER.CLIP_GRADIENTS.ENABLED", True, "clip the norm of the whole model's gradient"),
    Key("SOLVER.CLIP_GRADIENTS.CLIP_VALUE", 1.0, "the greatest norm", _above(0)),
    Key("SOLVER.CLIP_GRADIENTS.NORM_TYPE", 2.0, "p of the norm", _above(0)),
    Key("SOLVER.NON_FINITE.ACTION", "stop",
        "an iteration with an infinite or NaN loss or gradient ends the run, or is skipped; it never changes weights",
        _one_of("stop", "skip")),
    Key("SOLVER.NON_FINITE.MAX_CONSECUTIVE", 10, "iterations skipped in a row before the run ends", _at_least(0)),
    Key("SOLVER.NON_FINITE.MAX_DUMPS", 3,
        "such iterations written to OUTPUT_DIR/dumps for tools/replay.py, at most; each holds the model's weights",
        _at_least(0)),
    Key("SOLVER.AMP.ENABLED", False, "mixed precision; geometry, flow and losses stay float32"),
    Key("SOLVER.AMP.PRECISION", "bfloat16", "the lower precision; float16 scales the loss",
        _one_of("bfloat16", "float16")),
    Key("SOLVER.ACCUMULATION_STEPS", 1, "micro-batches into which an iteration's batch is cut", _at_least(1)),
    Key("SOLVER.EMA.ENABLED", False, "keep an exponential moving average of the weights and evaluate that"),
    Key("SOLVER.EMA.DECAY", 0.9998, "share of the average that an iteration keeps; n/(n+9) at update n if that is less",
        _between(0, 1)),
    # ---- evaluation ---------------------------------------------------------------------------------------------
    Key("TEST.EVAL_PERIOD", 0, "iterations between two evaluations while training; 0: at the end alone", _at_least(0)),
    Key("TEST.IMS_PER_BATCH", 1, "images per evaluation batch and process; 1 pads to the stride only", _at_least(1)),
    Key("TEST.DETECTIONS_PER_IMAGE", 20, "poses kept per image; the COCO protocol counts 20", _at_least(1)),
    Key("TEST.SCORE_THRESHOLD", 0.0, "poses with a score not above it are left out, and not computed; above 0 costs AP",
        _between(0, 1)),
    Key("TEST.PRECISION", "float32", "of the forward pass in inference; geometry and regressors stay float32",
        _one_of("float32", "bfloat16")),
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
        _merge_file(cfg, str(config_file))
    _merge_overrides(cfg, list(overrides))
    if cfg.MODEL.DEVICE == "auto":
        cfg.MODEL.DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
    validate_config(cfg)
    return cfg


def _merge_file(cfg: CfgNode, config_file: str) -> None:
    try:
        loaded = CfgNode.load_yaml_with_base(config_file, allow_unsafe=False)  # detectron2's default runs code
        cfg.merge_from_other_cfg(CfgNode(_integers_to_floats(loaded, cfg)))
    except yaml.YAMLError as error:
        raise ConfigError(f"{config_file} is not valid YAML: {error}") from error
    except RecursionError as error:
        raise ConfigError(f"{config_file} is nested without end, or its _BASE_ leads back to itself.") from error
    except FileNotFoundError as error:
        raise ConfigError(f"{config_file}: its _BASE_ {error.filename!r} does not exist.") from error
    except (KeyError, ValueError, TypeError, AttributeError, AssertionError) as error:
        raise ConfigError(f"{config_file}: {_explain(cfg, error)}") from error


def _merge_overrides(cfg: CfgNode, overrides: list[str]) -> None:
    for name in overrides[::2]:
        if not _has_key(cfg, name):
            raise ConfigError(f"command line {overrides}: {_unknown_key(cfg, name)}")
    floats = {key.name for key in KEYS if isinstance(key.default, float)}
    names = ["" if index % 2 == 0 else overrides[index - 1] for index in range(len(overrides))]
    values = [
        f"{text}.0" if name in floats and _INTEGER.fullmatch(str(text)) else text
        for name, text in zip(names, overrides, strict=True)
    ]
    try:
        cfg.merge_from_list(values)
    except RecursionError as error:
        raise ConfigError("command line: a value is nested too deeply.") from error
    except (KeyError, ValueError, TypeError, AttributeError, AssertionError, SyntaxError) as error:
        raise ConfigError(f"command line {overrides}: {_explain(cfg, error)}") from error


def _integers_to_floats(loaded: Any, cfg: CfgNode) -> dict[str, Any]:
    """`loaded` with an integer made a float where the key of `cfg` is a float: `BASE_LR: 1` says what it means.

    Raises:
        TypeError: it is no mapping, or has a key that is not text.
    """
    if not isinstance(loaded, dict):
        raise TypeError(_NO_MAPPING)
    converted = {}
    for name, value in loaded.items():
        if not isinstance(name, str):
            raise TypeError(f"{name!r} is not the name of a key.")
        default = cfg.get(name)
        if isinstance(default, CfgNode) and isinstance(value, dict):
            value = _integers_to_floats(value, default)
        elif isinstance(default, float) and type(value) is int:
            value = float(value)
        converted[name] = value
    return converted


def validate_config(cfg: CfgNode) -> None:
    """Refuses values that no run can use.

    Raises:
        ConfigError: names the key, its value, and what is allowed there.
    """
    for key in KEYS:
        value = _lookup(cfg, key.name)
        if value is None:  # which the merge takes for any key
            raise ConfigError(f"{key.name} is None; allowed: type {type(key.default).__name__}. ({key.meaning})")
        if key.allowed is not None and not key.allowed.test(value):
            raise ConfigError(f"{key.name} is {value!r}; allowed: {key.allowed.description}. ({key.meaning})")
    if (version := get_cfg().VERSION) != cfg.VERSION:
        raise ConfigError(f"VERSION is {cfg.VERSION!r}; allowed: {version}, that of this config's keys.")
    _validate_registered("MODEL.META_ARCHITECTURE", cfg.MODEL.META_ARCHITECTURE, d2.META_ARCH_REGISTRY)
    _validate_registered("MODEL.BACKBONE.NAME", cfg.MODEL.BACKBONE.NAME, d2.BACKBONE_REGISTRY)
    _validate_device(cfg.MODEL.DEVICE)
    _validate_query_pose(cfg.MODEL.QUERYPOSE, hidden_dim=cfg.MODEL.FPN.OUT_CHANNELS)
    _validate_poet(cfg.MODEL.POET)
    if list(cfg.SOLVER.STEPS) != sorted(cfg.SOLVER.STEPS):
        raise ConfigError(f"SOLVER.STEPS is {cfg.SOLVER.STEPS}; allowed: iterations in increasing order.")
    if cfg.DETERMINISTIC and cfg.CUDNN_BENCHMARK:
        raise ConfigError("DETERMINISTIC and CUDNN_BENCHMARK are True; allowed: one of them, as cuDNN's choice varies.")
    for name in ("INPUT.CROP.SIZE", "INPUT.COARSE_DROPOUT.SHARE", "INPUT.COARSE_DROPOUT.GRID"):
        smallest, largest = bounds = _lookup(cfg, name)
        if smallest > largest:
            raise ConfigError(f"{name} is {bounds}; allowed: [smallest, largest].")
    if cfg.SOLVER.IMS_PER_BATCH % cfg.SOLVER.ACCUMULATION_STEPS:
        raise ConfigError(
            f"SOLVER.ACCUMULATION_STEPS is {cfg.SOLVER.ACCUMULATION_STEPS}; allowed: a divisor of "
            f"SOLVER.IMS_PER_BATCH ({cfg.SOLVER.IMS_PER_BATCH})."
        )
    if cfg.TEST.EXPECTED_RESULTS and len(cfg.DATASETS.TEST) != 1:
        raise ConfigError(
            f"TEST.EXPECTED_RESULTS goes with one dataset, but DATASETS.TEST is {list(cfg.DATASETS.TEST)}; "
            "name one, or leave the expected results empty."
        )


def _validate_registered(key: str, name: str, registry: Any) -> None:
    if name not in registry:
        known = ", ".join(sorted(registered for registered, _ in registry))
        raise ConfigError(f"{key} is {name!r}; allowed: {known}.")


def _validate_device(device: str) -> None:
    allowed = "allowed: 'auto', 'cpu', 'cuda' or 'cuda:N'."
    try:
        kind, index = torch.device(device).type, torch.device(device).index
    except RuntimeError as error:
        raise ConfigError(f"MODEL.DEVICE is {device!r}; {allowed}") from error
    if kind not in ("cpu", "cuda"):
        raise ConfigError(f"MODEL.DEVICE is {device!r}; {allowed}")
    if kind == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"MODEL.DEVICE is {device!r}, but torch sees no GPU here; use MODEL.DEVICE cpu or auto.")
    if index is not None and kind == "cuda" and index >= torch.cuda.device_count():
        raise ConfigError(f"MODEL.DEVICE is {device!r}, but this machine has {torch.cuda.device_count()} GPUs.")


def _validate_query_pose(query_pose: CfgNode, hidden_dim: int) -> None:
    heads = query_pose.NUM_HEADS
    for key, width in (
        ("MODEL.FPN.OUT_CHANNELS", hidden_dim),
        ("MODEL.QUERYPOSE.KEYPOINT.PART_DIM", query_pose.KEYPOINT.PART_DIM),
    ):
        if width % heads:
            raise ConfigError(f"{key} is {width}; allowed: multiples of MODEL.QUERYPOSE.NUM_HEADS ({heads}).")
    _validate_query_type(query_pose.INSTANCE_QUERY_ITERATION, query_pose.KEYPOINT)


def _validate_poet(poet: CfgNode) -> None:
    for factor, reason in ((4, "for the position encoding"), (poet.NUM_HEADS, "MODEL.POET.NUM_HEADS")):
        if poet.DIM % factor:
            raise ConfigError(f"MODEL.POET.DIM is {poet.DIM}; allowed: multiples of {factor} ({reason}).")


def _validate_query_type(instance_query_iteration: str, keypoint: CfgNode) -> None:
    prefix, query_type = "MODEL.QUERYPOSE.KEYPOINT.", keypoint.QUERY_TYPE
    if query_type != "part" and keypoint.ITERATION != "none":
        raise ConfigError(
            f"{prefix}QUERY_TYPE is {query_type!r}, which leaves no part queries to iterate; that needs "
            f"{prefix}ITERATION: none, not {keypoint.ITERATION!r}."
        )
    if query_type == "none" and keypoint.INTERACTION != "average_pooling":
        raise ConfigError(
            f"{prefix}QUERY_TYPE is 'none', which leaves no query to interact with; that needs "
            f"{prefix}INTERACTION: average_pooling, not {keypoint.INTERACTION!r}."
        )
    if query_type == "none" and keypoint.DYNAMIC_INTERACTION:
        raise ConfigError(
            f"{prefix}DYNAMIC_INTERACTION is True, but with {prefix}QUERY_TYPE 'none' nothing reads the instance query "
            "that it refines; set one of them otherwise."
        )
    if instance_query_iteration == "serial" and not (keypoint.DYNAMIC_INTERACTION or query_type == "instance"):
        raise ConfigError(
            f"MODEL.QUERYPOSE.INSTANCE_QUERY_ITERATION is 'serial'; that needs {prefix}DYNAMIC_INTERACTION: True or "
            f"{prefix}QUERY_TYPE: instance, which refines the query it passes on."
        )


def _explain(cfg: CfgNode, error: Exception) -> str:
    """The message of a failed merge in this project's words, with the nearest existing keys where one is unknown."""
    message = str(error.args[0]) if error.args else str(error)
    if found := _TYPE_MISMATCH.match(message):
        expected = "a section of keys" if found["old_type"].endswith("CfgNode") else f"type {found['old_type']}"
        return f"{found['key']} is {found['new']} of type {found['new_type']}; allowed: {expected}."
    if isinstance(error, UnicodeDecodeError):
        return "it is not text in UTF-8."
    if "NoneType" in message:
        return "it is empty."
    if "is not iterable" in message:
        return _NO_MAPPING
    if isinstance(error, AttributeError):
        return "its _BASE_ is not the name of a file."
    if "Non-existent" not in message:
        return message
    return _unknown_key(cfg, message.rpartition(": ")[2].strip())


def _unknown_key(cfg: CfgNode, unknown: str) -> str:
    names = list(_leaf_names(cfg))
    near = difflib.get_close_matches(unknown, names, n=3, cutoff=0.5)
    near += [name for name in names if name.rpartition(".")[2] == unknown.rpartition(".")[2] and name not in near]
    hint = f" Did you mean {' or '.join(near[:3])}?" if near else ""
    return f"there is no key {unknown}.{hint} All keys are listed in querypose/config.py."


def _has_key(cfg: CfgNode, name: str) -> bool:
    node: Any = cfg
    for part in name.split("."):
        if not isinstance(node, CfgNode) or part not in node:
            return False
        node = node[part]
    return True


def _leaf_names(node: CfgNode, prefix: str = "") -> Iterator[str]:
    for name, value in node.items():
        if isinstance(value, CfgNode):
            yield from _leaf_names(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def _lookup(cfg: CfgNode, name: str) -> Any:
    node = cfg
    for part in name.split("."):
        node = node[part]
    return node
