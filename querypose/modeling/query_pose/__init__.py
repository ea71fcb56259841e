"""QueryPose (NeurIPS 2022): part-level queries of every person, refreshed stage by stage.

The files follow the paper: `box_decoder`, `keypoint_decoder` and `pose_decoder` (Sec. 3.1), `part_embedding` (SPEGM,
Sec. 3.2), `part_update` (SIM, Sec. 3.3), `matcher`, `losses` and `criterion` (Sec. 3.4), `meta_arch`;
`query_selection` says which queries inference has to decode.
"""

from querypose.modeling.query_pose import config as config
from querypose.modeling.query_pose import similarity_loss as similarity_loss
from querypose.modeling.query_pose.loss_terms import QUERY_POSE_LOSS_REGISTRY
from querypose.modeling.query_pose.meta_arch import QueryPose
from querypose.modeling.query_pose.part_embedding import INTERACTION_REGISTRY, InteractionSizes, RegionInteraction
from querypose.modeling.query_pose.part_update import PART_UPDATE_REGISTRY
from querypose.modeling.query_pose.pose_decoder import StagePrediction

__all__ = [
    "INTERACTION_REGISTRY",
    "PART_UPDATE_REGISTRY",
    "QUERY_POSE_LOSS_REGISTRY",
    "InteractionSizes",
    "QueryPose",
    "RegionInteraction",
    "StagePrediction",
]
