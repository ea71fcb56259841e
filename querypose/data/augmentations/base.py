"""The three kinds of augmentation, and how a list of them is applied."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from querypose.config import ORDERED, between
from querypose.d2 import Registry
from querypose.data.transforms import GeometricTransform, ImageSize
from querypose.skeleton import Skeleton

AUGMENTATION_REGISTRY = Registry("AUGMENTATION")
AUGMENTATION_REGISTRY.__doc__ = """
Classes that INPUT.AUGMENTATIONS names. Arguments of the constructor are given in YAML and checked by its annotations.
"""

# Annotations of arguments. Yours can have conditions of their own: Annotated[float, between(0, 2)].
Probability = Annotated[float, between(0, 1)]
Share = Annotated[float, between(0, 1)]
Degrees = Annotated[float, between(0, 180)]
Factor = Annotated[float, between(1e-3, 1e3)]
NotNegative = Annotated[float, between(0, 1e3)]
Pixels = Annotated[int, between(1, 2**15)]
FactorBounds = Annotated[tuple[Factor, Factor], ORDERED]
ShareBounds = Annotated[tuple[Share, Share], ORDERED]
PixelBounds = Annotated[tuple[Pixels, Pixels], ORDERED]


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


@runtime_checkable
class PersonAugmentation(Protocol):
    """Moves pixels, boxes and keypoints alike, depending on one person of a sample."""

    def draw_for(
        self, person_K3: np.ndarray, skeleton: Skeleton, size: ImageSize, generator: np.random.Generator
    ) -> GeometricTransform:
        """A map that takes images of `size`; everything random comes from `generator`.

        Args:
            person_K3: x, y and visibility of the person's keypoints in the image so far; they may be outside.
            skeleton: what the keypoints are.
            size: height and width of the image so far.
            generator: of random numbers.
        """
        ...


Augmentation = GeometricAugmentation | PixelAugmentation | PersonAugmentation


def augment(
    image: np.ndarray,
    start: GeometricTransform,
    augmentations: Iterable[Augmentation],
    generator: np.random.Generator,
    *,
    person_K3: np.ndarray | None = None,
    skeleton: Skeleton | None = None,
    antialias: bool = True,
) -> tuple[Tensor, GeometricTransform]:
    """Applies `start`, then the augmentations in their order; consecutive geometric ones resample the pixels once.

    Args:
        image: uint8 (H, W, C).
        start: from the image to the canvas on which the augmentations begin.
        augmentations: of any kind.
        generator: everything random comes from it.
        person_K3: keypoints of the person whom augmentations for a person follow, in the frame of `image`; without one,
            such augmentations do nothing.
        skeleton: of these keypoints.
        antialias: whether pixels that shrink are averaged.

    Returns:
        the result, uint8 (C, H', W'), contiguous; and the map from `image` to it.
    """
    frame = start
    # The part of `frame` that is not yet applied to the pixels; None if all of it is.
    pending: GeometricTransform | None = start
    image_CHW = torch.from_numpy(image).permute(2, 0, 1)
    for augmentation in augmentations:
        if isinstance(augmentation, PersonAugmentation) and (person_K3 is None or skeleton is None):
            continue
        if not isinstance(augmentation, PixelAugmentation):
            if isinstance(augmentation, GeometricAugmentation):
                drawn = augmentation.draw(frame.output_size, generator)
            else:
                assert person_K3 is not None
                assert skeleton is not None
                (mapped_K3,) = frame.apply_keypoints(person_K3[None], skeleton.flip_indices, keep_outside=True)
                drawn = augmentation.draw_for(mapped_K3, skeleton, frame.output_size, generator)
            frame = frame.then(drawn)
            pending = drawn if pending is None else pending.then(drawn)
        else:
            image_CHW = augmentation.apply(_resample(image_CHW, pending, antialias), generator)
            pending = None
    return _resample(image_CHW, pending, antialias), frame


def _resample(image_CHW: Tensor, transform: GeometricTransform | None, antialias: bool) -> Tensor:
    if transform is None:
        return image_CHW.contiguous()
    pixels = transform.apply_image(image_CHW.permute(1, 2, 0).numpy(), antialias)
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()
