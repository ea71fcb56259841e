"""FrozenBatchNorm2d is BatchNorm in eval mode, whatever the mode, with nothing to train."""

from __future__ import annotations

import pytest
import torch
from timm.layers import BatchNormAct2d
from torch import Tensor, nn

from querypose.modeling.backbone import FrozenBatchNorm2d, freeze_batch_norms
from querypose.modeling.backbone.frozen_batch_norm import reset_batch_norms


def trained(norm: nn.BatchNorm2d) -> nn.BatchNorm2d:
    generator = torch.Generator().manual_seed(0)
    for tensor, low in ((norm.weight, -1.0), (norm.bias, -1.0), (norm.running_mean, -2.0), (norm.running_var, 0.1)):
        assert tensor is not None
        tensor.data.copy_(low + 2 * torch.rand(tensor.shape, generator=generator))
    return norm


def image(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1), dtype=dtype)


@pytest.mark.parametrize("needs_gradient", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_equals_batch_norm_in_eval_mode(training: bool, needs_gradient: bool) -> None:
    norm = trained(nn.BatchNorm2d(5, eps=1e-3)).double()
    frozen = FrozenBatchNorm2d.from_batch_norm(norm).train(training)
    before = {name: value.clone() for name, value in frozen.state_dict().items()}
    inputs = [image(2, 5, 3, 4).requires_grad_(needs_gradient) for _ in range(2)]
    expected, actual = norm.eval()(inputs[0]), frozen(inputs[1])
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)
    if needs_gradient:
        expected.square().sum().backward()
        actual.square().sum().backward()
        torch.testing.assert_close(inputs[1].grad, inputs[0].grad, rtol=1e-12, atol=1e-12)
    for name, value in frozen.state_dict().items():
        assert torch.equal(value, before[name])


def test_closed_form() -> None:
    frozen = FrozenBatchNorm2d(1, eps=0.0)
    frozen.weight.fill_(3.0)
    frozen.bias.fill_(1.0)
    frozen.running_mean.fill_(2.0)
    frozen.running_var.fill_(4.0)
    assert frozen(torch.full((1, 1, 1, 1), 6.0)).item() == 3.0 * (6.0 - 2.0) / 2.0 + 1.0


def test_activation_behind_the_norm_is_kept() -> None:
    norm = trained(BatchNormAct2d(5, act_layer=nn.SiLU)).eval()
    frozen = freeze_batch_norms(norm)
    assert isinstance(frozen, FrozenBatchNorm2d)
    x = image(2, 5, 3, 4, dtype=torch.float32)
    torch.testing.assert_close(frozen(x), norm(x))
    plain = nn.BatchNorm2d(5).eval()
    plain.load_state_dict(norm.state_dict())
    assert not torch.allclose(frozen(x), plain(x))


def test_conversion_replaces_every_batch_norm_and_loads_either_state_dict() -> None:
    inner = nn.Sequential(trained(nn.BatchNorm2d(5)), nn.ReLU())
    network = nn.Sequential(nn.Conv2d(3, 5, 1), inner, nn.GroupNorm(1, 5))
    trained_state = {name: value.clone() for name, value in network.state_dict().items()}
    frozen = freeze_batch_norms(network)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in frozen.modules())
    assert isinstance(frozen[2], nn.GroupNorm)  # type: ignore[index]  # a Sequential
    assert {name for name, _ in frozen.named_parameters()} == {"0.weight", "0.bias", "2.weight", "2.bias"}
    reset = {name: torch.zeros_like(value) for name, value in frozen.state_dict().items()}
    frozen.load_state_dict(reset)
    frozen.load_state_dict(trained_state)  # strict, with its num_batches_tracked
    for name, value in frozen.state_dict().items():
        assert torch.equal(value, trained_state[name])


@pytest.mark.parametrize("needs_gradient", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_keeps_the_precision_of_its_input(dtype: torch.dtype, needs_gradient: bool) -> None:
    frozen = FrozenBatchNorm2d.from_batch_norm(trained(nn.BatchNorm2d(5)))
    x = image(2, 5, 3, 4, dtype=torch.float32)
    actual = frozen(x.to(dtype).requires_grad_(needs_gradient))
    assert actual.dtype == dtype
    torch.testing.assert_close(actual.float(), frozen(x), rtol=0.02, atol=0.05)


def test_without_running_statistics_there_is_nothing_to_freeze() -> None:
    with pytest.raises(ValueError, match="without running statistics"):
        freeze_batch_norms(nn.BatchNorm2d(3, track_running_stats=False))


def test_without_affine_the_affine_is_the_identity() -> None:
    norm = nn.BatchNorm2d(3, affine=False).eval()
    x = image(1, 3, 2, 2, dtype=torch.float32)
    torch.testing.assert_close(freeze_batch_norms(norm)(x), norm(x))


def test_reset_makes_the_identity() -> None:
    norm = trained(nn.BatchNorm2d(3, eps=0.0))
    reset_batch_norms(norm)
    x = image(1, 3, 2, 2, dtype=torch.float32)
    torch.testing.assert_close(freeze_batch_norms(norm)(x), x)
