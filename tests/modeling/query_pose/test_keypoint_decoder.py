"""Part embedding, part update, regressors."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from querypose.modeling.query_pose import keypoint_decoder
from querypose.modeling.query_pose.keypoint_decoder import KeypointRegressor, KeypointStage
from querypose.modeling.query_pose.part_embedding import InteractionSizes, SpatialPartEmbedding
from querypose.modeling.query_pose.part_update import PART_UPDATE_REGISTRY, SelectiveUpdate
from querypose.skeleton import BUILTIN_SKELETONS

NO_QUERY = torch.empty(0)  # SPEGM reads none


def _spegm(dim: int, part_dim: int, num_parts: int) -> SpatialPartEmbedding:
    return SpatialPartEmbedding(InteractionSizes(dim, 49, num_parts, part_dim, num_heads=1, dim_dynamic=1))


def test_attention_maps_of_a_part_sum_to_one_whatever_the_region() -> None:
    # With constant upsampled features, an attention-weighted mean is that constant: it shows in the projection.
    module = _spegm(dim=4, part_dim=6, num_parts=3).eval()
    nn.init.zeros_(module.upsample.weight)
    nn.init.constant_(module.norm.bias, 2.0)
    embedding = module(torch.randn(5, 4, 7, 7), NO_QUERY)
    torch.testing.assert_close(embedding, module.project(torch.full((5, 3, 4), 2.0)))


def test_part_embedding_reads_where_its_attention_points() -> None:
    module = _spegm(dim=2, part_dim=2, num_parts=1).eval()
    with torch.no_grad():
        module.upsample.weight.zero_()
        module.upsample.weight[0, 0, 1:3, 1:3] = 1.0  # nearest-neighbor upsampling, channel by channel
        module.upsample.weight[1, 1, 1:3, 1:3] = 1.0
        module.attention.weight.zero_()
        module.attention.weight[0, 0, 1, 1] = 1e4  # look where channel 0 is greatest
        module.project.weight.copy_(torch.eye(2))
    region = torch.zeros(1, 2, 4, 4)
    region[0, 0, 2, 1], region[0, 1, 2, 1] = 1.0, 5.0
    expected = torch.tensor([[[1.0, 5.0]]]) / (1 + module.norm.eps) ** 0.5
    torch.testing.assert_close(module(region, NO_QUERY), expected)


def test_part_embedding_keeps_regions_apart_in_inference() -> None:
    module, region = _spegm(dim=4, part_dim=6, num_parts=3).eval(), torch.randn(5, 4, 7, 7)
    torch.testing.assert_close(module(region, NO_QUERY)[1:2], module(region[1:2], NO_QUERY))


@pytest.mark.parametrize(("gate", "weight"), [(-50.0, 0.0), (0.0, 0.5), (50.0, 1.0)])
def test_selective_update_mixes_by_its_gates(gate: float, weight: float) -> None:
    update = SelectiveUpdate(8)
    nn.init.zeros_(update.gates.weight)
    nn.init.constant_(update.gates.bias, gate)
    embedding, query = torch.randn(2, 3, 8), torch.randn(2, 3, 8)
    torch.testing.assert_close(update(embedding, query), weight * (embedding + query))


def test_selective_update_gates_embedding_and_query_separately() -> None:
    update = SelectiveUpdate(8)
    nn.init.zeros_(update.gates.weight)
    with torch.no_grad():
        update.gates.bias[:8], update.gates.bias[8:] = 50.0, -50.0
    embedding, query = torch.randn(2, 3, 8), torch.randn(2, 3, 8)
    torch.testing.assert_close(update(embedding, query), embedding)


@pytest.mark.parametrize("name", [name for name, _ in PART_UPDATE_REGISTRY])
def test_updates_keep_the_shape(name: str) -> None:
    update = PART_UPDATE_REGISTRY.get(name)(8)
    assert update(torch.randn(2, 3, 8), torch.randn(2, 3, 8)).shape == (2, 3, 8)


def test_regressor_ignores_the_length_of_the_query_for_the_mean_alone() -> None:
    regressor, query = KeypointRegressor(8, [(0, 2), (1,)]), torch.randn(4, 2, 8)
    mean, sigma = regressor(query)
    mean_of_longer, sigma_of_longer = regressor(query * 3)
    torch.testing.assert_close(mean, mean_of_longer)
    assert not torch.allclose(sigma, sigma_of_longer)
    assert ((sigma > 0) & (sigma < 1)).all()


def test_each_keypoint_reads_its_own_part() -> None:
    regressor, query = KeypointRegressor(8, [(0, 2), (1,)]), torch.randn(4, 2, 8)
    before, _ = regressor(query)
    query[:, 1] += 1.0
    after, _ = regressor(query)
    changed = (before != after).any(-1).any(0)
    assert changed.tolist() == [False, True, False]


@pytest.mark.parametrize("name", BUILTIN_SKELETONS)
def test_every_scheme_of_every_skeleton_regresses_every_keypoint(name: str) -> None:
    skeleton = BUILTIN_SKELETONS[name]
    for scheme in skeleton.part_schemes:
        parts = skeleton.parts(scheme)
        mean, _ = KeypointRegressor(8, parts)(torch.randn(2, len(parts), 8))
        assert mean.shape == (2, skeleton.num_keypoints, 2)


@pytest.mark.parametrize("training", [True, False])
def test_training_may_read_regions_with_channels_first(training: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = KeypointStage(dim=4, num_convs=2, conv_dim=6, refinement=None).double()
    layouts: list[bool] = []
    stage.convs[0].register_forward_pre_hook(lambda _, given: layouts.append(given[0].is_contiguous()))
    region, query = torch.randn(3, 4, 7, 7).double().contiguous(memory_format=torch.channels_last), torch.randn(3, 4)
    outcomes = []
    for channels_first in (False, True):
        monkeypatch.setattr(keypoint_decoder, "CHANNELS_FIRST_IN_TRAINING", channels_first)
        with torch.set_grad_enabled(training):
            read, _ = stage.read_region(region.requires_grad_(training), query)
        gradients = torch.autograd.grad(read.square().sum(), [region, *stage.parameters()]) if training else ()
        outcomes.append((read, *gradients))
    assert layouts == [False, training]
    torch.testing.assert_close(outcomes[1], outcomes[0], rtol=1e-12, atol=1e-12)
