"""Keys of SHaRPose, and which of their values go together."""

from __future__ import annotations

from querypose.config import ConfigError, Key, above, add_keys, at_least, between, one_of, registered
from querypose.d2 import CfgNode
from querypose.modeling.sharpose.criterion import QUALITY_DISTANCES
from querypose.modeling.sharpose.quality import ACTIVATIONS
from querypose.modeling.sharpose.selection import ROUNDINGS


def check_sharpose(cfg: CfgNode) -> None:
    """Refuses widths that heads do not divide, scales that do not nest, and a blur without a middle."""
    sharpose = cfg.MODEL.SHARPOSE
    if sharpose.DIM % sharpose.NUM_HEADS:
        raise ConfigError(
            f"MODEL.SHARPOSE.DIM is {sharpose.DIM}; allowed: multiples of MODEL.SHARPOSE.NUM_HEADS, "
            f"{sharpose.NUM_HEADS}."
        )
    ratio = sharpose.FINE_SCALE / sharpose.COARSE_SCALE
    if not ratio.is_integer():
        raise ConfigError(
            f"MODEL.SHARPOSE.FINE_SCALE is {sharpose.FINE_SCALE}; allowed: 0 (no fine stage) or integer multiples of "
            f"MODEL.SHARPOSE.COARSE_SCALE, {sharpose.COARSE_SCALE}, so that fine patches fit into coarse ones."
        )
    if not sharpose.DECODING.KERNEL_SIZE % 2:
        raise ConfigError(
            f"MODEL.SHARPOSE.DECODING.KERNEL_SIZE is {sharpose.DECODING.KERNEL_SIZE}; allowed: odd numbers, so that "
            "the blur has a middle."
        )


# fmt: off
add_keys((
    Key("MODEL.SHARPOSE.DIM", 768, "width of the transformer; a multiple of NUM_HEADS; 384 is the small model",
        at_least(1)),
    Key("MODEL.SHARPOSE.DEPTH", 12, "blocks, which both stages share", at_least(1)),
    Key("MODEL.SHARPOSE.NUM_HEADS", 12, "heads of every attention", at_least(1)),
    Key("MODEL.SHARPOSE.PATCH_SIZE", 16, "side of a patch of the rescaled crop, in pixels", at_least(1)),
    Key("MODEL.SHARPOSE.COARSE_SCALE", 0.5, "of the crop in the coarse stage (s_c)", above(0)),
    Key("MODEL.SHARPOSE.FINE_SCALE", 1.0,
        "of the crop in the fine stage (s_f), an integer multiple of COARSE_SCALE; 0: no fine stage (Table 8)",
        at_least(0)),
    Key("MODEL.SHARPOSE.DROP_PATH_RATE", 0.1, "stochastic depth of the last block; that of the first is 0",
        between(0, 1), fixed=False),
    Key("MODEL.SHARPOSE.TOKEN_INIT_STD", 0.02,
        "standard deviation at which learned tokens and positions start; 0 as in the authors' code", at_least(0)),
    Key("MODEL.SHARPOSE.LAYER_DECAY", 0.75,
        "factor of the learning rate from each block to the one before it; 1 trains all alike", between(0, 1),
        fixed=False),
    Key("MODEL.SHARPOSE.ALPHA", 0.4, "share of the coarse patches that the fine stage sees finely (Table 6)",
        between(0, 1), fixed=False),
    Key("MODEL.SHARPOSE.ROUNDING", "ceil", "of their number: ceil as in the authors' code, floor as in the paper",
        registered(ROUNDINGS)),
    Key("MODEL.SHARPOSE.ALL_KEYPOINTS", True,
        "every keypoint chooses patches (eq. 7); False leaves the last one out, as the authors' code does"),
    Key("MODEL.SHARPOSE.ATTENTION_FROM", 0.25,
        "share of the blocks, from the first, whose attention does not choose patches; 0 in the paper (eq. 6)",
        between(0, 0.999)),
    Key("MODEL.SHARPOSE.ATTENTION_DECAY", 0.99, "what the average of attention keeps at each block (beta of eq. 6)",
        between(0, 1)),
    Key("MODEL.SHARPOSE.KEPT_TOKENS", "input",
        "what the other patches enter the fine stage as: the input of the coarse stage, as in the authors' code, or "
        "its output, as in the paper", one_of("input", "output")),
    Key("MODEL.SHARPOSE.REUSE", True, "fine tokens start with what the coarse stage found at their place"),
    Key("MODEL.SHARPOSE.QUALITY.ENABLED", True, "predict how good the coarse pose is; False refines every pose"),
    Key("MODEL.SHARPOSE.QUALITY.ACTIVATION", "gelu", "of the predicted quality; gelu as in the authors' code",
        registered(ACTIVATIONS)),
    Key("MODEL.SHARPOSE.QUALITY.THRESHOLD", 0.95,
        "in inference, poses of this quality are not refined; 0 refines none", at_least(0), fixed=False),
    Key("MODEL.SHARPOSE.QUALITY.START", 0.857,
        "share of the training after which the quality loss counts; before that every pose is refined", between(0, 1),
        fixed=False),
    Key("MODEL.SHARPOSE.QUALITY.WEIGHT", 0.03, "weight of loss_quality (lambda of eq. 9)", at_least(0), fixed=False),
    Key("MODEL.SHARPOSE.QUALITY.DISTANCE", "squared",
        "of predicted from measured quality: squared as in the authors' code, norm as in eq. 11",
        registered(QUALITY_DISTANCES), fixed=False),
    Key("MODEL.SHARPOSE.QUALITY.SWAPPED_AXES", False,
        "measure quality with width and height exchanged, as the authors' code does"),
    Key("MODEL.SHARPOSE.HEATMAP.STRIDE", 4, "pixels of the crop a cell of the heat maps", at_least(1)),
    Key("MODEL.SHARPOSE.HEATMAP.SIGMA", 2.0, "of the Gaussians that heat maps learn, in cells", above(0), fixed=False),
    Key("MODEL.SHARPOSE.DECODING.KERNEL_SIZE", 11, "of the blur before positions are read, in cells; odd",
        at_least(1)),
    Key("MODEL.SHARPOSE.DECODING.FLIP_TEST", True, "average with the heat maps of the mirrored crop in inference"),
), check_sharpose)
# fmt: on
