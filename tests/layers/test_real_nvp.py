"""The flow is invertible, and its determinant and density are right."""

from __future__ import annotations

import torch

from querypose.layers import RealNVP


def _flow() -> RealNVP:
    flow = RealNVP(num_couplings=4, dim_hidden=16).double()
    for parameter in flow.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return flow


def test_inverse_undoes_forward() -> None:
    flow, z = _flow(), torch.randn(50, 2, dtype=torch.double)
    recovered, _ = flow.inverse(flow(z))
    torch.testing.assert_close(recovered, z)


def test_log_determinant_is_that_of_the_jacobian() -> None:
    flow, x = _flow(), torch.randn(7, 2, dtype=torch.double)
    _, log_det = flow.inverse(x)
    jacobian = torch.func.vmap(torch.func.jacrev(lambda point: flow.inverse(point[None])[0][0]))(x)
    torch.testing.assert_close(log_det, torch.linalg.det(jacobian).abs().log())


def test_density_integrates_to_one() -> None:
    flow = RealNVP(num_couplings=2, dim_hidden=8).double()
    axis = torch.linspace(-8, 8, 401, dtype=torch.double)
    grid = torch.cartesian_prod(axis, axis)
    integral = flow.log_prob(grid).exp().sum() * (axis[1] - axis[0]) ** 2
    torch.testing.assert_close(integral, torch.tensor(1.0, dtype=torch.double), atol=1e-4, rtol=0)


def test_couplings_alternate_between_the_dimensions() -> None:
    assert RealNVP(num_couplings=3).keep.tolist() == [[0, 1], [1, 0], [0, 1]]


def test_gradient_by_finite_differences() -> None:
    flow, x = _flow(), torch.randn(3, 2, dtype=torch.double, requires_grad=True)
    assert torch.autograd.gradcheck(flow.log_prob, (x,))


def test_every_parameter_gets_a_gradient() -> None:
    flow = RealNVP()
    flow.log_prob(torch.randn(10, 2)).sum().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in flow.parameters())
