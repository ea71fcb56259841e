"""What training does to images: registered classes, which INPUT.AUGMENTATIONS lists with their arguments.

A geometric one draws a map that pixels, boxes and keypoints all follow; a pixel one changes colors and moves nothing;
one for a person draws its map by the keypoints of the one person that a sample shows.
Yours is a class with the method of either, registered, in a module that `--import` names.
"""

from querypose.data.augmentations.base import (
    AUGMENTATION_REGISTRY,
    Augmentation,
    GeometricAugmentation,
    PersonAugmentation,
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
from querypose.data.augmentations.person import RandomBoxRotation, RandomBoxScale, RandomHalfBody

__all__ = [
    "AUGMENTATION_REGISTRY",
    "Augmentation",
    "CoarseDropout",
    "GeometricAugmentation",
    "PersonAugmentation",
    "PixelAugmentation",
    "RandomBoxRotation",
    "RandomBoxScale",
    "RandomCrop",
    "RandomFlip",
    "RandomHalfBody",
    "RandomResize",
    "RandomRotation",
    "RandomScale",
    "RandomShift",
    "augment",
]
