"""Attention, feed-forward network, dynamic interaction, batch normalization over regions."""

from __future__ import annotations

import copy

import torch
from torch import nn

from querypose.layers import DynamicInteraction, FeedForward, RegionBatchNorm2d, SelfAttention


def test_self_attention_is_equivariant_to_the_order_of_the_queries() -> None:
    attention, query = SelfAttention(16, num_heads=4), torch.randn(2, 5, 16)
    order = torch.tensor([3, 1, 4, 0, 2])
    torch.testing.assert_close(attention(query)[:, order], attention(query[:, order]))


def test_self_attention_keeps_sets_apart() -> None:
    attention, query = SelfAttention(16, num_heads=4), torch.randn(2, 5, 16)
    torch.testing.assert_close(attention(query)[:1], attention(query[:1]))


def test_feed_forward_of_silent_layers_is_the_norm() -> None:
    network, query = FeedForward(8, 16), torch.randn(3, 8)
    nn.init.zeros_(network.reduce.weight)
    nn.init.zeros_(network.reduce.bias)
    torch.testing.assert_close(network(query), nn.functional.layer_norm(query, (8,)))


def test_dynamic_interaction_treats_each_region_by_itself() -> None:
    interaction = DynamicInteraction(dim=8, dim_dynamic=4, num_tokens=9)
    query, region = torch.randn(5, 8), torch.randn(5, 9, 8)
    torch.testing.assert_close(interaction(query, region)[2:3], interaction(query[2:3], region[2:3]))


def test_dynamic_interaction_depends_on_query_and_region() -> None:
    interaction = DynamicInteraction(dim=8, dim_dynamic=4, num_tokens=9)
    query, region = torch.randn(1, 8), torch.randn(1, 9, 8)
    out = interaction(query, region)
    assert not torch.allclose(out, interaction(query + 1, region))
    assert not torch.allclose(out, interaction(query, region + torch.randn(1, 9, 8)))


def test_batch_norm_of_no_region_leaves_the_statistics_and_gives_gradients() -> None:
    norm = RegionBatchNorm2d(4)
    before = copy.deepcopy(norm.state_dict())
    norm(torch.zeros(0, 4, 2, 2)).sum().backward()
    assert all(torch.equal(value, before[name]) for name, value in norm.state_dict().items())
    assert norm.weight.grad is not None
    assert not norm.weight.grad.any()


def test_batch_norm_of_regions_is_that_of_torch() -> None:
    region, ours, theirs = torch.randn(3, 4, 2, 2), RegionBatchNorm2d(4), nn.BatchNorm2d(4)
    torch.testing.assert_close(ours(region), theirs(region))
    torch.testing.assert_close(ours.running_var, theirs.running_var)
