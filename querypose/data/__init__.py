"""Datasets, pipelines, loading; importing it registers the built-in dataset names."""

from querypose.data import config as config
from querypose.data.augmentations import AUGMENTATION_REGISTRY
from querypose.data.bad_images import TooManyBadImagesError
from querypose.data.coco import PoseAnnotations, read_annotations
from querypose.data.datasets import (
    dataset_annotations,
    datasets_root,
    load_datasets,
    register_builtin_datasets,
    register_custom_datasets,
    register_pose_dataset,
)
from querypose.data.image_io import ImageReadError, ImageSizeError, read_image
from querypose.data.loader_failures import (
    LoaderError,
    StoppedWaitingError,
    explain_loader_failures,
    waiting_stops_if,
)
from querypose.data.loading import build_test_loader, build_train_loader
from querypose.data.pipelines import PIPELINE_REGISTRY, Pipeline, build_pipeline
from querypose.data.problems import DatasetError

__all__ = [
    "AUGMENTATION_REGISTRY",
    "PIPELINE_REGISTRY",
    "DatasetError",
    "ImageReadError",
    "ImageSizeError",
    "LoaderError",
    "StoppedWaitingError",
    "Pipeline",
    "PoseAnnotations",
    "TooManyBadImagesError",
    "build_pipeline",
    "build_test_loader",
    "build_train_loader",
    "dataset_annotations",
    "datasets_root",
    "explain_loader_failures",
    "waiting_stops_if",
    "load_datasets",
    "read_annotations",
    "read_image",
    "register_builtin_datasets",
    "register_custom_datasets",
    "register_pose_dataset",
]

register_builtin_datasets()
