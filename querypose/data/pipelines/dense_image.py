"""A sample is an image for a model that predicts something at every cell of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from faster_coco_eval import mask as coco_mask

from querypose.d2 import CfgNode
from querypose.data.augmentations import CenteredCanvas
from querypose.data.pipelines.pipeline import PIPELINE_REGISTRY, Pipeline, Record, Sample, box_xyxy
from querypose.data.pipelines.whole_image import WholeImage, crop_and_resize
from querypose.data.problems import DatasetError
from querypose.data.transforms import GeometricTransform


class DenseImage(WholeImage):
    """A whole image in which crowds and persons without a keypoint are masked out; evaluated on a centered canvas.

    A sample to train on has `valid_mask`, bool (H', W'): False there and outside the image. Keypoints outside a crop
    stay where they are, since the center of a person is the mean of all.
    """

    keeps_outside = True

    def records(self, dataset_names: Sequence[str]) -> list[Record]:
        """An image each; where persons are required, those with a labeled keypoint count."""
        records = super().records(dataset_names)
        if not self.require_persons:
            return records
        kept = [
            record
            for record in records
            if any(not person["iscrowd"] and _has_keypoint(person) for person in record["annotations"])
        ]
        if not kept:
            raise DatasetError(
                f"No image of {', '.join(dataset_names)} is left: none of {len(records)} has a person with a labeled "
                "keypoint. Check the json."
            )
        return kept

    def sample(self, record: Record, generator: np.random.Generator, image: np.ndarray | None = None) -> Sample:
        """As `Pipeline.sample`, with `valid_mask` where there are annotations."""
        sample = super().sample(record, generator, image)
        if self.skeleton is not None:
            sample["valid_mask"] = valid_mask(record["annotations"], sample["frame"])
        return sample


def valid_mask(annotations: Sequence[dict[str, Any]], frame: GeometricTransform) -> torch.Tensor:
    """Which pixels of the output of `frame` (H', W') show the image, and neither a crowd nor a person without keypoint.

    Args:
        annotations: of the image; a box stands in for a `segmentation` that is missing.
        frame: from the image.
    """
    size_hw = frame.source_size
    valid_HW = np.ones(size_hw, dtype=bool)
    for annotation in annotations:
        if annotation.get("iscrowd", 0) or not _has_keypoint(annotation):
            valid_HW &= ~segment_pixels(annotation, size_hw)
    mask = frame.apply_image(valid_HW[..., None].astype(np.uint8) * 255, antialias=False)
    return torch.from_numpy(mask[..., 0] >= 128)


def segment_pixels(annotation: dict[str, Any], size_hw: tuple[int, int]) -> np.ndarray:
    """The pixels of an annotation, bool (H, W): those of its polygons or its RLE, else those of its box."""
    segmentation, (height, width) = annotation.get("segmentation"), size_hw
    if isinstance(segmentation, dict) and tuple(segmentation["size"]) != size_hw:
        segmentation = None  # the file's image is turned: see Pipeline.sample
    if not segmentation:
        x0, y0, x1, y1 = box_xyxy(annotation)[0]
        pixels_HW = np.zeros(size_hw, dtype=bool)
        pixels_HW[max(int(y0), 0) : int(np.ceil(y1)), max(int(x0), 0) : int(np.ceil(x1))] = True
        return pixels_HW
    runs = segmentation
    if isinstance(segmentation, list) or isinstance(segmentation["counts"], list):
        runs = coco_mask.frPyObjects(segmentation, height, width)
    merged = coco_mask.merge(runs) if isinstance(runs, list) else runs
    return np.asarray(coco_mask.decode(merged), dtype=bool)


def _has_keypoint(annotation: dict[str, Any]) -> bool:
    return any(visibility > 0 for visibility in annotation["keypoints"][2::3])


@PIPELINE_REGISTRY.register()
def dense_image(cfg: CfgNode, is_train: bool) -> DenseImage:
    """`DenseImage`: trained as `whole_image`, evaluated on a canvas of short side INPUT.MIN_SIZE_TEST."""
    options = Pipeline.from_config(cfg, is_train, crop_and_resize(cfg))
    if not is_train:
        options["augmentations"] = [CenteredCanvas(cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.CANVAS_MULTIPLE)]
    return DenseImage(require_persons=is_train and cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS, **options)
