"""Losses where float32 ends: finite, with finite gradients, whatever a model that goes astray predicts."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from querypose.config import ConfigError, load_config
from querypose.layers import RealNVP, generalized_box_iou
from querypose.modeling.query_pose.costs import focal_cost
from querypose.modeling.query_pose.criterion import SetCriterion
from querypose.modeling.query_pose.keypoint_decoder import KeypointRegressor
from querypose.modeling.query_pose.losses import SMALLEST_SIGMA, focal_loss, residual_log_likelihood_loss
from querypose.modeling.query_pose.pose_decoder import StagePrediction
from querypose.modeling.targets import Matches, PersonTargets

HALF = [torch.float32, torch.float16, torch.bfloat16]


def assert_finite(loss: Tensor, *leaves: Tensor) -> None:
    gradients = torch.autograd.grad(loss, leaves)
    assert loss.isfinite()
    for gradient in gradients:
        assert gradient.isfinite().all()


def grown_flow(growth: float) -> RealNVP:
    """A flow as initialized, its weights made larger as training may."""
    flow = RealNVP()
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.mul_(growth)
    return flow


@pytest.mark.parametrize("growth", [1.0, 3.0])
@pytest.mark.parametrize("logit", [-1e4, -104.0, -88.0, -30.0, 0.0, 30.0, 1e4])
def test_keypoint_loss_from_sigma_zero_to_one(growth: float, logit: float) -> None:
    flow = grown_flow(growth)
    for error in (0.0, 1e-7, 0.5, 1e3):
        logit_RKD = torch.full((2, 3, 2), logit, requires_grad=True)
        mean_RKD = torch.full((2, 3, 2), error, requires_grad=True)
        loss = residual_log_likelihood_loss(
            mean_RKD, logit_RKD.sigmoid(), torch.zeros(2, 3, 2), torch.ones(2, 3, dtype=torch.bool), flow
        )
        assert_finite(loss, mean_RKD, logit_RKD, *flow.parameters())


def test_a_sigma_that_is_too_small_is_pushed_up_again() -> None:
    sigma_RKD = torch.full((1, 1, 2), SMALLEST_SIGMA / 10, requires_grad=True)
    loss = residual_log_likelihood_loss(
        torch.full((1, 1, 2), 0.5), sigma_RKD, torch.zeros(1, 1, 2), torch.ones(1, 1, dtype=torch.bool), RealNVP()
    )
    loss.backward()
    assert sigma_RKD.grad is not None
    assert (sigma_RKD.grad < 0).all()


@pytest.mark.parametrize("target", [float("inf"), float("-inf"), float("nan"), 1e30])
def test_keypoints_that_do_not_count_may_be_anywhere(target: float) -> None:
    mean_RKD = torch.zeros(1, 2, 2, requires_grad=True)
    sigma_RKD = torch.full((1, 2, 2), 0.5, requires_grad=True)
    target_RKD = torch.zeros(1, 2, 2)
    target_RKD[0, 1] = target
    flow = RealNVP()
    loss = residual_log_likelihood_loss(mean_RKD, sigma_RKD, target_RKD, torch.tensor([[True, False]]), flow)
    assert_finite(loss, mean_RKD, sigma_RKD, *flow.parameters())


@pytest.mark.parametrize("size", [1e-30, 1.0, 1e6, 1e15])
def test_flow_far_from_the_origin(size: float) -> None:
    flow = grown_flow(2.0)
    x_ND = torch.tensor([[size, -size], [0.0, size]], requires_grad=True)
    assert_finite(flow.log_prob(x_ND).sum(), x_ND, *flow.parameters())


@pytest.mark.parametrize("gamma", [0.0, 1.0, 2.0, 5.0])
@pytest.mark.parametrize("logit", [0.0, 17.0, 89.0, 1e4, 1e30])
def test_focal_loss_of_certain_queries(gamma: float, logit: float) -> None:
    for sign, is_person in itertools.product((-1.0, 1.0), (0.0, 1.0)):
        logits_BQ = torch.full((1, 3), sign * logit, requires_grad=True)
        assert_finite(focal_loss(logits_BQ, torch.full((1, 3), is_person), 0.25, gamma), logits_BQ)
        assert focal_cost(logits_BQ, 0.25, gamma).isfinite().all()


def test_a_gamma_whose_gradient_is_infinite_is_refused() -> None:
    logits_BQ = torch.full((1, 1), 40.0, requires_grad=True)
    focal_loss(logits_BQ, torch.ones(1, 1), 0.25, 0.5).backward()
    assert logits_BQ.grad is not None
    assert not logits_BQ.grad.isfinite()
    with pytest.raises(ConfigError, match=r"FOCAL_GAMMA is 0\.5; allowed: 0, or a number >= 1"):
        load_config(None, ["MODEL.QUERYPOSE.LOSS.FOCAL_GAMMA", "0.5"])


@pytest.mark.parametrize("person", [(5.0, 5.0, 5.0, 5.0), (0.0, 0.0, 1e-3, 1e-3), (0.0, 0.0, 640.0, 480.0)])
@pytest.mark.parametrize(
    "box", [(5.0, 5.0, 5.0, 5.0), (1e6, 1e6, 1e6 + 1, 1e6), (-1e9, -1e9, 1e9, 1e9), (9.0, 9.0, 5.0, 5.0), (0.0,) * 4]
)
def test_giou_of_boxes_without_area_and_far_away(box: tuple[float, ...], person: tuple[float, ...]) -> None:
    boxes_R4 = torch.tensor([box], requires_grad=True)
    giou_R = generalized_box_iou(boxes_R4, torch.tensor([person]))
    assert_finite(giou_R.sum(), boxes_R4)


def test_regressor_of_a_query_without_length() -> None:
    regressor = KeypointRegressor(4, [(0, 1), (2,)])
    query_RPC = torch.zeros(2, 2, 4, requires_grad=True)
    mean_RKD, sigma_RKD = regressor(query_RPC)
    assert_finite(mean_RKD.sum() + sigma_RKD.sum(), query_RPC, *regressor.parameters())


@pytest.mark.parametrize("dtype", HALF)
def test_criterion_at_all_extremes_at_once_in_any_precision(dtype: torch.dtype) -> None:
    """Boxes without area, keypoints far away, sigma 0 and 1, certain logits."""
    targets = PersonTargets(
        boxes_BG4=torch.tensor([[[5.0, 5.0, 5.0, 5.0], [0.0, 0.0, 64.0, 48.0]]]),
        keypoints_BGKD=torch.tensor([[[[1e9, -1e9], [5.0, 5.0]], [[3.0, 3.0], [float("inf"), 0.0]]]]),
        labelled_BGK=torch.ones(1, 2, 2, dtype=torch.bool),
        counts=(2,),
        image_size_B4=torch.tensor([[64.0, 48.0, 64.0, 48.0]]),
        visible_BGK=torch.ones(1, 2, 2, dtype=torch.bool),
    )
    pair_R = torch.arange(2)
    matches = Matches(torch.zeros(2, dtype=torch.long), pair_R, pair_R, pair_R, is_complete=True)
    leaves: dict[str, Any] = {
        "logits_BQ": torch.tensor([[1e4, -1e4, 0.0]]),
        "boxes_BQ4": torch.tensor([[[5.0, 5.0, 5.0, 5.0], [-6e4, -6e4, 6e4, 6e4], [0.0, 0.0, 0.0, 0.0]]]),
        "mean_RKD": torch.tensor([[[1e3, -1e3], [0.0, 0.0]], [[0.5, 0.5], [0.0, 0.0]]]),
        "sigma_RKD": torch.tensor([[[0.0, 1.0], [0.0, 0.0]], [[1e-7, 1.0], [1.0, 0.0]]]),
    }
    leaves = {name: value.to(dtype).requires_grad_() for name, value in leaves.items()}
    criterion = SetCriterion(flow=RealNVP())
    losses = criterion(
        [StagePrediction(matches=matches, **leaves)], targets, {"persons": torch.tensor(float(targets.num_persons))}
    )
    assert {loss.dtype for loss in losses.values()} == {torch.float32}
    total = torch.stack(list(losses.values())).sum()
    # In float16 a gradient may overflow, which loss scaling is there for: the flow's own is float32.
    assert_finite(total, *criterion.parameters(), *(() if dtype is torch.float16 else leaves.values()))
