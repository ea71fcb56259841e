"""Flow and residual log-likelihood against the authors' (fixtures/rle): 1e-5, as the issue asks, and closer."""

from __future__ import annotations

import pytest
import torch

from querypose.checkpoint import convert_querypose_official
from querypose.layers import RealNVP
from querypose.modeling.query_pose.losses import residual_log_likelihood, residual_log_likelihood_loss
from tests.parity.golden import PARTS, Fixture, OfficialView, relative_error

PRECISIONS = [pytest.param(torch.float64, 1e-6, id="float64"), pytest.param(torch.float32, 1e-5, id="float32")]


class FlowAlone(torch.nn.Module):
    """The flow where the criterion has it, with the fixture's weights."""

    def __init__(self, fixture: Fixture, dtype: torch.dtype) -> None:
        super().__init__()
        weights = {f"criterion.flow.{name}": value for name, value in fixture.group("flow/").items()}
        self.criterion = torch.nn.Module()
        self.criterion.flow = RealNVP().to(dtype)
        self.load_state_dict(convert_querypose_official(weights, PARTS), strict=True)
        self.view = OfficialView(weights, self)

    @property
    def flow(self) -> RealNVP:
        flow = self.criterion.flow
        assert isinstance(flow, RealNVP)
        return flow


@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS)
def test_log_density_its_determinant_and_both_directions(rle: Fixture, dtype: torch.dtype, tolerance: float) -> None:
    flow = FlowAlone(rle, dtype).flow
    with torch.no_grad():
        z_ND, log_det_N = flow.inverse(rle["in/x"].to(dtype))
        found = {
            "z": z_ND,
            "log_det": log_det_N,
            "log_prob": flow.log_prob(rle["in/x"].to(dtype)),
            "forward_p_of_z": flow(rle["out/z"].to(dtype)),
        }
    for name, value in found.items():
        assert relative_error(value, rle[f"out/{name}"]) < tolerance, name


@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS)
def test_loss_elements_and_sum(rle: Fixture, dtype: torch.dtype, tolerance: float) -> None:
    flow = FlowAlone(rle, dtype).flow
    mean_RKD, sigma_RKD, target_RKD, weight_RKD = (
        rle[f"in/{name}"].to(dtype) for name in ("pred", "sigma", "target", "weight")
    )
    with torch.no_grad():
        elements_RKD = residual_log_likelihood(mean_RKD, sigma_RKD, target_RKD, flow) * weight_RKD
        total = residual_log_likelihood_loss(mean_RKD, sigma_RKD, target_RKD, weight_RKD[..., 0] > 0, flow)
    assert relative_error(elements_RKD, rle["out/loss_elements"]) < tolerance
    num_persons, num_keypoints = mean_RKD.shape[:2]
    assert relative_error(total / (num_persons * num_keypoints), rle["out/loss_sum_over_N17"]) < tolerance


@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS)
def test_gradients_of_the_loss(rle: Fixture, dtype: torch.dtype, tolerance: float) -> None:
    model = FlowAlone(rle, dtype)
    mean_RKD = rle["in/pred"].to(dtype).requires_grad_()
    sigma_RKD = rle["in/sigma"].to(dtype).requires_grad_()
    valid_RK = rle["in/weight"][..., 0] > 0
    loss = residual_log_likelihood_loss(mean_RKD, sigma_RKD, rle["in/target"].to(dtype), valid_RK, model.flow)
    (loss / valid_RK.numel()).backward()

    golden = rle.group("grad/")
    assert mean_RKD.grad is not None
    assert sigma_RKD.grad is not None
    assert relative_error(mean_RKD.grad, golden.pop("pred")) < tolerance
    assert relative_error(sigma_RKD.grad, golden.pop("sigma")) < tolerance
    assert len(golden) == len(list(model.parameters()))
    for name, value in golden.items():
        gradient = model.view.gradient(name.replace("flow.flow", "criterion.flow.flow", 1))
        assert relative_error(gradient, value) < tolerance, name
