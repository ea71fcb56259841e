"""`Pipeline`: from a record of a dataset to a sample for the model, and the map between the two."""

from __future__ import annotations

import abc
import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from querypose.config import build_part
from querypose.d2 import Boxes, BoxMode, CfgNode, Instances, Keypoints, Registry
from querypose.data.augmentations import (
    AUGMENTATION_REGISTRY,
    Augmentation,
    CoarseDropout,
    PersonAugmentation,
    RandomFlip,
    RandomRotation,
    augment,
)
from querypose.data.coco import AREA_OF_BOX
from querypose.data.image_checks import check_image_size
from querypose.data.image_io import ImageSizeError, read_image
from querypose.data.problems import DatasetError
from querypose.data.transforms import GeometricTransform, ImageSize
from querypose.skeleton import Skeleton, skeleton_of_datasets

PIPELINE_REGISTRY = Registry("PIPELINE")
PIPELINE_REGISTRY.__doc__ = """
Functions that INPUT.PIPELINE names; each takes (cfg, is_train) and gives a `Pipeline`.
"""

# In INPUT.AUGMENTATIONS: the augmentations that detectron2's keys describe.
DEFAULT_AUGMENTATIONS = "default"

Record = dict[str, Any]
Sample = dict[str, Any]

_logger = logging.getLogger(__name__)

# Boxes thinner than this after a crop are dropped, in pixels; detectron2's bound.
_EMPTY_BOX = 1e-5


def build_pipeline(cfg: CfgNode, is_train: bool) -> Pipeline:
    """The pipeline that INPUT.PIPELINE names, for training or for evaluation."""
    pipeline: Pipeline = PIPELINE_REGISTRY.get(cfg.INPUT.PIPELINE)(cfg, is_train)
    return pipeline


