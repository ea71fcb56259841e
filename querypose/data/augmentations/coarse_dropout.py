"""Coarse dropout: rectangles of an image painted black."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from querypose.data.augmentations.base import AUGMENTATION_REGISTRY, Probability, ShareBounds

_SMALLEST_GRID = 3


@AUGMENTATION_REGISTRY.register()
@dataclass(frozen=True)
class CoarseDropout:
    """With a probability paints rectangles of a grid black (DeVries and Taylor, 2017).

    Keypoints that are painted over keep their visibility: the model has to infer them from the rest.

    Attributes:
        probability: of doing anything.
        share: bounds of the share of black cells, drawn evenly.
        grid: bounds of the grid's resolution, drawn evenly: cells along a side, as a share of its pixels; at least 3.
        per_channel: probability that the channels lose different cells.
    """

    probability: Probability
    share: ShareBounds = (0.05, 0.2)
    grid: ShareBounds = (0.015, 0.03)
    per_channel: Probability = 0.5

    def apply(self, image_CHW: Tensor, generator: np.random.Generator) -> Tensor:
        """The image, with black cells or unchanged."""
        if generator.random() >= self.probability:
            return image_CHW
        channels, height, width = image_CHW.shape
        share, resolution = generator.uniform(*self.share), generator.uniform(*self.grid)
        rows, columns = (max(_SMALLEST_GRID, int(side * resolution)) for side in (height, width))
        num_masks = channels if generator.random() < self.per_channel else 1
        kept = torch.from_numpy(generator.random((num_masks, rows, columns)) >= share)
        row_H, column_W = torch.arange(height) * rows // height, torch.arange(width) * columns // width
        return image_CHW * kept[:, row_H][:, :, column_W]
