"""Normalization and padding of images before the backbone, and masks of the padding after it.

Sizes are (height, width) in pixels. Those of an `ImageList` are a list, or, in a graph that is being exported and knows
no values, an int64 tensor (B, 2); such images count as padded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from querypose.d2 import ImageList

ImageSize = tuple[int, int]


def normalize_and_pad(
    batched_inputs: Sequence[Mapping[str, Any]], pixel_mean: Tensor, pixel_std: Tensor, size_divisibility: int
) -> ImageList:
    """Normalizes, then pads with zeros at the right and the bottom to a common size that the backbone divides.

    Args:
        batched_inputs: one dict an image with `image`, (C, H, W) in 0..255.
        pixel_mean: (C, 1, 1); the images go to its device and take its type.
        pixel_std: (C, 1, 1).
        size_divisibility: of the common height and width.
    """
    images = [
        (image["image"].to(pixel_mean.device, non_blocking=True).to(pixel_mean.dtype) - pixel_mean) / pixel_std
        for image in batched_inputs
    ]
    return ImageList.from_tensors(images, size_divisibility)


def has_padding(images: ImageList) -> bool:
    """Whether any image is smaller than the padded batch."""
    if isinstance(images.image_sizes, Tensor):
        return True
    padded_size = tuple(images.tensor.shape[-2:])
    return any(tuple(size) != padded_size for size in images.image_sizes)


def image_cells(images: ImageList, size: Sequence[int]) -> Tensor:
    """Which cells of a feature map show the image: (B, H, W), False where one lies wholly in the padding.

    Args:
        images: the padded batch and the unpadded sizes.
        size: height and width of the feature map.
    """
    device = images.tensor.device
    (height, width), (padded_height, padded_width) = size, images.tensor.shape[-2:]
    sizes_B2 = torch.as_tensor(images.image_sizes).to(device, non_blocking=True)
    # In whole numbers, which a graph that is being exported has too.
    top_HB = torch.arange(height, device=device)[:, None] * padded_height < sizes_B2[:, 0] * height
    left_WB = torch.arange(width, device=device)[:, None] * padded_width < sizes_B2[:, 1] * width
    return top_HB.T[:, :, None] & left_WB.T[:, None, :]


def zero_padding(features: Mapping[str, Tensor], images: ImageList) -> dict[str, Tensor]:
    """The features with zeros in all cells that are wholly padding, so that nothing depends on its size.

    Args:
        features: (B, C, H, W) a level.
        images: the padded batch and the unpadded sizes.
    """
    if not has_padding(images):
        return dict(features)
    return {name: feature * image_cells(images, feature.shape[-2:])[:, None] for name, feature in features.items()}
