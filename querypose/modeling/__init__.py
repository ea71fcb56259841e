"""Meta-architectures and their parts; importing the package fills the registries.

It exports what a model of your own needs; see examples/my_project.
"""

from querypose.modeling import backbone as backbone
from querypose.modeling import config as config
from querypose.modeling.explanation import BoxLayer, Layer, MapLayer, PatchLayer, PointLayer, PoseLayer, ValueLayer
from querypose.modeling.images import image_cells
from querypose.modeling.loss_terms import LossTerm
from querypose.modeling.lqr import LQR
from querypose.modeling.poet import POET
from querypose.modeling.pose_model import Batch, Component, PoseModel, num_instances
from querypose.modeling.poses import QueryPoses
from querypose.modeling.query_pose import QueryPose
from querypose.modeling.sharpose import SHaRPose
from querypose.modeling.targets import PersonTargets

__all__ = [
    "LQR",
    "POET",
    "Batch",
    "BoxLayer",
    "Component",
    "Layer",
    "LossTerm",
    "MapLayer",
    "PatchLayer",
    "PersonTargets",
    "PointLayer",
    "PoseLayer",
    "PoseModel",
    "QueryPose",
    "QueryPoses",
    "SHaRPose",
    "ValueLayer",
    "image_cells",
    "num_instances",
]
