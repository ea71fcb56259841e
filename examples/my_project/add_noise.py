"""An augmentation: Gaussian noise on the pixels."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from querypose.data.augmentations import AUGMENTATION_REGISTRY


@AUGMENTATION_REGISTRY.register()
class AddNoise:
    """Adds noise to a share of the training images.

    Args:
        probability: of an image to get noise.
        sigma: standard deviation, in gray levels.
    """

    def __init__(self, probability: float = 0.5, sigma: float = 8.0) -> None:
        if not 0 <= probability <= 1:
            raise ValueError(f"probability is {probability}; allowed: a number in [0, 1].")
        self.probability = probability
        self.sigma = sigma

    def apply(self, image_CHW: Tensor, generator: np.random.Generator) -> Tensor:
        """The noisy image, uint8; all that is random comes from `generator`, so that a run can be repeated."""
        if generator.random() >= self.probability:
            return image_CHW
        noise_CHW = generator.normal(0, self.sigma, image_CHW.shape)
        return (image_CHW + torch.from_numpy(noise_CHW)).round().clamp(0, 255).to(torch.uint8)
