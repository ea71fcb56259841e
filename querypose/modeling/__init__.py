"""Meta-architectures and their parts; importing the package fills the registries.

It exports what a model of your own needs; see examples/my_project.
"""

from querypose.modeling import backbone as backbone
from querypose.modeling import config as config
from querypose.modeling.images import image_cells
from querypose.modeling.loss_terms import LossTerm
from querypose.modeling.poet import POET
from querypose.modeling.pose_model import Batch, Component, PoseModel, num_instances
from querypose.modeling.poses import QueryPoses
from querypose.modeling.query_pose import QueryPose
from querypose.modeling.sharpose import SHaRPose
from querypose.modeling.targets import PersonTargets

__all__ = [
    "POET",
    "Batch",
    "Component",
    "LossTerm",
    "PersonTargets",
    "PoseModel",
    "QueryPose",
    "QueryPoses",
    "SHaRPose",
    "image_cells",
    "num_instances",
]
