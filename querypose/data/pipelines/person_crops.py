"""A sample is the crop of one person, as top-down models take it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from querypose.d2 import CfgNode, MetadataCatalog
from querypose.data.augmentations import PixelAugmentation
from querypose.data.datasets import load_datasets
from querypose.data.pipelines.pipeline import PIPELINE_REGISTRY, Pipeline, Record, box_xyxy
from querypose.data.problems import DatasetError
from querypose.data.results import read_results
from querypose.data.transforms import GeometricTransform, ImageSize, box_to_canvas


class PersonCrops(Pipeline):
    """A record is a person: `person_box` (corners), and `box_score` where the box was detected.

    The padded box fills a canvas of one size; pixels outside the image are black. Augmentations move the canvas, which
    turns, shifts or scales the box. Keypoints outside the canvas stay where they are, since a heat map may show a part
    of their Gaussian.
    """

    keeps_outside = True

    def __init__(
        self,
        *,
        size: ImageSize,
        padding: float,
        unbiased: bool = False,
        detections: Mapping[str, str] | None = None,
        **options: Any,
    ) -> None:
        """Sets up the crops.

        Args:
            size: height and width of a sample.
            padding: factor on both sides of a box.
            unbiased: the box reaches from the center of the first pixel of the canvas to that of the last, not from
                edge to edge, as in unbiased data processing (UDP).
            detections: COCO results files with the boxes to evaluate on, by dataset. Training, and an evaluation of
                other datasets, takes the annotated boxes.
            options: see `Pipeline`.
        """
        super().__init__(**options)
        self.size = size
        self.padding = padding
        if unbiased:
            # After the rotation, because the two sides shrink by different shares; before pixel augmentations, so that
            # the pixels are resampled once.
            place = sum(not isinstance(augmentation, PixelAugmentation) for augmentation in self.augmentations)
            self.augmentations = (*self.augmentations[:place], _CenterToCenter(), *self.augmentations[place:])
        self.detections = dict(detections or {})

    def records(self, dataset_names: Sequence[str]) -> list[Record]:
        """One for each person, in training for those with a labeled keypoint; crowds are left out."""
        records = []
        for name in dataset_names:
            images = load_datasets([name])
            if not self.is_train and self.detections.get(name):
                records += _detected_persons(images, name, self.detections[name])
            elif any("annotations" in image for image in images):
                records += _annotated_persons(images)
            else:
                raise DatasetError(
                    f"Dataset {name!r} has no annotations, and person_crops needs the boxes of persons. Set "
                    "DATASETS.PERSON_BOXES to a results file with detected boxes."
                )
        if self.is_train:
            records = [record for record in records if self._is_trainable(record["annotations"][0])]
        if not records:
            raise DatasetError(
                f"No person of {', '.join(dataset_names)} can be used: none has an area"
                f"{' and enough labeled keypoints' if self.is_train else ''}. Check the json files, or the boxes of "
                "DATASETS.PERSON_BOXES."
            )
        return records

    def records_of_image(self, size: ImageSize, boxes_xyxy: np.ndarray | None = None) -> list[Record]:
        """One for each box; without boxes the whole image is the box of one person."""
        boxes = [[0, 0, size[1], size[0]]] if boxes_xyxy is None else np.asarray(boxes_xyxy).tolist()
        return [{"height": size[0], "width": size[1], "person_box": box} for box in boxes]

    def start(self, record: Record, size: ImageSize) -> GeometricTransform:
        """The box in the middle of the canvas."""
        return box_to_canvas(size, record["person_box"], self.size, self.padding)

    def is_landscape(self, record: Record) -> bool:
        """All samples have one size."""
        return self.size[1] > self.size[0]

    def _is_trainable(self, annotation: dict[str, Any]) -> bool:
        visibilities = np.array(annotation["keypoints"][2::3])
        return bool((visibilities > 0).any() and (visibilities > 1).sum() >= self.min_visible_keypoints)


class _CenterToCenter:
    """Shrinks the canvas by half a pixel on every side."""

    def draw(self, size: ImageSize, generator: np.random.Generator) -> GeometricTransform:
        height, width = size
        scale_D = np.array([(width - 1) / width, (height - 1) / height])
        return GeometricTransform(np.column_stack([np.diag(scale_D), np.full(2, 0.5)]), size, size)


def _annotated_persons(images: Sequence[Record]) -> list[Record]:
    return [
        {**image, "annotations": [annotation], "sample_id": (image["image_id"], annotation["id"]), "person_box": box}
        for image in images
        for annotation in image.get("annotations", ())
        if not annotation.get("iscrowd", 0) and _has_area(box := box_xyxy(annotation)[0].tolist())
    ]


def _detected_persons(images: Sequence[Record], dataset_name: str, file: str) -> list[Record]:
    """The boxes of a COCO results file, of the category that the dataset annotates; those without area are none."""
    by_id = {image["image_id"]: image for image in images}
    category_ids = MetadataCatalog.get(dataset_name).thing_dataset_id_to_contiguous_id
    boxes = read_results(file)
    rows = zip(boxes.image_ids, boxes.category_ids, boxes.boxes_xyxy.tolist(), boxes.scores.tolist(), strict=True)
    records = []
    for index, (image_id, category_id, box, score) in enumerate(rows):
        if image_id not in by_id:
            raise DatasetError(
                f"{file}: result {index} has the image_id {image_id}, which is not in dataset {dataset_name!r}. Set "
                "DATASETS.PERSON_BOXES to the file of this dataset."
            )
        if category_id in category_ids and _has_area(box):
            image = {key: value for key, value in by_id[image_id].items() if key != "annotations"}
            records.append({**image, "sample_id": (image_id, index), "person_box": box, "box_score": score})
    return records


def _has_area(box: Sequence[float]) -> bool:
    return box[2] > box[0] and box[3] > box[1]


@PIPELINE_REGISTRY.register()
def person_crops(cfg: CfgNode, is_train: bool) -> PersonCrops:
    """`PersonCrops` as INPUT.PERSON_CROP describes it."""
    height, width = cfg.INPUT.PERSON_CROP.SIZE
    return PersonCrops(
        size=(height, width),
        padding=cfg.INPUT.PERSON_CROP.PADDING,
        unbiased=cfg.INPUT.PERSON_CROP.UNBIASED,
        antialias=cfg.INPUT.PERSON_CROP.ANTIALIAS,
        detections=dict(zip(cfg.DATASETS.TEST, cfg.DATASETS.PERSON_BOXES, strict=False)),
        **Pipeline.from_config(cfg, is_train),
    )
