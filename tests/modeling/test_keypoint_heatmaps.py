"""Auxiliary heat maps in closed form, at their edges, and only where they are asked for."""

from __future__ import annotations

import math

import pytest
import torch

from querypose.d2 import build_model
from querypose.modeling.keypoint_heatmaps import AuxiliaryHeatmap, bump_radius, draw_heatmaps, heatmap_focal_loss
from querypose.modeling.targets import PersonTargets
from tests.tiny import random_batch, random_persons, tiny_config

ON = ["MODEL.QUERYPOSE.LOSS.HEATMAP_WEIGHT", "0.5"]


def _targets(keypoints: list[list[tuple[float, float]]], box_side: float = 160.0) -> PersonTargets:
    """Persons of one image of 160 x 80 pixels, all with the same box; a keypoint at (-1, -1) is not labeled."""
    position = torch.tensor(keypoints)
    boxes = torch.tensor([0.0, 0.0, box_side, box_side]).expand(1, len(keypoints), 4)
    labeled = (position >= 0).all(-1)
    size_B4 = torch.tensor([[160.0, 80.0, 160.0, 80.0]])
    return PersonTargets(boxes, position[None], labeled[None], (len(keypoints),), size_B4, labeled[None])


def _loss(
    heatmap: AuxiliaryHeatmap, feature: torch.Tensor, targets: PersonTargets, persons: int | None = None
) -> torch.Tensor:
    normalizers = {"persons": torch.tensor(float(persons or targets.num_persons), dtype=torch.float64)}
    return heatmap(features={"p2": feature}, stages=[], targets=targets, normalizers=normalizers)


@pytest.mark.parametrize("size", [(100.0, 100.0), (400.0, 30.0), (8.0, 200.0)])
def test_the_radius_is_the_largest_that_keeps_the_overlap(size: tuple[float, float]) -> None:
    width, height = size
    radius = bump_radius(torch.tensor(size)).item()

    def overlap(inset: float) -> float:
        return (width - 2 * inset) * (height - 2 * inset) / (width * height)

    assert overlap(radius) >= 0.7 > overlap(radius + 1)
    moved_out = width * height / ((width + 2 * radius) * (height + 2 * radius))
    shared = (width - radius) * (height - radius)
    assert min(moved_out, shared / (2 * width * height - shared)) >= 0.7


def test_a_bump_in_closed_form() -> None:
    # A box of 40 x 40 cells: radius 3, so sigma is 7 / 6.
    heatmap = draw_heatmaps(_targets([[(41.0, 22.5)]]), height=20, width=40, stride=4)
    row, column = torch.meshgrid(torch.arange(20), torch.arange(40), indexing="ij")
    square = (column - 10) ** 2 + (row - 5) ** 2
    near = (abs(column - 10) <= 3) & (abs(row - 5) <= 3)
    expected = torch.where(near, torch.exp(-square / (2 * (7 / 6) ** 2)), 0.0)
    torch.testing.assert_close(heatmap, expected[None, None])
    assert heatmap[0, 0, 5, 10] == 1


def test_the_bump_of_a_larger_person_is_wider() -> None:
    small, large = (draw_heatmaps(_targets([[(80.0, 40.0)]], side), 20, 40, 4) for side in (40.0, 160.0))
    assert 0 < small.count_nonzero() < large.count_nonzero()


def test_the_higher_of_two_bumps_counts_and_every_keypoint_has_its_own_map() -> None:
    first, second = [(40.0, 40.0), (-1.0, -1.0)], [(48.0, 40.0), (100.0, 20.0)]
    both = draw_heatmaps(_targets([first, second]), 20, 40, 4)
    alone = [draw_heatmaps(_targets([person]), 20, 40, 4) for person in (first, second)]
    assert torch.equal(both, torch.maximum(*alone))
    assert not alone[0][:, 1].any()


@pytest.mark.parametrize("keypoint", [(-1.0, -1.0), (400.0, 10.0), (10.0, 400.0), (float("inf"), 10.0)])
def test_what_is_not_labeled_or_far_outside_is_not_drawn(keypoint: tuple[float, float]) -> None:
    assert not draw_heatmaps(_targets([[keypoint]]), 20, 40, 4).any()


def test_focal_loss_in_closed_form() -> None:
    logits, target = torch.tensor([0.0, 0.0, 1.0]).view(1, 1, 1, 3), torch.tensor([1.0, 0.5, 0.0]).view(1, 1, 1, 3)
    counts = torch.tensor([True, True, False]).view(1, 1, 1, 3)
    hit, false_alarm = 0.25 * math.log(2), 0.5**4 * 0.25 * math.log(2)
    assert heatmap_focal_loss(logits, target, counts).item() == pytest.approx(hit + false_alarm)


def test_right_and_sure_costs_nothing_and_sure_and_wrong_stays_finite() -> None:
    target = torch.tensor([1.0, 0.0]).view(1, 1, 1, 2)
    logits = torch.tensor([200.0, -200.0]).view(1, 1, 1, 2).requires_grad_()
    counts = torch.ones(1, 1, 1, 2, dtype=torch.bool)
    assert heatmap_focal_loss(logits, target, counts).item() == 0
    loss = heatmap_focal_loss(-logits, target, counts)
    loss.backward()
    assert loss.item() == pytest.approx(400)
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


def test_padding_does_not_count() -> None:
    heatmap = AuxiliaryHeatmap(in_feature="p2", dim=4, num_keypoints=1, stride=4, weight=1.0)
    feature, targets = torch.randn(1, 4, 24, 48), _targets([[(40.0, 40.0)]])
    loss = _loss(heatmap, feature, targets)
    feature[..., 22:, :] += 1.0  # 20 rows of cells are image, and a convolution reads one row further
    feature[..., 42:] += 1.0
    torch.testing.assert_close(_loss(heatmap, feature, targets), loss)
    feature[..., :20, :40] += 1.0
    assert not torch.allclose(_loss(heatmap, feature, targets), loss)


def test_micro_batches_add_up_to_the_batch() -> None:
    heatmap = AuxiliaryHeatmap(in_feature="p2", dim=4, num_keypoints=5, stride=4, weight=0.5)
    persons = [random_persons(count, 5, (32, 48)) for count in (1, 3)]
    feature = torch.randn(2, 4, 8, 12)

    def loss(images: slice) -> torch.Tensor:
        targets = PersonTargets.from_instances(persons[images], 5, torch.device("cpu"), torch.float32)
        return _loss(heatmap, feature[images], targets, persons=4)

    torch.testing.assert_close(loss(slice(0, 2)), loss(slice(0, 1)) + loss(slice(1, 2)))


def test_the_head_exists_only_when_its_loss_counts() -> None:
    off, on = build_model(tiny_config()), build_model(tiny_config(*ON))
    assert not [name for name, _ in off.named_parameters() if "heatmap" in name]
    assert "loss_heatmap" not in off(random_batch([1], 17))
    losses = on(random_batch([1], 17))
    assert [name for name in losses if "heatmap" in name] == ["loss_heatmap"]
    assert losses["loss_heatmap"] > 0


def test_learning_to_draw() -> None:
    heatmap = AuxiliaryHeatmap(in_feature="p2", dim=4, num_keypoints=1, stride=4, weight=1.0)
    feature, targets = torch.zeros(1, 4, 20, 40), _targets([[(40.0, 40.0)]])
    feature[0, :, 10, 10] = 5.0
    optimizer = torch.optim.Adam(heatmap.parameters(), lr=0.05)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = _loss(heatmap, feature, targets)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    assert heatmap.logits(heatmap.convs(feature))[0, 0].argmax() == 10 * 40 + 10
