"""Keys of QueryPose."""

from __future__ import annotations

from querypose.config import (
    Allowed,
    ConfigError,
    Key,
    above,
    add_keys,
    at_least,
    between,
    is_finite,
    list_of_names,
    one_of,
    registered,
)
from querypose.d2 import CfgNode
from querypose.modeling.query_pose.initialization import PROPOSAL_LAYOUTS
from querypose.modeling.query_pose.loss_terms import QUERY_POSE_LOSS_REGISTRY
from querypose.modeling.query_pose.part_embedding import INTERACTION_REGISTRY
from querypose.modeling.query_pose.part_update import PART_UPDATE_REGISTRY


def check_query_pose(cfg: CfgNode) -> None:
    """Refuses widths that heads do not divide, and combinations that leave a part of the model without its input."""
    query_pose, keypoint = cfg.MODEL.QUERYPOSE, cfg.MODEL.QUERYPOSE.KEYPOINT
    prefix, query_type = "MODEL.QUERYPOSE.KEYPOINT.", keypoint.QUERY_TYPE
    widths = {"MODEL.FPN.OUT_CHANNELS": cfg.MODEL.FPN.OUT_CHANNELS, f"{prefix}PART_DIM": keypoint.PART_DIM}
    for key, width in widths.items():
        if width % query_pose.NUM_HEADS:
            raise ConfigError(
                f"{key} is {width}; allowed: multiples of MODEL.QUERYPOSE.NUM_HEADS ({query_pose.NUM_HEADS})."
            )
    if query_type != "part" and keypoint.ITERATION != "none":
        raise ConfigError(
            f"{prefix}QUERY_TYPE is {query_type!r}, so there are no part queries to update, but {prefix}ITERATION is "
            f"{keypoint.ITERATION!r}; set it to none."
        )
    if query_type == "none" and keypoint.INTERACTION != "average_pooling":
        raise ConfigError(
            f"{prefix}QUERY_TYPE is 'none', so there is no query to interact with, but {prefix}INTERACTION is "
            f"{keypoint.INTERACTION!r}; set it to average_pooling."
        )
    if query_type == "none" and keypoint.DYNAMIC_INTERACTION:
        raise ConfigError(
            f"{prefix}DYNAMIC_INTERACTION is True, but with {prefix}QUERY_TYPE 'none' nothing reads the instance query "
            "that it refines; change one of the two."
        )
    if keypoint.NUM_STAGES > query_pose.NUM_STAGES:
        raise ConfigError(
            f"{prefix}NUM_STAGES is {keypoint.NUM_STAGES}; allowed: at most MODEL.QUERYPOSE.NUM_STAGES "
            f"({query_pose.NUM_STAGES}), or 0 for as many."
        )
    if keypoint.HEATMAP_INPUT and not query_pose.LOSS.HEATMAP_WEIGHT:
        raise ConfigError(
            f"{prefix}HEATMAP_INPUT is True, but MODEL.QUERYPOSE.LOSS.HEATMAP_WEIGHT is 0, so nothing teaches the heat "
            "maps; set a weight."
        )
    if keypoint.HEATMAP_INPUT and keypoint.INTERACTION != "located_attention":
        raise ConfigError(
            f"{prefix}HEATMAP_INPUT is True, but {prefix}INTERACTION {keypoint.INTERACTION!r} reads no heat maps; set "
            "it to located_attention."
        )
    if keypoint.INTERACTION == "located_attention" and query_type != "part":
        raise ConfigError(
            f"{prefix}INTERACTION is 'located_attention', which locates keypoints for part queries, but "
            f"{prefix}QUERY_TYPE is {query_type!r}; set it to part."
        )
    passes_on = query_pose.INSTANCE_QUERY_ITERATION == "serial" or query_pose.TRAIN_QUERIES == "all"
    if passes_on and (keypoint.NOISY_BOXES or keypoint.NUM_STAGES not in (0, query_pose.NUM_STAGES)):
        raise ConfigError(
            f"{prefix}NOISY_BOXES and {prefix}NUM_STAGES need training on matched queries that the box decoder alone "
            "refines; set MODEL.QUERYPOSE.INSTANCE_QUERY_ITERATION box and MODEL.QUERYPOSE.TRAIN_QUERIES auto."
        )
    refines = keypoint.DYNAMIC_INTERACTION or query_type == "instance"
    if query_pose.INSTANCE_QUERY_ITERATION == "serial" and not refines:
        raise ConfigError(
            f"MODEL.QUERYPOSE.INSTANCE_QUERY_ITERATION is 'serial', but no keypoint stage refines the instance query; "
            f"set {prefix}DYNAMIC_INTERACTION: True or {prefix}QUERY_TYPE: instance."
        )


