"""Keys of POET."""

from __future__ import annotations

from querypose.config import ConfigError, Key, above, add_keys, at_least, between, list_of_names, registered
from querypose.d2 import CfgNode
from querypose.modeling.poet.loss_terms import POET_LOSS_REGISTRY
from querypose.modeling.poet.pose_terms import POSE_TERMS


def check_poet(cfg: CfgNode) -> None:
    """Refuses a width that is not a multiple of the heads and of 4."""
    poet = cfg.MODEL.POET
    for factor, reason in ((4, "for the position encoding"), (poet.NUM_HEADS, "MODEL.POET.NUM_HEADS")):
        if poet.DIM % factor:
            raise ConfigError(f"MODEL.POET.DIM is {poet.DIM}; allowed: multiples of {factor} ({reason}).")


# fmt: off
add_keys((
    Key("MODEL.POET.NUM_QUERIES", 25, "queries (N prediction slots) per image", at_least(1)),
    Key("MODEL.POET.DIM", 256, "width of the transformer; a multiple of 4 and of NUM_HEADS", at_least(4)),
    Key("MODEL.POET.NUM_HEADS", 8, "heads of every attention", at_least(1)),
    Key("MODEL.POET.DIM_FEEDFORWARD", 2048, "hidden width of every feed-forward network", at_least(1)),
    Key("MODEL.POET.NUM_ENCODER_LAYERS", 6, "layers of the encoder", at_least(0)),
    Key("MODEL.POET.NUM_DECODER_LAYERS", 6, "layers of the decoder", at_least(1)),
    Key("MODEL.POET.DROPOUT", 0.1, "of the transformer", between(0, 0.999), fixed=False),
    Key("MODEL.POET.EMPTY_CLASS", False,
        "a third class, for persons without a visible keypoint, as in the authors' code; their weights need it"),
    Key("MODEL.POET.LOSS.TERMS", "paper", "terms of loss and matching: those of eq. 3, or those of the authors' code",
        registered(POSE_TERMS)),
    Key("MODEL.POET.LOSS.CENTER_IN_OFFSETS", False, "the center's L1 distance in the offset term too (Table 3)"),
    Key("MODEL.POET.LOSS.CLS_WEIGHT", 1.0, "weight of loss_cls; like the others in matching too", at_least(0)),
    Key("MODEL.POET.LOSS.KEYPOINT_WEIGHT", 4.0, "weight of loss_keypoint, absolute positions (λ_abs)", at_least(0)),
    Key("MODEL.POET.LOSS.VISIBILITY_WEIGHT", 0.2, "weight of loss_visibility (λ_vis)", at_least(0)),
    Key("MODEL.POET.LOSS.CENTER_WEIGHT", 0.5, "weight of loss_center (λ_ctr)", at_least(0)),
    Key("MODEL.POET.LOSS.OFFSET_WEIGHT", 0.5, "weight of loss_offset (λ_deltas)", at_least(0)),
    Key("MODEL.POET.LOSS.NO_OBJECT_WEIGHT", 0.1, "weight of the queries without a person in loss_cls", above(0)),
    Key("MODEL.POET.LOSS.HEATMAP_WEIGHT", 0.0,
        "weight of loss_heatmap, auxiliary keypoint heat maps on the feature map, not in the paper; 0: none",
        at_least(0)),
    Key("MODEL.POET.LOSS.EXTRA_TERMS", [], "further losses, registered in POET_LOSS_REGISTRY",
        list_of_names(POET_LOSS_REGISTRY)),
    Key("MODEL.POET.LOSS.DEEP_SUPERVISION", True, "losses at every decoder layer, not at the last alone"),
), check_poet)
# fmt: on
