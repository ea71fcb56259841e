"""Datasets, augmentation and the mapper; importing it registers the built-in dataset names."""

from querypose.data import config as config
from querypose.data.bad_images import SkipBadImages, TooManyBadImagesError
from querypose.data.coco import PoseAnnotations, read_annotations
from querypose.data.datasets import (
    dataset_annotations,
    datasets_root,
    load_datasets,
    register_builtin_datasets,
    register_custom_datasets,
    register_pose_dataset,
)
from querypose.data.image_io import ImageReadError, read_image
from querypose.data.loader_failures import LoaderError, explain_loader_failures
from querypose.data.mapper import ImageSizeError, PoseMapper
from querypose.data.problems import DatasetError
from querypose.data.training_order import TrainingBatches
from querypose.data.worker_signals import ShieldedMapper

__all__ = [
    "DatasetError",
    "ImageReadError",
    "ImageSizeError",
    "LoaderError",
    "PoseAnnotations",
    "PoseMapper",
    "ShieldedMapper",
    "SkipBadImages",
    "TooManyBadImagesError",
    "TrainingBatches",
    "dataset_annotations",
    "datasets_root",
    "explain_loader_failures",
    "load_datasets",
    "read_annotations",
    "read_image",
    "register_builtin_datasets",
    "register_custom_datasets",
    "register_pose_dataset",
]

register_builtin_datasets()
