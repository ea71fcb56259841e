"""Keys of LQR."""

from __future__ import annotations

from querypose.config import Allowed, ConfigError, Key, above, add_keys, at_least, is_finite, list_of_names, one_of
from querypose.d2 import CfgNode
from querypose.modeling.lqr.criterion import LABELS
from querypose.modeling.lqr.keypoint_queries import AGGREGATIONS
from querypose.modeling.lqr.loss_terms import LQR_LOSS_REGISTRY
from querypose.modeling.lqr.pose_queries import PLACES


def check_lqr(cfg: CfgNode) -> None:
    """Refuses places of the pose query that there are not."""
    lqr = cfg.MODEL.LQR
    if lqr.POSE_QUERY in ("keypoint_queries", "semantic_points") and not lqr.KEYPOINT_QUERIES:
        raise ConfigError(
            f"MODEL.LQR.POSE_QUERY is {lqr.POSE_QUERY!r}; allowed with MODEL.LQR.KEYPOINT_QUERIES False: 'cell', "
            "'keypoints', 'learned'."
        )
    if lqr.POSE_QUERY == "semantic_points" and lqr.NUM_POINTS == 0:
        raise ConfigError("MODEL.LQR.POSE_QUERY is 'semantic_points'; MODEL.LQR.NUM_POINTS must be above 0 for it.")


# fmt: off
add_keys((
    Key("MODEL.LQR.KEYPOINT_DIM", 24, "channels of a keypoint's feature", at_least(1)),
    Key("MODEL.LQR.INSTANCE_DIM", 64, "channels of the instance feature, and of what the score is read from",
        at_least(1)),
    Key("MODEL.LQR.KEYPOINT_QUERIES", True,
        "keypoint query encoding (KQE); False regresses keypoints from the cell (Table 2)"),
    Key("MODEL.LQR.NUM_POINTS", 9, "semantic points of a keypoint query (N); 0 reads the query alone (Table 4)",
        at_least(0)),
    Key("MODEL.LQR.AGGREGATION", "sum",
        "of the features of these points: their sum, or one in which each point has weights of its own",
        one_of(*AGGREGATIONS)),
    Key("MODEL.LQR.POSE_QUERY", "keypoint_queries",
        "where the pose query encoding (PQE) reads the instance feature (Table 6); 'cell' is without it",
        one_of(*PLACES)),
    Key("MODEL.LQR.QUALITY_BRANCH", False, "a second head for the quality of a pose (Table 3)"),
    Key("MODEL.LQR.LABEL", "cir", "what a score is fitted to: the OKS of its pose (CIR), a Gaussian, or 1",
        one_of(*LABELS), fixed=False),
    Key("MODEL.LQR.RADIUS", 4.0, "radius of a person's region about the center, in cells (gamma)", above(0),
        fixed=False),
    Key("MODEL.LQR.MIN_AREA", 1024.0, "smaller persons are background, in square pixels of the file", at_least(0),
        fixed=False),
    Key("MODEL.LQR.BACKGROUND_WEIGHT", 0.1, "weight of the scores outside of all regions", at_least(0), fixed=False),
    Key("MODEL.LQR.LOSS.SCORE_WEIGHT", 1.0, "weight of loss_score", at_least(0)),
    Key("MODEL.LQR.LOSS.OFFSET_WEIGHT", 1.0, "weight of loss_offset", at_least(0)),
    Key("MODEL.LQR.LOSS.QUALITY_WEIGHT", 1.0, "weight of loss_quality", at_least(0)),
    Key("MODEL.LQR.LOSS.EXTRA_TERMS", [], "further losses, registered in LQR_LOSS_REGISTRY",
        list_of_names(LQR_LOSS_REGISTRY)),
    Key("MODEL.LQR.PEAK_WINDOW", 5, "side of the window in which a pose must have the best score, in cells",
        Allowed("an odd integer >= 1", lambda value: type(value) is int and value >= 1 and value % 2 == 1),
        fixed=False),
    Key("MODEL.LQR.FLIP_TEST", True, "average the maps of an image with those of its mirror image", fixed=False),
    Key("MODEL.LQR.TEST_SCALES", [1.0], "of the image in inference, 1 among them; the poses of all are joined",
        Allowed("a list of different numbers in [0.1, 10], 1 among them",
                lambda value: isinstance(value, list | tuple)
                and all(is_finite(scale) and 0.1 <= scale <= 10 for scale in value)
                and len(set(value)) == len(value) and 1.0 in value), fixed=False),
), check_lqr)
# fmt: on
