"""Datasets, pipelines, loading; importing it registers the built-in dataset names."""

from querypose.data import config as config
from querypose.data.augmentations import AUGMENTATION_REGISTRY
from querypose.data.bad_images import TooManyBadImagesError
from querypose.data.coco_json import DatasetError, load_pose_json
from querypose.data.datasets import (
    datasets_root,
    load_datasets,
    register_builtin_datasets,
    register_custom_datasets,
    register_pose_dataset,
)
from querypose.data.image_io import ImageReadError, ImageSizeError, read_image
from querypose.data.loader_failures import LoaderError, explain_loader_failures
from querypose.data.loading import build_test_loader, build_train_loader
from querypose.data.pipelines import PIPELINE_REGISTRY, Pipeline, build_pipeline

__all__ = [
    "AUGMENTATION_REGISTRY",
    "DatasetError",
    "ImageReadError",
    "ImageSizeError",
    "LoaderError",
    "PIPELINE_REGISTRY",
    "Pipeline",
    "TooManyBadImagesError",
    "build_pipeline",
    "build_test_loader",
    "build_train_loader",
    "datasets_root",
    "explain_loader_failures",
    "load_datasets",
    "load_pose_json",
    "read_image",
    "register_builtin_datasets",
    "register_custom_datasets",
    "register_pose_dataset",
]

register_builtin_datasets()
