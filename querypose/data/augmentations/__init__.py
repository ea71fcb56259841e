"""Augmentations: registered classes, which INPUT.AUGMENTATIONS lists with their arguments.

A geometric augmentation draws a map for pixels, boxes and keypoints. A pixel augmentation changes pixels and moves
nothing. A person augmentation draws its map from the keypoints of one person of a sample. Your own is a registered
class with the method of one of these three, in a module that `--import` names.
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
from querypose.data.augmentations.color import ColorJitter, PCALighting
from querypose.data.augmentations.geometric import (
    CenteredCanvas,
    RandomCrop,
    RandomFlip,
    RandomRescale,
    RandomResize,
    RandomRotation,
    RandomScale,
    RandomShift,
    RandomSquare,
)
from querypose.data.augmentations.person import RandomBoxRotation, RandomBoxScale, RandomHalfBody, RandomPersonSquare

__all__ = [
    "AUGMENTATION_REGISTRY",
    "Augmentation",
    "CenteredCanvas",
    "CoarseDropout",
    "ColorJitter",
    "GeometricAugmentation",
    "PCALighting",
    "PersonAugmentation",
    "PixelAugmentation",
    "RandomBoxRotation",
    "RandomBoxScale",
    "RandomCrop",
    "RandomFlip",
    "RandomHalfBody",
    "RandomPersonSquare",
    "RandomRescale",
    "RandomResize",
    "RandomRotation",
    "RandomScale",
    "RandomShift",
    "RandomSquare",
    "augment",
]
