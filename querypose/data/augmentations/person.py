"""Random maps that follow a person.

Those of a person's crop, as top-down codes have them: of the box about the person, or of half the person. And a square
about one person of a whole image.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np

from querypose.config import at_least, between
from querypose.data.augmentations.base import (
    AUGMENTATION_REGISTRY,
    Degrees,
    Factor,
    FactorBounds,
    Pixels,
    Probability,
    Share,
)
from querypose.data.transforms import GeometricTransform, ImageSize, identity, rotate, scale
from querypose.skeleton import Skeleton

# Two keypoints nearer than this, in pixels, span no box.
_SMALLEST_EXTENT = 1e-3


@AUGMENTATION_REGISTRY.register()
@dataclass(frozen=True)
class RandomBoxScale:
    """Enlarges the box, by a factor from a normal distribution about 1, cut off at its `deviation`."""

    deviation: Annotated[float, between(0, 0.999)]

    def draw(self, size: ImageSize, generator: np.random.Generator) -> GeometricTransform:
        """Scaling about the center."""
        factor = 1 + np.clip(generator.normal(scale=self.deviation), -self.deviation, self.deviation)
        return scale(size, 1 / float(factor))


@AUGMENTATION_REGISTRY.register()
@dataclass(frozen=True)
class RandomBoxRotation:
    """With a probability turns the box, by degrees from a normal distribution, cut off at twice its `deviation`."""

    probability: Probability
    deviation: Degrees

    def draw(self, size: ImageSize, generator: np.random.Generator) -> GeometricTransform:
        """Rotation or identity."""
        if generator.random() >= self.probability:
            return identity(size)
        degrees = np.clip(generator.normal(scale=self.deviation), -2 * self.deviation, 2 * self.deviation)
        return rotate(size, float(degrees))


@AUGMENTATION_REGISTRY.register()
@dataclass(frozen=True)
class RandomHalfBody:
    """With a probability fills the crop with the upper or the lower half of a person with enough keypoints.

    `Skeleton.upper_body` defines the halves; without it nothing is done. The mean of the half's labeled keypoints
    becomes the center, and their box the extent.

    Attributes:
        probability: of doing anything.
        min_keypoints: a person with fewer labeled ones stays whole.
        padding: of the box about the half.
        upper_probability: of the upper half, if it has three labeled keypoints. It is taken too if the lower half has
            fewer than three. The default is MMPose's: it draws from a normal distribution by mistake.
    """

    probability: Probability = 0.3
    min_keypoints: Annotated[int, at_least(1)] = 9
    padding: Factor = 1.5
    upper_probability: Probability = 0.6915

    def draw_for(
        self, person_K3: np.ndarray, skeleton: Skeleton, size: ImageSize, generator: np.random.Generator
    ) -> GeometricTransform:
        """The half, or identity."""
        is_labeled_K = person_K3[:, 2] > 0
        wants_half, wants_upper = generator.random(2) < (self.probability, self.upper_probability)
        if not (wants_half and skeleton.upper_body and is_labeled_K.sum() >= self.min_keypoints):
            return identity(size)
        is_upper_K = np.isin(np.arange(len(person_K3)), skeleton.upper_body)
        upper, lower = (person_K3[is_labeled_K & is_half_K, :2] for is_half_K in (is_upper_K, ~is_upper_K))
        return self.fill(upper if (wants_upper and len(upper) > 2) or len(lower) <= 2 else lower, size)

    def fill(self, positions_ND: np.ndarray, size: ImageSize) -> GeometricTransform:
        """The map that puts the mean of some positions into the center, so that their padded extent fits."""
        height, width = size
        if len(positions_ND) < 2 or np.ptp(positions_ND, axis=0).max() < _SMALLEST_EXTENT:
            return identity(size)
        extent_x, extent_y = np.ptp(positions_ND, axis=0)
        factor = 1 / (self.padding * max(extent_x / width, extent_y / height))
        offset_D = np.array([width / 2, height / 2]) - factor * positions_ND.mean(axis=0)
        return GeometricTransform(np.column_stack([factor * np.eye(2), offset_D]), size, size)


@AUGMENTATION_REGISTRY.register()
@dataclass(frozen=True)
class RandomPersonSquare:
    """Cuts a square about one person of the image, drawn at random, turns it and resizes it, in one map.

    Photos of any size, with one person or many, become samples of one size in which a person is as large as wanted: no
    pixel is spent on padding or on places without people. What lies outside the image is black.

    Attributes:
        size: of a side of the output, in pixels.
        side_bounds: of the square's side, in extents of the person's labeled keypoints (the longer one); drawn evenly
            on a logarithmic scale.
        max_shift: of the person from the middle, each way, as a share of the square's side, drawn evenly.
        max_degrees: of the turn, either way, drawn evenly.
    """

    size: Pixels
    side_bounds: FactorBounds = (1.1, 3.0)
    max_shift: Share = 0.15
    max_degrees: Degrees = 30.0

    def draw_for(
        self, person_K3: np.ndarray, skeleton: Skeleton, size: ImageSize, generator: np.random.Generator
    ) -> GeometricTransform:
        """The square; about the whole image if the person has less than two keypoints apart."""
        factor = np.exp(generator.uniform(*np.log(self.side_bounds)))
        shift = generator.uniform(-self.max_shift, self.max_shift, size=2)
        angle = np.deg2rad(generator.uniform(-self.max_degrees, self.max_degrees))
        labeled_ND = person_K3[person_K3[:, 2] > 0, :2]
        extent = np.ptp(labeled_ND, axis=0).max() if len(labeled_ND) else 0.0
        if extent < _SMALLEST_EXTENT:
            center, side = np.array(size[::-1]) / 2, float(max(size))
        else:
            center, side = (labeled_ND.min(axis=0) + labeled_ND.max(axis=0)) / 2, factor * extent
        linear = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) * self.size / side
        matrix = np.column_stack([linear, self.size * (0.5 + shift) - linear @ center])
        return GeometricTransform(matrix, size, (self.size, self.size))
