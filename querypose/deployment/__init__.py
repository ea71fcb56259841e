"""A trained model away from its training: loaded in a line, saved whole, exported to run without torch."""

from querypose.deployment.estimator import PoseEstimator, load
from querypose.deployment.package import ModelPackage, read_package
from querypose.deployment.results import ImagePoses

__all__ = ["ImagePoses", "ModelPackage", "PoseEstimator", "load", "read_package"]
