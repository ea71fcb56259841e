"""Initialization of the decoder's parameters."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn


def xavier_uniform_matrices(module: nn.Module) -> None:
    """Xavier-uniform for every parameter of two or more dimensions; vectors keep their layer's initialization."""
    for parameter in module.parameters():
        if parameter.dim() > 1:
            nn.init.xavier_uniform_(parameter)


def xavier_uniform_blocks(weight: Tensor, num_blocks: int) -> None:
    """Xavier-uniform for each of `num_blocks` linear layers that are stacked along the outputs of one `weight`."""
    for block in weight.chunk(num_blocks):
        nn.init.xavier_uniform_(block)


def zero_bias(layer: nn.Linear | nn.Conv2d) -> None:
    """Sets the layer's bias, which it must have, to zero."""
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)


def prior_bias(probability: float) -> float:
    """The logit at which a sigmoid gives `probability` (the prior of the focal loss)."""
    return -math.log((1 - probability) / probability)


def image_boxes(num_boxes: int) -> Tensor:
    """Boxes (Q, 4) that all are the whole image, as center and size in units of the image (Sparse R-CNN)."""
    return torch.tensor([0.5, 0.5, 1.0, 1.0]).repeat(num_boxes, 1)


def grid_boxes(num_boxes: int) -> Tensor:
    """Boxes (Q, 4) on a regular grid, each twice as large as a cell, as center and size in units of the image.

    Queries that start with different boxes specialize on different persons earlier, which helps short trainings.
    """
    columns = math.ceil(math.sqrt(num_boxes))
    rows = math.ceil(num_boxes / columns)
    index = torch.arange(num_boxes)
    center_Q2 = torch.stack([(index % columns + 0.5) / columns, (index // columns + 0.5) / rows], dim=1)
    size_Q2 = torch.tensor([2 / columns, 2 / rows]).clamp(max=1.0).expand_as(center_Q2)
    return torch.cat([center_Q2, size_Q2], dim=1)


PROPOSAL_LAYOUTS: Mapping[str, Callable[[int], Tensor]] = {"image": image_boxes, "grid": grid_boxes}
