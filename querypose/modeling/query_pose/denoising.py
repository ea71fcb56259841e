"""Noisy boxes of the persons, on which the keypoint decoder trains beside the predicted ones (after DN-DETR).

Predicted boxes are poor in the first minutes, and few: one a person. Boxes that are off by a known noise are good
regions from the first iteration on, and multiply the poses that an image trains.
"""

from __future__ import annotations

import torch
from torch import Tensor

from querypose.layers import box_cxcywh_to_xyxy, box_xyxy_to_cxcywh


class BoxNoise:
    """Moves and scales boxes at random.

    Args:
        num_copies: noisy copies of each box.
        shift: a center moves by up to this share of the box's side.
        scale: sides change by up to this share.
    """

    def __init__(self, num_copies: int, shift: float = 0.2, scale: float = 0.4) -> None:
        self.num_copies = num_copies
        self.shift = shift
        self.scale = scale

    def __call__(self, boxes_R4: Tensor) -> Tensor:
        """Noisy copies (N · R, 4) of corner boxes: all R once, then all again."""
        boxes_N4 = box_xyxy_to_cxcywh(boxes_R4).repeat(self.num_copies, 1)
        noise_N4 = 2 * torch.rand_like(boxes_N4) - 1
        center_N2 = boxes_N4[:, :2] + self.shift * noise_N4[:, :2] * boxes_N4[:, 2:]
        return box_cxcywh_to_xyxy(torch.cat([center_N2, boxes_N4[:, 2:] * (1 + self.scale * noise_N4[:, 2:])], dim=1))
