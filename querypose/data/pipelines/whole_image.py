"""A sample is an image with all its persons."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from querypose.d2 import CfgNode
from querypose.data.augmentations import Augmentation, RandomCrop, RandomRescale, RandomResize
from querypose.data.datasets import load_datasets
from querypose.data.pipelines.pipeline import PIPELINE_REGISTRY, Pipeline, Record
from querypose.data.transforms import GeometricTransform, ImageSize, identity


class WholeImage(Pipeline):
    """A record is an image, with all its persons."""

    def __init__(self, *, require_persons: bool = False, **options: Any) -> None:
        """Sets up the pipeline.

        Args:
            require_persons: leave out images without an annotated person.
            options: see `Pipeline`.
        """
        super().__init__(**options)
        self.require_persons = require_persons

    def records(self, dataset_names: Sequence[str]) -> list[Record]:
        """One for each image."""
        records = load_datasets(
            dataset_names, require_persons=self.require_persons, min_visible_keypoints=self.min_visible_keypoints
        )
        return [{"sample_id": record["image_id"], **record} for record in records]

    def records_of_image(self, size: ImageSize, boxes_xyxy: np.ndarray | None = None) -> list[Record]:
        """One."""
        return [{"height": size[0], "width": size[1]}]

    def start(self, record: Record, size: ImageSize) -> GeometricTransform:
        """The image as it is."""
        return identity(size)


@PIPELINE_REGISTRY.register()
def whole_image(cfg: CfgNode, is_train: bool) -> WholeImage:
    """`WholeImage` as INPUT describes it."""
    options = Pipeline.from_config(cfg, is_train, crop_and_resize(cfg))
    if not is_train:
        short_side, factor = cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.SCALE_TEST
        resizing = (
            RandomResize([short_side], cfg.INPUT.MAX_SIZE_TEST) if short_side else RandomRescale((factor, factor))
        )
        options["augmentations"] = [resizing]
    return WholeImage(require_persons=is_train and cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS, **options)


def crop_and_resize(cfg: CfgNode) -> list[Augmentation]:
    """What INPUT.CROP, MIN_SIZE_TRAIN and MAX_SIZE_TRAIN describe."""
    cropping = cfg.INPUT.CROP
    return [
        RandomCrop(cropping.PROBABILITY, tuple(cropping.MIN_SIZE), tuple(cropping.SIZE)),
        RandomResize(tuple(cfg.INPUT.MIN_SIZE_TRAIN), cfg.INPUT.MAX_SIZE_TRAIN),
    ]
