from __future__ import annotations

import numpy as np
import pytest
import torch

from querypose.data.augmentations import ColorJitter, PCALighting

IMAGE = torch.randint(60, 180, (3, 20, 30), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_brightness_multiplies() -> None:
    generator = np.random.default_rng(0)
    changed = ColorJitter(0.4, 0.0, 0.0).apply(IMAGE, generator)
    factor = 1 + np.random.default_rng(0).uniform(-0.4, 0.4)
    torch.testing.assert_close(changed.float(), (IMAGE * factor).round().clamp(0, 255))


def test_contrast_keeps_the_mean_gray_and_saturation_the_gray_of_every_pixel() -> None:
    gray_C11 = torch.tensor([0.299, 0.587, 0.114])[:, None, None]
    contrast, saturation = (
        ColorJitter(0.0, *bounds).apply(IMAGE, np.random.default_rng(1)) for bounds in ((0.4, 0.0), (0.0, 0.4))
    )
    gray_HW = (IMAGE * gray_C11).sum(0)
    assert not torch.equal(contrast, IMAGE)
    assert not torch.equal(saturation, IMAGE)
    torch.testing.assert_close((contrast * gray_C11).sum(0).mean(), gray_HW.mean(), atol=0.1, rtol=0)
    torch.testing.assert_close((saturation * gray_C11).sum(0), gray_HW, atol=0.51, rtol=0)


@pytest.mark.parametrize("augmentation", [ColorJitter, PCALighting])
def test_channels_are_those_of_the_image(augmentation: type[ColorJitter | PCALighting]) -> None:
    rgb = augmentation().apply(IMAGE, np.random.default_rng(2))
    bgr = augmentation(channel_order="BGR").apply(IMAGE.flip(0), np.random.default_rng(2))
    assert torch.equal(rgb, bgr.flip(0))
    assert rgb.dtype == torch.uint8
    assert not torch.equal(rgb, IMAGE)


def test_lighting_adds_one_color_of_the_spread_of_photos() -> None:
    generator = np.random.default_rng(0)
    gray = torch.full((3, 1, 1), 128, dtype=torch.uint8)
    shifts = np.stack([PCALighting(0.1).apply(gray, generator).numpy().ravel() - 128.0 for _ in range(500)])
    # Mostly light and dark: the first component, of variance 0.2141788 times 0.1 each way, lies along gray.
    covariance = np.cov(shifts.T / 255)
    values, vectors = np.linalg.eigh(covariance)
    assert np.sqrt(values[-1]) == pytest.approx(0.0214, rel=0.15)
    assert abs(vectors[:, -1]).min() > 0.5
    constant = PCALighting(0.1).apply(IMAGE, np.random.default_rng(3)).int() - IMAGE.int()
    assert (constant == constant[:, :1, :1]).all()
