"""Meta-architectures and their parts; importing the package fills the registries."""

from querypose.modeling import backbone as backbone
from querypose.modeling import config as config
from querypose.modeling.poet import POET
from querypose.modeling.pose_model import Component, PoseModel
from querypose.modeling.query_pose import QueryPose

__all__ = ["POET", "Component", "PoseModel", "QueryPose"]
