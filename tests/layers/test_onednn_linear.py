from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from querypose.layers.onednn_linear import OneDNNLinear

IN, OUT = 24, 40


def layers(dtype: torch.dtype = torch.float32) -> tuple[OneDNNLinear, nn.Linear]:
    torch.manual_seed(0)
    layer, plain = OneDNNLinear(IN, OUT), nn.Linear(IN, OUT)
    plain.load_state_dict(layer.state_dict())
    return layer.to(dtype), plain.to(dtype)


def outcome(layer: nn.Module, x: Tensor) -> list[Tensor | None]:
    x = x.clone().requires_grad_()
    output = layer(x)
    (output * torch.linspace(-1, 1, OUT, dtype=output.dtype)).sum().backward()
    return [output.detach(), x.grad, *(parameter.grad for parameter in layer.parameters())]


@pytest.mark.parametrize("shape", [(7, IN), (3, 1, 5, IN), (0, IN)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_outputs_and_gradients_are_those_of_a_linear_layer(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    layer, plain = layers(dtype)
    x = torch.rand(shape, dtype=dtype)
    tolerance = 1e-5 if dtype == torch.float32 else 1e-12
    torch.testing.assert_close(outcome(layer, x), outcome(plain, x), rtol=tolerance, atol=tolerance)


def test_a_transposed_input_and_frozen_weights() -> None:
    layer, plain = layers()
    x = torch.rand(IN, 7).t()
    for module in (layer, plain):
        module.requires_grad_(False)
    torch.testing.assert_close(outcome(layer, x), outcome(plain, x), rtol=1e-5, atol=1e-5)


def test_autocast_inference_and_compilation_are_those_of_a_linear_layer() -> None:
    layer, plain = layers()
    x = torch.rand(7, IN)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16
        torch.testing.assert_close(layer(x), plain(x), rtol=0, atol=0)
    torch.testing.assert_close(layer.eval()(x), plain(x), rtol=0, atol=0)
    layer.train()
    torch._dynamo.reset()
    compiled = copy.deepcopy(layer)
    compiled.compile(backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(outcome(compiled, x), outcome(plain, x), rtol=1e-5, atol=1e-5)
