"""What training does to images: registered classes, which INPUT.AUGMENTATIONS lists with their arguments.

A geometric one draws a map that pixels, boxes and keypoints all follow; a pixel one changes colors and moves nothing.
Yours is a class with the method of either, registered, in a module that `--import` names.
"""

from querypose.data.augmentations.base import (
    AUGMENTATION_REGISTRY,
    Augmentation,
    GeometricAugmentation,
    PixelAugmentation,
    augment,
)
from querypose.data.augmentations.coarse_dropout import CoarseDropout
from querypose.data.augmentations.geometric import (
    RandomCrop,
    RandomFlip,
    RandomResize,
    RandomRotation,
    RandomScale,
    RandomShift,
)

__all__ = [
    "AUGMENTATION_REGISTRY",
    "Augmentation",
    "CoarseDropout",
    "GeometricAugmentation",
    "PixelAugmentation",
    "RandomCrop",
    "RandomFlip",
    "RandomResize",
    "RandomRotation",
    "RandomScale",
    "RandomShift",
    "augment",
]