class Pipeline(abc.ABC):
    """Lists the records of a dataset, and makes a sample of each.

    A subclass defines its records (`records`, `records_of_image`) and the part of the image that a record shows
    (`start`).

    Attributes:
        is_train: whether its records are those to train on.
        channel_order: "RGB" or "BGR", of the samples.
        augmentations: applied in this order.
        skeleton: what the keypoints are; None packs no annotations.
        min_visible_keypoints: persons with fewer of them, in the record or in the sample, are not trained on.
        antialias: whether pixels that shrink are averaged.
        keeps_outside: whether keypoints outside the sample stay where they are; else they count as not labeled.
    """

    keeps_outside = False

    def __init__(
        self,
        *,
        is_train: bool,
        channel_order: str = "RGB",
        augmentations: Sequence[Augmentation] = (),
        skeleton: Skeleton | None = None,
        min_visible_keypoints: int = 0,
        antialias: bool = True,
    ) -> None:
        if is_train and skeleton is None:
            raise ValueError("A pipeline for training needs a skeleton.")
        self.is_train = is_train
        self.channel_order = channel_order
        self.augmentations = tuple(augmentations)
        self.skeleton = skeleton
        self.min_visible_keypoints = min_visible_keypoints
        self.antialias = antialias
        self._is_swap_reported = False

    @staticmethod
    def from_config(cfg: CfgNode, is_train: bool, cropping: Sequence[Augmentation] = ()) -> dict[str, Any]:
        """The arguments that all pipelines share.

        Args:
            cfg: INPUT.AUGMENTATIONS are the augmentations; "default" in it is RANDOM_FLIP, ROTATION and COARSE_DROPOUT.
            is_train: an evaluation has no augmentations, packs no annotations and leaves nobody out.
            cropping: augmentations that a pipeline adds to the latter three, before the dropout.
        """
        if not is_train:
            return {"is_train": False, "channel_order": cfg.INPUT.FORMAT}
        augmentations: list[Augmentation] = []
        for index, entry in enumerate(cfg.INPUT.AUGMENTATIONS):
            if entry == DEFAULT_AUGMENTATIONS:
                augmentations += _default_augmentations(cfg, cropping)
            else:
                augmentations.append(build_part(AUGMENTATION_REGISTRY, entry, f"INPUT.AUGMENTATIONS[{index}]"))
        return {
            "is_train": True,
            "channel_order": cfg.INPUT.FORMAT,
            "augmentations": augmentations,
            "skeleton": skeleton_of_datasets(cfg.DATASETS.TRAIN),
            "min_visible_keypoints": cfg.DATALOADER.MIN_VISIBLE_KEYPOINTS,
        }

    @abc.abstractmethod
    def records(self, dataset_names: Sequence[str]) -> list[Record]:
        """The records of some registered datasets, to train on or to evaluate.

        Returns:
            a dict for each sample: file_name, height, width, image_id, `sample_id` (unique in its dataset), annotations
            if there are any, and what `start` needs.

        Raises:
            DatasetError: a dataset is unknown or cannot be used, or nothing is left.
        """

    @abc.abstractmethod
    def records_of_image(self, size: ImageSize, boxes_xyxy: np.ndarray | None = None) -> list[Record]:
        """The records of an image that is in no dataset.

        Args:
            size: its height and width.
            boxes_xyxy: (N, 4), of persons if they are known; a pipeline that needs none ignores them.
        """

    @abc.abstractmethod
    def start(self, record: Record, size: ImageSize) -> GeometricTransform:
        """The map from an image of `size` to the canvas on which the augmentations of this record begin."""

    def is_landscape(self, record: Record) -> bool:
        """Whether its sample will be wider than high; batches of equal orientation need less padding."""
        return bool(record["width"] > record["height"])

    def sample(self, record: Record, generator: np.random.Generator, image: np.ndarray | None = None) -> Sample:
        """Makes the sample of a record. The same state of the generator gives the same sample.

        Args:
            record: one of `records` or `records_of_image`; not changed.
            generator: everything random comes from it.
            image: uint8 (H, W, 3) RGB; by default the file of the record is read.

        Returns:
            the record without annotations, and: `height` and `width` (of the file), `image` (uint8 (3, H', W')),
            `frame` (from the file to `image`), and with a skeleton `instances` with gt_boxes, gt_classes, gt_keypoints
            and gt_areas (of whole persons, whatever a crop leaves of them) in the frame of `image`, continuous pixels.
            A crop may leave none.

        Raises:
            ImageReadError: the file cannot be read.
            ImageSizeError: its size is not that of the record.
            DatasetError: the record has no annotations, but a training needs them.
        """
        if image is None:
            image = read_image(record["file_name"], self.channel_order)
            self._check_size(record, image.shape[0], image.shape[1])
        else:
            # A copy: torch takes neither negative strides nor read-only memory.
            image = np.array(image if self.channel_order == "RGB" else image[:, :, ::-1], order="C")
        size = (image.shape[0], image.shape[1])
        pixels, frame = augment(
            image,
            self.start(record, size),
            self.augmentations,
            generator,
            person_K3=self._person_of_augmentations(record, generator),
            skeleton=self.skeleton,
            antialias=self.antialias,
        )
        sample = {key: value for key, value in record.items() if key != "annotations"}
        sample["height"], sample["width"] = size
        sample["image"], sample["frame"] = pixels, frame
        if self.skeleton is not None:
            if "annotations" not in record:
                raise DatasetError(
                    f"Image {record['file_name']!r} has no annotations, so that no model can be trained on it. Remove "
                    "its dataset from DATASETS.TRAIN."
                )
            sample["instances"] = self._instances(record["annotations"], frame, self.skeleton)
        return sample

    def _person_of_augmentations(self, record: Record, generator: np.random.Generator) -> np.ndarray | None:
        """Keypoints (K, 3) of the person whom augmentations for a person follow: one of those with labeled ones."""
        if not any(isinstance(augmentation, PersonAugmentation) for augmentation in self.augmentations):
            return None
        persons = [np.reshape(person["keypoints"], (-1, 3)) for person in record.get("annotations", ())]
        labeled = [person_K3 for person_K3 in persons if (person_K3[:, 2] > 0).any()]
        return labeled[generator.integers(len(labeled)) if len(labeled) > 1 else 0] if labeled else None

    def _check_size(self, record: Record, height: int, width: int) -> None:
        """Accepts a record whose height and width are swapped, as CrowdPose has some, and no other difference."""
        problem = check_image_size(record, height, width)
        if problem is None:
            return
        if problem.severity == "error":
            raise ImageSizeError(problem.message)
        if not self._is_swap_reported:
            _logger.warning("%s Further images like this are corrected without a warning.", problem.message)
            self._is_swap_reported = True

    def _instances(
        self, annotations: Sequence[dict[str, Any]], frame: GeometricTransform, skeleton: Skeleton
    ) -> Instances:
        persons = [annotation for annotation in annotations if not annotation.get("iscrowd", 0)]
        height, width = frame.output_size
        boxes = np.concatenate([np.empty((0, 4)), *map(box_xyxy, persons)])
        keypoints = np.array([person["keypoints"] for person in persons], dtype=np.float64)
        keypoints = keypoints.reshape(-1, skeleton.num_keypoints, 3)
        boxes = np.clip(frame.apply_boxes(boxes, keypoints), 0, [width, height, width, height])
        keypoints = frame.apply_keypoints(keypoints, skeleton.flip_indices, keep_outside=self.keeps_outside)
        is_kept = (boxes[:, 2:] - boxes[:, :2] > _EMPTY_BOX).all(axis=1)
        is_kept &= (keypoints[..., 2] > 1).sum(axis=1) >= self.min_visible_keypoints
        instances = Instances((height, width))
        instances.gt_boxes = Boxes(torch.from_numpy(boxes[is_kept]).float())
        instances.gt_classes = torch.zeros(int(is_kept.sum()), dtype=torch.int64)
        instances.gt_keypoints = Keypoints(torch.from_numpy(keypoints[is_kept]).float())
        areas = np.array([person.get("area", _area_of_box(person)) for person in persons], dtype=np.float64)
        areas *= abs(np.linalg.det(frame.matrix[:, :2]))
        instances.gt_areas = torch.from_numpy(areas[is_kept]).float()
        return instances


