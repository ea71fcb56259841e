"""Box arithmetic in closed form, and against torchvision."""

from __future__ import annotations

import math

import pytest
import torch
from torchvision.ops import generalized_box_iou as torchvision_generalized_box_iou

from querypose.layers import apply_box_deltas, box_cxcywh_to_xyxy, generalized_box_iou
from querypose.layers.boxes import MAX_LOG_SCALE


def test_center_and_size_to_corners() -> None:
    corners = box_cxcywh_to_xyxy(torch.tensor([5.0, 10.0, 4.0, 6.0]))
    assert corners.tolist() == [3.0, 7.0, 7.0, 13.0]


def test_zero_deltas_change_nothing() -> None:
    boxes = torch.tensor([[1.0, 2.0, 5.0, 10.0]])
    torch.testing.assert_close(apply_box_deltas(torch.zeros(1, 4), boxes), boxes)


def test_deltas_in_closed_form() -> None:
    # dx = 2 is a whole width, dw = log 2 doubles the width (weights 2, 2, 1, 1).
    moved = apply_box_deltas(torch.tensor([[2.0, 0.0, math.log(2), 0.0]]), torch.tensor([[0.0, 0.0, 10.0, 20.0]]))
    torch.testing.assert_close(moved, torch.tensor([[5.0, 0.0, 25.0, 20.0]]))


def test_scale_is_bounded() -> None:
    boxes = apply_box_deltas(torch.tensor([[0.0, 0.0, 1e4, 1e4]]), torch.tensor([[0.0, 0.0, 1.0, 1.0]]))
    assert boxes.isfinite().all()
    torch.testing.assert_close(boxes[0, 2] - boxes[0, 0], torch.tensor(math.exp(MAX_LOG_SCALE)))


@pytest.mark.parametrize(
    ("box", "expected"),
    [
        ([0.0, 0.0, 4.0, 4.0], 1.0),  # the same box
        ([0.0, 0.0, 2.0, 2.0], 0.25),  # a quarter of it, inside
        ([4.0, 0.0, 8.0, 4.0], 0.0),  # side by side: the hull is their union
        ([8.0, 0.0, 12.0, 4.0], -1 / 3),  # a gap of a third of the hull
    ],
)
def test_generalized_iou_in_closed_form(box: list[float], expected: float) -> None:
    value = generalized_box_iou(torch.tensor([0.0, 0.0, 4.0, 4.0]), torch.tensor(box))
    assert value.item() == pytest.approx(expected, abs=1e-6)


def test_generalized_iou_broadcasts_and_agrees_with_torchvision() -> None:
    boxes = box_cxcywh_to_xyxy(torch.rand(9, 4, dtype=torch.double) * 50 + 1)
    pairwise = generalized_box_iou(boxes[:5, None], boxes[None, 5:])
    torch.testing.assert_close(pairwise, torchvision_generalized_box_iou(boxes[:5], boxes[5:]), atol=1e-8, rtol=0)


def test_empty_boxes_are_finite_and_have_a_gradient() -> None:
    empty = torch.zeros(1, 4, requires_grad=True)
    value = generalized_box_iou(empty, torch.zeros(1, 4))
    value.sum().backward()
    assert value.isfinite().all()
    assert empty.grad is not None
    assert empty.grad.isfinite().all()
