"""Poses of single images come back into the image, whatever the pipeline cut out of it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from querypose.d2 import Instances
from querypose.data.augmentations import RandomResize
from querypose.data.pipelines import PersonCrops, Pipeline, WholeImage
from querypose.engine.predictor import PosePredictor


class RedFinder(nn.Module):
    """A pose of one keypoint: the center of the red pixels of a sample."""

    def forward(self, batch: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [{"instances": self.find(sample)} for sample in batch]

    def find(self, sample: dict[str, Any]) -> Instances:
        rows, columns = torch.nonzero(sample["image"][0] > 128, as_tuple=True)
        point = np.array([columns.float().mean(), rows.float().mean()]) + 0.5
        instances = Instances((sample["height"], sample["width"]))
        x, y = sample["frame"].inverse().apply_coords(point)
        instances.pred_keypoints = torch.tensor([[[x, y, 1.0]]])
        instances.scores = torch.ones(1)
        return instances


@pytest.mark.parametrize(
    ("pipeline", "boxes"),
    [
        (WholeImage(is_train=False, augmentations=[RandomResize([200])]), None),
        (PersonCrops(is_train=False, size=(128, 96), padding=1.25), None),
        (PersonCrops(is_train=False, size=(128, 96), padding=1.25), [[0, 0, 50, 40], [40, 10, 80, 60]]),
    ],
)
def test_a_point_is_found_where_it_is(pipeline: Pipeline, boxes: list[list[float]] | None) -> None:
    image = np.zeros((60, 80, 3), np.uint8)
    points = [(20, 25)] if boxes is None else [(20, 25), (65, 35)]
    for x, y in points:
        image[y - 3 : y + 3, x - 3 : x + 3, 0] = 255
    predictor = PosePredictor(model=RedFinder(), pipeline=pipeline)
    found = predictor(image, None if boxes is None else np.array(boxes, dtype=np.float64))
    np.testing.assert_allclose(found.pred_keypoints[:, 0, :2], points, atol=0.2)
    assert found.image_size == (60, 80)
