"""Regions read the right place of the right level."""

from __future__ import annotations

import pytest
import torch

from querypose.layers import RegionPooler

STRIDES = (4, 8, 16, 32)


def _ramps(size: int = 256) -> list[torch.Tensor]:
    """Levels whose channels hold the x and y of the cell's center in the image, and the level's number."""
    levels = []
    for number, stride in enumerate(STRIDES):
        center = (torch.arange(size // stride) + 0.5) * stride
        y, x = torch.meshgrid(center, center, indexing="ij")
        levels.append(torch.stack([x, y, torch.full_like(x, number)])[None])
    return levels


def test_cells_hold_their_own_position() -> None:
    pooler = RegionPooler(STRIDES[:1], resolution=7)
    region = pooler(_ramps()[:1], torch.tensor([[40.0, 60.0, 110.0, 200.0]]), torch.zeros(1, dtype=torch.long))
    torch.testing.assert_close(region[0, 0, 0], 40 + (torch.arange(7) + 0.5) * 10)
    torch.testing.assert_close(region[0, 1, :, 0], 60 + (torch.arange(7) + 0.5) * 20)


@pytest.mark.parametrize(("side", "level"), [(30.0, 0), (111.0, 0), (112.0, 1), (224.0, 2), (447.0, 2), (448.0, 3)])
def test_level_follows_the_size_of_the_box(side: float, level: int) -> None:
    pooler = RegionPooler(STRIDES, resolution=2)
    center = 128.0
    box = torch.tensor([[center - side / 2, center - side / 2, center + side / 2, center + side / 2]])
    assert pooler._levels(box).item() == level


def test_masked_and_indexed_pooling_agree() -> None:
    pooler = RegionPooler(STRIDES, resolution=5)
    features = [torch.randn(2, 3, 256 // stride, 256 // stride) for stride in STRIDES]
    corner = torch.rand(20, 2) * 100
    boxes = torch.cat([corner, corner + torch.rand(20, 2) * 400], dim=1)
    image = torch.arange(20) % 2
    rois, levels = torch.cat([image[:, None].float(), boxes], dim=1), pooler._levels(boxes)
    assert len(levels.unique()) > 2
    torch.testing.assert_close(
        pooler._pool_masked(features, rois, levels), pooler._pool_indexed(features, rois, levels)
    )


def test_no_region_gives_no_feature() -> None:
    pooler = RegionPooler(STRIDES, resolution=5)
    region = pooler(_ramps(), torch.zeros(0, 4), torch.zeros(0, dtype=torch.long))
    assert region.shape == (0, 3, 5, 5)


def test_an_inverted_box_is_finite() -> None:
    pooler = RegionPooler(STRIDES, resolution=3)
    region = pooler(_ramps(), torch.tensor([[50.0, 50.0, 20.0, 80.0]]), torch.zeros(1, dtype=torch.long))
    assert region.isfinite().all()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e30])
@pytest.mark.parametrize("strides", [(4,), (4, 8)])
def test_a_box_that_is_not_finite_reads_zeros_as_one_outside_does(value: float, strides: tuple[int, ...]) -> None:
    features = [torch.rand(1, 2, 32 // stride, 32 // stride) for stride in strides]
    boxes = torch.tensor([[4.0, 4.0, 20.0, 20.0], [value] * 4, [4.0, 4.0, value, 20.0], [-value] * 4])
    pooled = RegionPooler(strides, 3)(features, boxes, torch.zeros(4, dtype=torch.long))
    assert pooled.isfinite().all()
    assert pooled[0].abs().sum() > 0
    assert pooled[[1, 3]].abs().sum() == 0
