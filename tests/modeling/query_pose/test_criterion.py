"""Losses in closed form, masks, normalizer, and what happens at the edges."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from querypose.layers import RealNVP
from querypose.modeling.query_pose.criterion import SetCriterion, keypoint_targets
from querypose.modeling.query_pose.losses import (
    box_giou_loss,
    box_l1_loss,
    focal_loss,
    residual_log_likelihood,
    residual_log_likelihood_loss,
)
from querypose.modeling.query_pose.matcher import HungarianMatcher
from querypose.modeling.query_pose.pose_decoder import StagePrediction
from querypose.modeling.targets import PersonTargets
from tests.tiny import random_persons

LOSSES = ("loss_cls", "loss_bbox", "loss_giou", "loss_keypoint")


def _identity_flow() -> RealNVP:
    """A flow whose density is the standard normal one."""
    flow = RealNVP().double()
    for parameter in flow.parameters():
        torch.nn.init.zeros_(parameter)
    return flow


def _batch(*persons_per_image: int, num_keypoints: int = 3) -> tuple[PersonTargets, StagePrediction]:
    instances = [random_persons(count, num_keypoints, (80, 100)) for count in persons_per_image]
    targets = PersonTargets.from_instances(instances, num_keypoints, torch.device("cpu"), torch.float32)
    logits = torch.randn(len(instances), 6, requires_grad=True)
    corner = torch.rand(len(instances), 6, 2) * 50
    boxes = torch.cat([corner, corner + torch.rand(len(instances), 6, 2) * 40 + 1], dim=-1).requires_grad_()
    matches = HungarianMatcher()(logits, boxes, targets)
    mean = torch.randn(len(matches), num_keypoints, 2, requires_grad=True)
    sigma = torch.rand(len(matches), num_keypoints, 2).requires_grad_()
    return targets, StagePrediction(logits, boxes, matches, mean, sigma)


def _normalizers(targets: PersonTargets) -> dict[str, torch.Tensor]:
    return {"persons": torch.tensor(float(targets.num_persons), dtype=torch.float64)}


def test_residual_log_likelihood_in_closed_form() -> None:
    sigma, error = 0.2, 0.1
    mean = torch.full((1, 1, 2), error, dtype=torch.double)
    element = residual_log_likelihood(mean, torch.full_like(mean, sigma), torch.zeros_like(mean), _identity_flow())
    log_normal = -2 * 0.5 * ((error / sigma) ** 2 + math.log(2 * math.pi))
    laplace = math.log(sigma * math.sqrt(2 * math.pi)) + error / (math.sqrt(2) * sigma)
    torch.testing.assert_close(element, torch.full_like(mean, math.log(sigma) - log_normal + laplace))


def test_a_keypoint_that_does_not_count_changes_nothing_whatever_it_is() -> None:
    mean, sigma = torch.randn(2, 3, 2, requires_grad=True), torch.rand(2, 3, 2)
    target, valid = torch.randn(2, 3, 2), torch.tensor([[True, False, True], [True, True, False]])
    loss = residual_log_likelihood_loss(mean, sigma, target, valid, RealNVP())
    target[~valid] = float("inf")
    again = residual_log_likelihood_loss(mean, sigma, target, valid, RealNVP())
    again.backward()
    assert mean.grad is not None
    assert mean.grad.isfinite().all()
    assert not mean.grad[~valid].any()
    assert torch.isfinite(loss)


def test_focal_loss_of_a_sure_and_right_query_vanishes() -> None:
    assert focal_loss(torch.tensor([[20.0, -20.0]]), torch.tensor([[1.0, 0.0]]), 0.25, 2.0) < 1e-8


def test_box_losses_in_closed_form() -> None:
    boxes, person = torch.tensor([[0.0, 0.0, 10.0, 20.0]]), torch.tensor([[0.0, 0.0, 10.0, 40.0]])
    assert box_l1_loss(boxes, person, torch.tensor([[10.0, 40.0, 10.0, 40.0]])).item() == pytest.approx(0.5)
    assert box_giou_loss(boxes, person).item() == pytest.approx(0.5)


def test_keypoint_targets_are_in_the_frame_of_the_predicted_box() -> None:
    keypoints = torch.tensor([[[[10.0, 20.0], [30.0, 60.0], [20.0, 40.0], [31.0, 40.0], [0.0, 0.0]]]])
    labeled = torch.tensor([[[True, True, True, True, False]]])
    targets = PersonTargets(torch.zeros(1, 1, 4), keypoints, labeled, (1,), torch.ones(1, 4), labeled)
    zero = torch.zeros(1, dtype=torch.long)
    position, valid = keypoint_targets(torch.tensor([[10.0, 20.0, 30.0, 60.0]]), zero, zero, targets)
    assert position[0, :3].tolist() == [[-0.5, -0.5], [0.5, 0.5], [0.0, 0.0]]
    assert valid.tolist() == [[True, True, True, False, False]]  # corners belong to the box; the fourth is outside


def test_deep_supervision_names_and_counts() -> None:
    targets, stage = _batch(2, 1)
    every = SetCriterion(flow=RealNVP())([stage] * 3, targets, _normalizers(targets))
    last = SetCriterion(flow=RealNVP(), deep_supervision=False)([stage] * 3, targets, _normalizers(targets))
    assert set(every) == {name + suffix for name in LOSSES for suffix in ("", "_0", "_1")}
    assert set(last) == set(LOSSES)


def test_stages_together_cost_what_each_costs_alone() -> None:
    targets, first = _batch(2, 1)
    second = StagePrediction(
        first.logits_BQ + 1, first.boxes_BQ4 + 2, first.matches, first.mean_RKD + 0.1, first.sigma_RKD / 2
    )
    criterion = SetCriterion(flow=RealNVP())
    together = criterion([first, second], targets, _normalizers(targets))
    for suffix, stage in (("_0", first), ("", second)):
        alone = criterion([stage], targets, _normalizers(targets))
        for name in LOSSES:
            torch.testing.assert_close(together[name + suffix], alone[name])


def test_losses_are_divided_by_the_number_of_persons() -> None:
    targets, stage = _batch(2, 1)
    criterion = SetCriterion(flow=RealNVP())
    one = criterion.unweighted_losses([stage], targets, torch.tensor(1.0))
    three = criterion([stage], targets, _normalizers(targets))
    for name in LOSSES:
        torch.testing.assert_close(three[name], criterion.weights[name] * one[name][0] / 3)


@pytest.mark.parametrize("persons", [(0, 0), (0, 2), (9, 1)])
def test_finite_with_gradients_without_persons_and_with_too_many(persons: tuple[int, int]) -> None:
    targets, stage = _batch(*persons)
    criterion = SetCriterion(flow=RealNVP())
    losses = criterion([stage], targets, _normalizers(targets))
    torch.stack(list(losses.values())).sum().backward()
    assert criterion.flow is not None
    tensors: dict[str, Any] = {"logits": stage.logits_BQ, "boxes": stage.boxes_BQ4, "mean": stage.mean_RKD}
    for name, tensor in {**tensors, **dict(criterion.flow.named_parameters())}.items():
        assert tensor.grad is not None, name
        assert tensor.grad.isfinite().all(), name


def test_no_labeled_keypoint_and_a_box_of_one_pixel() -> None:
    persons = random_persons(1, 3, (80, 100))
    persons.gt_keypoints.tensor.zero_()
    persons.gt_boxes.tensor[:] = torch.tensor([10.0, 10.0, 11.0, 11.0])
    targets = PersonTargets.from_instances([persons], 3, torch.device("cpu"), torch.float32)
    _, stage = _batch(1)
    stage.boxes_BQ4.detach()[:] = torch.tensor([10.0, 10.0, 10.0, 10.0])
    losses = SetCriterion(flow=RealNVP())([stage], targets, _normalizers(targets))
    torch.stack(list(losses.values())).sum().backward()
    assert losses["loss_keypoint"] == 0
    assert stage.mean_RKD.grad is not None
    assert stage.mean_RKD.grad.isfinite().all()


def test_a_wrong_number_of_keypoints_is_refused() -> None:
    with pytest.raises(ValueError, match="has 5 keypoints, but the annotations of image 1 of the batch have 3"):
        PersonTargets.from_instances(
            [random_persons(1, 5, (8, 8)), random_persons(1, 3, (8, 8))], 5, torch.device("cpu"), torch.float32
        )