def _default_augmentations(cfg: CfgNode, cropping: Sequence[Augmentation]) -> list[Augmentation]:
    rotation, dropout = cfg.INPUT.ROTATION, cfg.INPUT.COARSE_DROPOUT
    augmentations: list[Augmentation] = [RandomFlip(0.5 if cfg.INPUT.RANDOM_FLIP == "horizontal" else 0.0)]
    if rotation.PROBABILITY:
        augmentations.append(RandomRotation(rotation.PROBABILITY, rotation.MAX_DEGREES))
    augmentations += cropping
    if dropout.PROBABILITY:
        share, grid = tuple(dropout.SHARE), tuple(dropout.GRID)
        augmentations.append(CoarseDropout(dropout.PROBABILITY, share, grid, dropout.PER_CHANNEL))
    return augmentations


def _area_of_box(annotation: dict[str, Any]) -> float:
    """What stands in for the area of a person of whom only the box is known."""
    corners = box_xyxy(annotation)[0]
    return float(AREA_OF_BOX * (corners[2:] - corners[:2]).prod())


def box_xyxy(annotation: dict[str, Any]) -> np.ndarray:
    """The corners of an annotation's box, float64 (1, 4)."""
    # An array, because detectron2 converts a list to float32.
    box = np.array([annotation["bbox"]], dtype=np.float64)
    corners: np.ndarray = BoxMode.convert(box, annotation["bbox_mode"], BoxMode.XYXY_ABS)
    return corners
