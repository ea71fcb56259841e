"""The annotated persons of a batch, and the matches between queries and persons."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from querypose.d2 import Instances


@dataclass(frozen=True)
class PersonTargets:
    """The persons of B images, padded to the G of the fullest one.

    Attributes:
        boxes_BG4: corners, in pixels of the padded input images.
        keypoints_BGKD: positions, same frame; arbitrary where not labeled.
        labelled_BGK: True where a keypoint is annotated, hidden or visible.
        counts: persons of each image, known to the host.
        image_size_B4: width, height, width, height of each unpadded image, in pixels.
        visible_BGK: True where a keypoint is annotated as visible.
    """

    boxes_BG4: Tensor
    keypoints_BGKD: Tensor
    labelled_BGK: Tensor
    counts: tuple[int, ...]
    image_size_B4: Tensor
    visible_BGK: Tensor

    @property
    def num_persons(self) -> int:
        """Persons of the whole batch."""
        return sum(self.counts)

    @classmethod
    def from_instances(
        cls, instances: Sequence[Instances], num_keypoints: int, device: torch.device, dtype: torch.dtype
    ) -> PersonTargets:
        """Collects `gt_boxes` and `gt_keypoints` (v = 0: not labeled, 1: hidden, 2: visible) of each image.

        Raises:
            ValueError: an image's keypoints are not `num_keypoints` a person.
        """
        counts = tuple(len(persons) for persons in instances)
        boxes = torch.zeros(len(counts), max(counts, default=0), 4, dtype=dtype)
        keypoints = torch.zeros(*boxes.shape[:2], num_keypoints, 3, dtype=dtype)
        for image, (persons, count) in enumerate(zip(instances, counts, strict=True)):
            if count == 0:
                continue
            found = persons.gt_keypoints.tensor.shape[1]
            if found != num_keypoints:
                raise ValueError(
                    f"The model has {num_keypoints} keypoints, but the annotations of image {image} of the batch have "
                    f"{found}; train on datasets of one skeleton (DATASETS.TRAIN)."
                )
            boxes[image, :count] = persons.gt_boxes.tensor
            keypoints[image, :count] = persons.gt_keypoints.tensor
        sizes = torch.tensor([persons.image_size[::-1] * 2 for persons in instances], dtype=dtype)
        boxes, keypoints, sizes = (
            tensor.to(device, non_blocking=True) for tensor in (boxes, keypoints, sizes.reshape(-1, 4))
        )
        return cls(boxes, keypoints[..., :2], keypoints[..., 2] > 0, counts, sizes, keypoints[..., 2] > 1)


@dataclass(frozen=True)
class Matches:
    """R pairs of a query and a person, by image and within an image by person.

    Attributes:
        image_R: index of the image.
        query_R: index of the query within its image.
        person_R: index of the person within its image.
        slot_R: index of the person among all persons of the batch.
        is_complete: whether every person of the batch has a query, so that slot_R counts 0, 1, 2, …
    """

    image_R: Tensor
    query_R: Tensor
    person_R: Tensor
    slot_R: Tensor
    is_complete: bool

    def __len__(self) -> int:
        return len(self.image_R)
