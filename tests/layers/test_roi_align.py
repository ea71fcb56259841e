"""RoIAlign on the CPU equals torchvision's."""

from __future__ import annotations

import pytest
import torch
from torchvision.ops import roi_align

from querypose.layers.roi_align import roi_align_channels_last

TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-12}


def _rois(dtype: torch.dtype) -> torch.Tensor:
    """Within, across and beyond the edges of two images of 160x96 pixels; one inverted, one without extent."""
    corner = torch.rand(40, 2) * torch.tensor([160.0, 96.0]) - 20
    boxes = torch.cat([corner, corner + torch.rand(40, 2) * 120], dim=1)
    special = torch.tensor(
        [[-300, -300, 500, 500], [200, 10, 260, 40], [50, 50, 20, 80], [30, 30, 30, 30], [-8, -8, 168, 104]]
    )
    boxes = torch.cat([boxes, special])
    image = torch.arange(len(boxes)) % 2
    return torch.cat([image[:, None], boxes], dim=1).to(dtype)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("sampling_ratio", [1, 2, 3])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_regions_and_gradients_are_those_of_torchvision(
    dtype: torch.dtype, sampling_ratio: int, layout: torch.memory_format
) -> None:
    torch.manual_seed(0)
    feature = torch.randn(2, 5, 24, 40, dtype=dtype).to(memory_format=layout).requires_grad_()
    reference = feature.detach().contiguous().requires_grad_()
    rois = _rois(dtype)
    found = roi_align_channels_last(feature, rois, 6, 0.25, sampling_ratio)
    expected = roi_align(reference, rois, 6, 0.25, sampling_ratio, aligned=True)
    torch.testing.assert_close(found, expected, atol=TOLERANCE[dtype], rtol=0)
    weights = torch.randn_like(expected)
    (found * weights).sum().backward()
    (expected * weights).sum().backward()
    torch.testing.assert_close(feature.grad, reference.grad, atol=10 * TOLERANCE[dtype], rtol=0)


def test_regions_lie_in_memory_with_channels_side_by_side() -> None:
    region = roi_align_channels_last(torch.randn(2, 5, 24, 40), _rois(torch.float32), 6, 0.25, 2)
    assert region.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e30])
def test_a_box_that_is_not_finite_reads_zeros(value: float) -> None:
    roi = torch.tensor([[0.0, 10.0, 10.0, value, 40.0]])
    region = roi_align_channels_last(torch.ones(1, 5, 24, 40), roi, 6, 0.25, 2)
    assert not region[..., 1:].any()
    assert region.isfinite().all()
