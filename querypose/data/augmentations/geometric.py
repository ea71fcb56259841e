"""Random maps of images: mirror, turn, shift, scale, crop, resize."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np

from querypose.config import Allowed, between
from querypose.data.augmentations.base import (
    AUGMENTATION_REGISTRY,
    Degrees,
    FactorBounds,
    PixelBounds,
    Pixels,
    Probability,
    Share,
)
from querypose.data.transforms import (
    GeometricTransform,
    ImageSize,
    crop,
    horizontal_flip,
    identity,
    resize,
    rotate,
    scale,
    scaled_size,
    shift,
    shortest_edge_size,
)

ShortSide = Annotated[int, between(0, 2**15)]  # 0 keeps that of the image
_SOME = Allowed("a list of sizes in pixels, not empty", lambda value: len(value) > 0)


@AUGMENTATION_REGISTRY.register()
@dataclass(frozen=True)
class RandomFlip:
    """Mirrors with a probability."""

    probability: Probability = 0.5

    def draw(self, size: ImageSize, generator: np.random.Generator) -> GeometricTransform:
        """Flip or identity."""
        return horizontal_flip(size) if generator.random() < self.probability else identity(size)


@AUGMENTATION_REGISTRY.register()
@dataclass(frozen=True)
class RandomRotation:
    """With a probability turns by an angle drawn evenly from ±`max_degrees`."""

    probability: Probability
    max_degrees: Degrees

    def draw(self, size: ImageSize, generator: np.random.Generator) -> GeometricTransform:
        """Rotation or identity."""
        if generator.random() >= self.probability:
            return identity(size)
        return rotate(size, float(generator.uniform(-self.max_degrees, self.max_degrees)))


@AUGMENTATION_REGISTRY.register()
@dataclass(frozen=True)
class RandomShift:
    """With a probability moves the image by shares of its width and height, each drawn evenly from ±`max_share`."""

    probability: Probability
    max_share: Share

    def draw(self, size: ImageSize, generator: np.random.Generator) -> GeometricTransform:
        """Shift or identity."""
        if generator.random() >= self.probability:
            return identity(size)
        right, down = generator.uniform(-self.max_share, self.max_share, size=2)
        return shift(size, float(right * size[1]), float(down * size[0]))


@AUGMENTATION_REGISTRY.register()
@dataclass(frozen=True)
class RandomScale:
    """With a probability enlarges the image about its center by a factor drawn evenly from `bounds`; the size stays."""

    probability: Probability
    bounds: FactorBounds

    def draw(self, size: ImageSize, generator: np.random.Generator) -> GeometricTransform:
        """Scaling or identity."""
        if generator.random() >= self.probability:
            return identity(size)
        return scale(size, float(generator.uniform(*self.bounds)))


@AUGMENTATION_REGISTRY.register()
@dataclass(frozen=True)
class RandomResize:
    """Resizes to a short side drawn from `short_sides`, aspect kept, long side at most `max_size`.

    A short side of 0 keeps the size of the image.
    """

    short_sides: Annotated[Sequence[ShortSide], _SOME]
    max_size: Pixels | None = None

    def draw(self, size: ImageSize, generator: np.random.Generator) -> GeometricTransform:
        """Resize to one of the short sides."""
        short_side = int(generator.choice(np.asarray(self.short_sides)))
        if short_side == 0:
            return identity(size)
        return resize(size, shortest_edge_size(size, short_side, self.max_size))


@AUGMENTATION_REGISTRY.register()
@dataclass(frozen=True)
class RandomRescale:
    """Resizes by a factor drawn evenly from `bounds`, aspect kept."""

    bounds: FactorBounds

    def draw(self, size: ImageSize, generator: np.random.Generator) -> GeometricTransform:
        """Resize to whole pixels."""
        return resize(size, scaled_size(size, float(generator.uniform(*self.bounds))))


@AUGMENTATION_REGISTRY.register()
@dataclass(frozen=True)
class RandomCrop:
    """With a probability cuts out a rectangle, sized as if the image had been resized to a drawn short side first.

    This is the crop of DETR-like models: resize to one of `short_sides`, cut height and width each drawn from
    `side_bounds`. The resize is not carried out; the rectangle is scaled back to whole pixels of the source.
    Deviates: the authors' code resamples before the crop and again after it. One resampling is sharper and faster; the
    rectangle differs by less than a pixel of the source.
    """

    probability: Probability
    short_sides: Annotated[Sequence[Pixels], _SOME]
    side_bounds: PixelBounds

    def draw(self, size: ImageSize, generator: np.random.Generator) -> GeometricTransform:
        """Crop or identity."""
        if generator.random() >= self.probability:
            return identity(size)
        resized = shortest_edge_size(size, int(generator.choice(np.asarray(self.short_sides))))
        (y, height), (x, width) = (
            self._draw_span(resized_side, side, generator) for resized_side, side in zip(resized, size, strict=True)
        )
        return crop(size, x, y, width, height)

    def _draw_span(self, resized_side: int, side: int, generator: np.random.Generator) -> tuple[int, int]:
        low, high = (min(bound, resized_side) for bound in self.side_bounds)
        length = int(generator.integers(low, high, endpoint=True))
        start = int(generator.integers(0, resized_side - length, endpoint=True))
        first = min(round(start * side / resized_side), side - 1)
        last = max(round((start + length) * side / resized_side), first + 1)
        return first, last - first


@AUGMENTATION_REGISTRY.register()
@dataclass(frozen=True)
class RandomSquare:
    """Turns the image, cuts out a square and resizes it, in one map: the augmentation of bottom-up models.

    The square's side is a drawn factor times the short side of the image, its center that of the image plus a shift.

    Attributes:
        size: of a side of the output, in pixels.
        side_bounds: of the factor, drawn evenly.
        max_shift: each way, as a share of the square's side, drawn evenly.
        max_degrees: of the turn, either way, drawn evenly.
    """

    size: Pixels
    side_bounds: FactorBounds = (0.75, 1.5)
    max_shift: Share = 0.2
    max_degrees: Degrees = 30.0

    def draw(self, size: ImageSize, generator: np.random.Generator) -> GeometricTransform:
        """The square in the middle of the output."""
        side = float(generator.uniform(*self.side_bounds)) * min(size)
        right, down = generator.uniform(-self.max_shift, self.max_shift, size=2)
        angle = np.deg2rad(generator.uniform(-self.max_degrees, self.max_degrees))
        linear = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) * self.size / side
        center = np.array([size[1] / 2 + right * side, size[0] / 2 + down * side])
        matrix = np.column_stack([linear, self.size / 2 - linear @ center])
        return GeometricTransform(matrix, size, (self.size, self.size))


@AUGMENTATION_REGISTRY.register()
@dataclass(frozen=True)
class CenteredCanvas:
    """Resizes to a short side, aspect kept, in the middle of a canvas whose long side is a multiple; draws nothing.

    Attributes:
        short_side: in pixels, of image and canvas; 0 keeps that of the image.
        multiple: of the long side, rounded up.
    """

    short_side: ShortSide
    multiple: Pixels = 64

    def draw(self, size: ImageSize, generator: np.random.Generator) -> GeometricTransform:
        """The canvas; what is beside the image is black."""
        short_side = self.short_side or min(size)
        factor = short_side / min(size)
        # A long side that is a multiple but for rounding stays.
        sides = [
            short_side if side == min(size) else int(np.ceil(factor * side / self.multiple - 1e-9)) * self.multiple
            for side in size
        ]
        canvas = (sides[0], sides[1])
        offset = (np.array(canvas[::-1]) - factor * np.array(size[::-1])) / 2
        return GeometricTransform(np.column_stack([np.eye(2) * factor, offset]), size, canvas)
