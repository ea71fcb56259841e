"""Box arithmetic that broadcasts and never waits for the device.

torchvision's pairwise GIoU is not batched, and its elementwise GIoU indexes by a mask, for which the host waits at
every call.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

# Sparse R-CNN's weights of the deltas, and a bound that keeps exp() finite.
DELTA_WEIGHTS = (2.0, 2.0, 1.0, 1.0)
MAX_LOG_SCALE = math.log(100000.0 / 16)


def box_cxcywh_to_xyxy(boxes: Tensor) -> Tensor:
    """Boxes (…, 4) as center and size, to corners; same frame and unit."""
    center, size = boxes.split(2, dim=-1)
    return torch.cat([center - size / 2, center + size / 2], dim=-1)


def box_xyxy_to_cxcywh(boxes: Tensor) -> Tensor:
    """Corner boxes (…, 4) to center and size; same frame and unit."""
    return torch.cat([(boxes[..., :2] + boxes[..., 2:]) / 2, boxes[..., 2:] - boxes[..., :2]], dim=-1)


def scale_boxes(boxes: Tensor, factor: float) -> Tensor:
    """Corner boxes (…, 4) whose sides are `factor` times as long around the same center."""
    center, half = (boxes[..., :2] + boxes[..., 2:]) / 2, (boxes[..., 2:] - boxes[..., :2]) * (factor / 2)
    return torch.cat([center - half, center + half], dim=-1)


def apply_box_deltas(deltas: Tensor, boxes: Tensor) -> Tensor:
    """Moves and scales boxes: the Δ of QueryPose eq. 1.

    Args:
        deltas: (…, 4) as dx, dy, dw, dh; shifts in units of half the box's size, scales as logarithms.
        boxes: (…, 4) corners.

    Returns:
        (…, 4) corners in the frame of `boxes`, not clipped.
    """
    deltas = deltas / deltas.new_tensor(DELTA_WEIGHTS)
    size = boxes[..., 2:] - boxes[..., :2]
    center = boxes[..., :2] + size / 2 + deltas[..., :2] * size
    size = deltas[..., 2:].clamp(max=MAX_LOG_SCALE).exp() * size
    return torch.cat([center - size / 2, center + size / 2], dim=-1)


def generalized_box_iou(boxes1: Tensor, boxes2: Tensor, eps: float = 1e-7) -> Tensor:
    """Generalized IoU of corner boxes whose leading dimensions broadcast.

    Args:
        boxes1: (…, 4).
        boxes2: (…, 4), same frame.
        eps: keeps empty boxes finite, in square pixels.

    Returns:
        (…) in [-1, 1].
    """
    area1 = (boxes1[..., 2:] - boxes1[..., :2]).prod(-1)
    area2 = (boxes2[..., 2:] - boxes2[..., :2]).prod(-1)
    overlap = torch.minimum(boxes1[..., 2:], boxes2[..., 2:]) - torch.maximum(boxes1[..., :2], boxes2[..., :2])
    intersection = overlap.clamp(min=0).prod(-1)
    union = area1 + area2 - intersection
    hull = torch.maximum(boxes1[..., 2:], boxes2[..., 2:]) - torch.minimum(boxes1[..., :2], boxes2[..., :2])
    hull_area = hull.clamp(min=0).prod(-1)
    return intersection / (union + eps) - (hull_area - union) / (hull_area + eps)
