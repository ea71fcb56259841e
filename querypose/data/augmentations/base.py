"""The two kinds of augmentation, and how a list of them is applied."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from querypose.d2 import Registry
from querypose.data.transforms import GeometricTransform, ImageSize

AUGMENTATION_REGISTRY = Registry("AUGMENTATION")
AUGMENTATION_REGISTRY.__doc__ = """
Classes that INPUT.AUGMENTATIONS names. Arguments of the constructor are given in YAML and checked by its annotations.
"""


@runtime_checkable
class GeometricAugmentation(Protocol):
    """Moves pixels, boxes and keypoints alike."""

    def draw(self, size: ImageSize, generator: np.random.Generator) -> GeometricTransform:
        """A map that takes images of `size`; everything random comes from `generator`."""
        ...


@runtime_checkable
class PixelAugmentation(Protocol):
    """Changes pixels and moves nothing."""

    def apply(self, image_CHW: Tensor, generator: np.random.Generator) -> Tensor:
        """A changed uint8 image of the same size; everything random comes from `generator`.

        Channels are in the order of INPUT.FORMAT.
        """
        ...


Augmentation = GeometricAugmentation | PixelAugmentation


def augment(
    image: np.ndarray,
    start: GeometricTransform,
    augmentations: Iterable[Augmentation],
    generator: np.random.Generator,
) -> tuple[Tensor, GeometricTransform]:
    """Applies `start`, then augmentations in their order; geometric neighbors resample the pixels once.

    Args:
        image: uint8 (H, W, C).
        start: from the image to the canvas that the augmentations begin on.
        augmentations: of either kind.
        generator: everything random comes from it.

    Returns:
        the result, uint8 (C, H', W'), contiguous; and the map from `image` to it.
    """
    frame = start
    # The part of `frame` that the pixels have not gone through yet; None where they have gone through all of it.
    pending: GeometricTransform | None = start
    image_CHW = torch.from_numpy(image).permute(2, 0, 1)
    for augmentation in augmentations:
        if isinstance(augmentation, GeometricAugmentation):
            drawn = augmentation.draw(frame.output_size, generator)
            frame = frame.then(drawn)
            pending = drawn if pending is None else pending.then(drawn)
        else:
            image_CHW = augmentation.apply(_resample(image_CHW, pending), generator)
            pending = None
    return _resample(image_CHW, pending), frame


def _resample(image_CHW: Tensor, transform: GeometricTransform | None) -> Tensor:
    if transform is None:
        return image_CHW.contiguous()
    pixels = transform.apply_image(image_CHW.permute(1, 2, 0).numpy())
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()
