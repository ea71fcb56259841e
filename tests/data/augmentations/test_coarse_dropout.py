"""What is painted over, how much of it, and that nothing else happens."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from querypose.data.augmentations import CoarseDropout

IMAGE = torch.full((3, 200, 300), 200, dtype=torch.uint8)


def dropped(augmentation: CoarseDropout, seed: int = 0) -> torch.Tensor:
    image = augmentation.apply(IMAGE, np.random.default_rng(seed))
    assert image.dtype == torch.uint8
    assert image.shape == IMAGE.shape
    assert set(image.unique().tolist()) <= {0, 200}
    return image == 0


def test_cells_of_a_grid_go_in_the_share_that_was_asked_for() -> None:
    # 10 x 15 cells of 20 x 20 pixels.
    augmentation = CoarseDropout(1.0, share=(0.3, 0.3), grid=(0.05, 0.05), per_channel=0.0)
    shares = []
    for seed in range(40):
        black = dropped(augmentation, seed)
        assert torch.equal(black[0], black[2])
        cells = black[0].unflatten(0, (10, 20)).unflatten(2, (15, 20)).transpose(1, 2)
        assert (cells == cells[:, :, :1, :1]).all()
        shares.append(black.float().mean().item())
    assert np.mean(shares) == pytest.approx(0.3, abs=0.02)


def test_channels_may_lose_different_cells() -> None:
    black = dropped(CoarseDropout(1.0, grid=(0.1, 0.1), share=(0.5, 0.5), per_channel=1.0))
    assert not torch.equal(black[0], black[1])


def test_probability_and_bounds() -> None:
    changed = sum(bool(dropped(CoarseDropout(0.5), seed).any()) for seed in range(200))
    assert 75 < changed < 125
    assert not dropped(CoarseDropout(1.0, share=(0.0, 0.0))).any()
    assert dropped(CoarseDropout(1.0, share=(1.0, 1.0))).all()


def test_the_grid_has_three_cells_at_least() -> None:
    black = dropped(CoarseDropout(1.0, share=(0.5, 0.5), grid=(0.0, 0.0), per_channel=0.0))
    rows = [black[0, row].tolist() for row in (0, 70, 140)]
    assert (black[0].unflatten(1, (3, 100)) == black[0].unflatten(1, (3, 100))[:, :, :1]).all()
    assert len({tuple(row) for row in rows}) > 1


@pytest.mark.parametrize("size", [(1, 1), (2, 500)])
def test_any_image_can_be_painted(size: tuple[int, int]) -> None:
    image = torch.ones(3, *size, dtype=torch.uint8)
    assert CoarseDropout(1.0).apply(image, np.random.default_rng(0)).shape == image.shape
