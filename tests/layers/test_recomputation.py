"""Recomputing activations changes nothing but what is kept for the backward pass."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from querypose.layers import recompute_in_backward, repeated_blocks


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return torch.dropout(self.norm(self.conv(x)).relu(), 0.5, train=self.training)


def gradients(module: nn.Module, x: Tensor) -> list[Tensor]:
    torch.manual_seed(1)
    return list(torch.autograd.grad(module(x).square().sum(), [x, *module.parameters()]))


def test_gradients_statistics_and_random_numbers_are_those_of_one_pass() -> None:
    torch.manual_seed(0)
    plain = Block().double()
    recomputed = copy.deepcopy(plain)
    recompute_in_backward(recomputed)
    x = torch.randn(2, 4, 5, 5, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(gradients(recomputed, x), gradients(plain, x), rtol=0, atol=0)
    assert (plain.calls, recomputed.calls) == (1, 2)
    assert recomputed.norm.num_batches_tracked == 1
    torch.testing.assert_close(recomputed.state_dict(), plain.state_dict(), rtol=0, atol=0)


def test_nothing_is_kept_but_the_input() -> None:
    block = Block()
    recompute_in_backward(block)
    x = torch.randn(2, 4, 5, 5, requires_grad=True)
    kept: list[int] = []

    def note(tensor: Tensor) -> Tensor:
        kept.append(tensor.data_ptr())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        block(x)
    assert kept == [x.data_ptr()]


def test_without_gradients_there_is_one_pass() -> None:
    block = Block()
    recompute_in_backward(block)
    with torch.no_grad():
        block(torch.randn(2, 4, 5, 5))
    assert block.calls == 1


@pytest.mark.parametrize("container", [nn.Sequential, nn.ModuleList])
def test_blocks_are_the_composite_members_of_uniform_sequences(container: type[nn.Module]) -> None:
    blocks = [Block() for _ in range(3)]
    stages = container(*blocks[:2]) if container is nn.Sequential else container(blocks[:2])
    network = nn.ModuleDict({"stem": nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU()), "stages": nn.Sequential(stages)})
    network["last"] = nn.Sequential(blocks[2])
    assert repeated_blocks(network) == blocks
    assert repeated_blocks(nn.Sequential(nn.ReLU(), nn.ReLU())) == []