# fmt: off
add_keys((
    Key("MODEL.QUERYPOSE.NUM_QUERIES", 100, "instance queries (with a proposal box each) per image", at_least(1)),
    Key("MODEL.QUERYPOSE.PROPOSAL_INIT", "image",
        "where queries start: learned boxes that begin on the whole image or on a grid, the same for every image; or "
        "dense, at the peaks of a map of box centers", registered({**PROPOSAL_LAYOUTS, "dense": None})),
    Key("MODEL.QUERYPOSE.DENSE_START.IN_FEATURE", "p3", "the level that PROPOSAL_INIT 'dense' reads"),
    Key("MODEL.QUERYPOSE.NUM_STAGES", 6, "stages of box and keypoint decoder (S)", at_least(1)),
    Key("MODEL.QUERYPOSE.NUM_HEADS", 8, "heads of every self-attention", at_least(1)),
    Key("MODEL.QUERYPOSE.DIM_FEEDFORWARD", 2048, "hidden width of every feed-forward network", at_least(1)),
    Key("MODEL.QUERYPOSE.DIM_DYNAMIC", 64, "inner width of the dynamic interaction", at_least(1)),
    Key("MODEL.QUERYPOSE.PRIOR_PROB", 0.01, "class score of every query at initialization", between(1e-6, 0.999999)),
    Key("MODEL.QUERYPOSE.INSTANCE_QUERY_ITERATION", "box",
        "path of the instance query: box decoder only (Figure 3a), or serially through both decoders (Figure 3b)",
        one_of("box", "serial")),
    Key("MODEL.QUERYPOSE.TRAIN_QUERIES", "auto",
        "queries the keypoint decoder trains on; auto: matched for iteration 'box', all for 'serial'",
        one_of("auto", "matched", "all"), fixed=False),
    Key("MODEL.QUERYPOSE.TEST_QUERIES", 0,
        "queries an image that the keypoint decoder runs on in inference, the best by class score (iteration 'serial': "
        "at each stage); 0: all that can change the result; more than 0 may cost AP", at_least(0), fixed=False),
    Key("MODEL.QUERYPOSE.MASK_PADDING", True,
        "the decoder reads zeros where the batch was padded; False as in the authors' code"),
    Key("MODEL.QUERYPOSE.BOX.IN_FEATURES", ["p2", "p3", "p4", "p5"], "levels the box decoder pools from",
        list_of_names()),
    Key("MODEL.QUERYPOSE.BOX.POOLER_RESOLUTION", 7, "side of the box region features, in cells", at_least(1)),
    Key("MODEL.QUERYPOSE.BOX.NUM_CLS_LAYERS", 1, "linear layers before the class logit", at_least(0)),
    Key("MODEL.QUERYPOSE.BOX.NUM_REG_LAYERS", 3, "linear layers before the box deltas", at_least(0)),
    Key("MODEL.QUERYPOSE.BOX.EMBEDDING", False, "queries attend to each other with an embedding of their boxes"),
    Key("MODEL.QUERYPOSE.BOX.IDENTITY_START", False,
        "a box stage begins by leaving boxes and class logits as they come, instead of moving them at random"),
    Key("MODEL.QUERYPOSE.KEYPOINT.NUM_STAGES", 0,
        "keypoint stages, beside the last box stages; 0: one beside every box stage", at_least(0)),
    Key("MODEL.QUERYPOSE.KEYPOINT.REGION_SCALE", 1.0, "side of the keypoint region, in sides of the box", above(0)),
    Key("MODEL.QUERYPOSE.KEYPOINT.NOISY_BOXES", 0,
        "noisy copies of each person's box that the keypoint decoder trains on beside the predicted box", at_least(0)),
    Key("MODEL.QUERYPOSE.KEYPOINT.HEATMAP_INPUT", False,
        "the auxiliary heat maps are an input of the keypoint decoder, in training and in inference"),
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
        registered(INTERACTION_REGISTRY)),
    Key("MODEL.QUERYPOSE.KEYPOINT.PART_DIM", 128, "width of a part query (Table 2c)", at_least(1)),
    Key("MODEL.QUERYPOSE.KEYPOINT.PART_SCHEME", "",
        "part division of the skeleton, by name (Figure 4, Table 2d); '' is the skeleton's default"),
    Key("MODEL.QUERYPOSE.KEYPOINT.ITERATION", "selective", "update of the part queries from stage to stage (Table 2a)",
        registered(PART_UPDATE_REGISTRY)),
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
    Key("MODEL.QUERYPOSE.LOSS.KEYPOINT_WEIGHT", 1.0, "weight of loss_keypoint; 0 leaves it and the flow out",
        at_least(0)),
    Key("MODEL.QUERYPOSE.LOSS.HEATMAP_WEIGHT", 0.0,
        "weight of loss_heatmap, auxiliary keypoint heat maps (end of Sec. 4.3); 0: none; the authors' code has 0.5",
        at_least(0)),
    Key("MODEL.QUERYPOSE.LOSS.START_WEIGHT", 1.0,
        "weight of loss_start_cls, the centers of PROPOSAL_INIT 'dense'; its boxes have the weights of the others",
        at_least(0)),
    Key("MODEL.QUERYPOSE.LOSS.FOCAL_ALPHA", 0.25, "alpha of the focal loss and of the class cost", between(0, 1)),
    Key("MODEL.QUERYPOSE.LOSS.FOCAL_GAMMA", 2.0, "gamma of the focal loss and of the class cost",
        # The gradient of a power below 1 is infinite at a query that is certain.
        Allowed("0, or a number >= 1", lambda value: is_finite(value) and (value == 0 or value >= 1))),
    Key("MODEL.QUERYPOSE.LOSS.EXTRA_TERMS", [], "further losses, registered in QUERY_POSE_LOSS_REGISTRY",
        list_of_names(QUERY_POSE_LOSS_REGISTRY)),
    Key("MODEL.QUERYPOSE.LOSS.DEEP_SUPERVISION", True, "losses at every stage, not at the last alone"),
), check_query_pose)
# fmt: on
