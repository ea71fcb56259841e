"""From a dict of a dataset to what the model is fed: reads the image, augments, moves boxes and keypoints with it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from querypose.d2 import Boxes, BoxMode, CfgNode, Instances, Keypoints, configurable
from querypose.data.image_checks import check_image_size
from querypose.data.image_io import read_image
from querypose.data.pixel_augmentation import CoarseDropout, PixelAugmentation
from querypose.data.problems import DatasetError
from querypose.data.transforms import (
    GeometricTransform,
    RandomCrop,
    RandomFlip,
    RandomResize,
    RandomRotation,
    RandomTransform,
    identity,
)
from querypose.skeleton import Skeleton, skeleton_of_datasets

_logger = logging.getLogger(__name__)

# Boxes thinner than this after a crop are gone, in pixels; detectron2's bound.
_EMPTY_BOX = 1e-5


class ImageSizeError(ValueError):
    """An image whose size is not what its json says: names file, id, both sizes and the remedy."""


class PoseMapper:
    """Reads, augments and packs one image; what the data loader calls.

    Everything random is drawn from a generator that numpy's global one seeds, as the loader seeds that one per sample:
    the same seed gives the same sample.
    """

    @configurable
    def __init__(
        self,
        *,
        is_train: bool,
        channel_order: str,
        transforms: Sequence[RandomTransform],
        skeleton: Skeleton | None = None,
        pixel_augmentations: Sequence[PixelAugmentation] = (),
        min_visible_keypoints: int = 0,
    ) -> None:
        """Takes plain arguments; `PoseMapper(cfg, is_train)` reads them from a config.

        Args:
            is_train: whether to pack annotations.
            channel_order: "RGB" or "BGR".
            transforms: drawn in this order, applied as one.
            skeleton: what the keypoints are; needed in training.
            pixel_augmentations: applied in this order to what the transforms give.
            min_visible_keypoints: persons with fewer of them in the augmented image are left out.
        """
        if is_train and skeleton is None:
            raise ValueError("PoseMapper needs a skeleton in training.")
        self.is_train = is_train
        self.channel_order = channel_order
        self.transforms = tuple(transforms)
        self.skeleton = skeleton
        self.pixel_augmentations = tuple(pixel_augmentations)
        self.min_visible_keypoints = min_visible_keypoints
        self._swap_reported = False

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool = True) -> dict[str, Any]:
        """The arguments that a config states."""
        if not is_train:
            resize = RandomResize([cfg.INPUT.MIN_SIZE_TEST], cfg.INPUT.MAX_SIZE_TEST)
            return {"is_train": False, "channel_order": cfg.INPUT.FORMAT, "transforms": [resize]}
        rotation, dropout, (low, high) = cfg.INPUT.ROTATION, cfg.INPUT.COARSE_DROPOUT, cfg.INPUT.CROP.SIZE
        transforms: list[RandomTransform] = [RandomFlip(0.5 if cfg.INPUT.RANDOM_FLIP == "horizontal" else 0.0)]
        if rotation.PROBABILITY:
            transforms.append(RandomRotation(rotation.PROBABILITY, rotation.MAX_DEGREES))
        transforms.append(RandomCrop(cfg.INPUT.CROP.PROBABILITY, tuple(cfg.INPUT.CROP.MIN_SIZE), (low, high)))
        transforms.append(RandomResize(tuple(cfg.INPUT.MIN_SIZE_TRAIN), cfg.INPUT.MAX_SIZE_TRAIN))
        pixel_augmentations = []
        if dropout.PROBABILITY:
            bounds = {"share": tuple(dropout.SHARE), "grid": tuple(dropout.GRID)}
            pixel_augmentations.append(CoarseDropout(dropout.PROBABILITY, **bounds, per_channel=dropout.PER_CHANNEL))
        return {
            "is_train": True,
            "channel_order": cfg.INPUT.FORMAT,
            "transforms": transforms,
            "skeleton": skeleton_of_datasets(cfg.DATASETS.TRAIN),
            "pixel_augmentations": pixel_augmentations,
            "min_visible_keypoints": cfg.DATALOADER.MIN_VISIBLE_KEYPOINTS,
        }

    def __call__(self, record: dict[str, Any]) -> dict[str, Any]:
        """Makes one sample.

        Args:
            record: a dict as `PoseAnnotations.record` gives; not changed.

        Returns:
            file_name, image_id, height and width (of the file), image (uint8 (3, H, W)), and in training instances with
            gt_boxes, gt_classes and gt_keypoints in the frame of `image`, continuous pixels. A crop may leave none.

        Raises:
            ImageReadError: the file cannot be read.
            ImageSizeError: its size is not that of the record.
            DatasetError: a training image has no annotations.
        """
        image = read_image(record["file_name"], self.channel_order)
        self._check_size(record, image.shape[0], image.shape[1])
        # Loaders seed numpy's global generator for every sample, so this is the one draw from it.
        generator = np.random.default_rng(np.random.randint(2**32, dtype=np.uint64))  # noqa: NPY002
        transform = self._draw(image.shape[0], image.shape[1], generator)
        pixels = transform.apply_image(image)
        sample = {key: value for key, value in record.items() if key != "annotations"}
        sample["height"], sample["width"] = image.shape[:2]
        sample["image"] = torch.from_numpy(pixels).permute(2, 0, 1).contiguous()
        for augmentation in self.pixel_augmentations:
            sample["image"] = augmentation.apply(sample["image"], generator)
        if self.is_train:
            sample["instances"] = self._instances(record, transform)
        return sample

    def _draw(self, height: int, width: int, generator: np.random.Generator) -> GeometricTransform:
        transform = identity((height, width))
        for random_transform in self.transforms:
            transform = transform.then(random_transform.draw(transform.output_size, generator))
        return transform

    def _check_size(self, record: dict[str, Any], height: int, width: int) -> None:
        """Accepts a record whose height and width are swapped, as CrowdPose has some, and no other difference."""
        problem = check_image_size(record, height, width)
        if problem is None:
            return
        if problem.severity == "error":
            raise ImageSizeError(problem.message)
        if not self._swap_reported:
            _logger.warning("%s (Others like it are corrected without a word.)", problem.message)
            self._swap_reported = True

    def _instances(self, record: dict[str, Any], transform: GeometricTransform) -> Instances:
        assert self.skeleton is not None
        if "annotations" not in record:
            raise DatasetError(f"Image {record['file_name']!r} has no annotations and cannot be trained on.")
        persons = [annotation for annotation in record["annotations"] if not annotation.get("iscrowd", 0)]
        height, width = transform.output_size
        boxes = np.array(
            [BoxMode.convert(person["bbox"], person["bbox_mode"], BoxMode.XYXY_ABS) for person in persons]
        ).reshape(-1, 4)
        boxes = np.clip(transform.apply_boxes(boxes), 0, [width, height, width, height])
        keypoints = np.array([person["keypoints"] for person in persons], dtype=np.float64)
        keypoints = transform.apply_keypoints(
            keypoints.reshape(-1, self.skeleton.num_keypoints, 3), self.skeleton.flip_indices
        )
        is_kept = (boxes[:, 2:] - boxes[:, :2] > _EMPTY_BOX).all(axis=1)
        is_kept &= (keypoints[..., 2] > 1).sum(axis=1) >= self.min_visible_keypoints
        instances = Instances((height, width))
        instances.gt_boxes = Boxes(torch.from_numpy(boxes[is_kept]).float())
        instances.gt_classes = torch.zeros(int(is_kept.sum()), dtype=torch.int64)
        instances.gt_keypoints = Keypoints(torch.from_numpy(keypoints[is_kept]).float())
        return instances
