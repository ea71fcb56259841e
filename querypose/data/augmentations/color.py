"""Random changes of color."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from querypose.data.augmentations.base import AUGMENTATION_REGISTRY, NotNegative

ChannelOrder = Literal["RGB", "BGR"]

# Of the pixels of ImageNet, whose values are in [0, 1] (Krizhevsky et al., 2012): rows are R, G, B.
_EIGENVALUES = (0.2141788, 0.01817699, 0.00341571)
_EIGENVECTORS = (
    (-0.56089297, 0.71832671, 0.41158938),
    (-0.5832747, 0.00994535, -0.81221408),
    (-0.58752847, -0.69563484, 0.41340352),
)
_GRAY_OF_RGB = (0.299, 0.587, 0.114)


@AUGMENTATION_REGISTRY.register()
@dataclass(frozen=True)
class ColorJitter:
    """Changes brightness, contrast and saturation, in an order that is drawn.

    Each is a blend with black, with the mean gray of the image, and with the gray of the pixel; the factor of the image
    is drawn evenly from 1 ± the bound.

    Attributes:
        brightness: bound.
        contrast: bound.
        saturation: bound.
        channel_order: of the images, INPUT.FORMAT.
    """

    brightness: NotNegative = 0.4
    contrast: NotNegative = 0.4
    saturation: NotNegative = 0.4
    channel_order: ChannelOrder = "RGB"

    def apply(self, image_CHW: Tensor, generator: np.random.Generator) -> Tensor:
        """The image in other colors, uint8."""
        weight_C11 = torch.tensor(_GRAY_OF_RGB)[:, None, None]
        if self.channel_order == "BGR":
            weight_C11 = weight_C11.flip(0)
        bounds = (self.brightness, self.contrast, self.saturation)
        factors = [1 + float(generator.uniform(-bound, bound)) for bound in bounds]
        x_CHW = image_CHW.float()
        for change in generator.permutation(3).tolist():
            if change == 0:
                other: Tensor | float = 0.0
            else:
                gray_1HW = (x_CHW * weight_C11).sum(0, keepdim=True)
                other = gray_1HW.mean() if change == 1 else gray_1HW
            x_CHW = factors[change] * x_CHW + (1 - factors[change]) * other
        return x_CHW.round().clamp(0, 255).to(torch.uint8)


@AUGMENTATION_REGISTRY.register()
@dataclass(frozen=True)
class PCALighting:
    """Adds a color along the principal components of ImageNet's pixels, as AlexNet did.

    Attributes:
        std: of the normal factors of the components.
        channel_order: of the images, INPUT.FORMAT.
    """

    std: NotNegative = 0.1
    channel_order: ChannelOrder = "RGB"

    def apply(self, image_CHW: Tensor, generator: np.random.Generator) -> Tensor:
        """The image in another light, uint8."""
        alpha_3 = generator.normal(0.0, self.std, 3)
        color_C = np.asarray(_EIGENVECTORS) @ (np.asarray(_EIGENVALUES) * alpha_3)
        if self.channel_order == "BGR":
            color_C = color_C[::-1].copy()
        x_CHW = image_CHW + 255 * torch.from_numpy(color_C).float()[:, None, None]
        return x_CHW.round().clamp(0, 255).to(torch.uint8)
