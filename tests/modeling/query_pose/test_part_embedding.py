"""The interactions of Table 1: what they read, what they give, and how large they are at the paper's sizes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from querypose.config import ConfigError, load_config
from querypose.modeling.query_pose.part_embedding import (
    INTERACTION_REGISTRY,
    AttentionEmbedding,
    AveragePoolingEmbedding,
    DynamicSpatialEmbedding,
    InteractionSizes,
    RegionInteraction,
)

READING = ("self_attention", "dynamic_channel", "dynamic_spatial")
SIDE, NUM_QUERIES, QUERY_DIM = 4, 3, 8


INTERACTIONS = [name for name, _ in INTERACTION_REGISTRY]
SMALL = InteractionSizes(
    dim=6, num_tokens=SIDE**2, num_queries=NUM_QUERIES, query_dim=QUERY_DIM, num_heads=2, dim_dynamic=4
)


def _small(name: str) -> RegionInteraction:
    return INTERACTION_REGISTRY.get(name)(SMALL).eval()


def _embed(interaction: RegionInteraction, region: Tensor, query: Tensor) -> Tensor:
    """The embeddings alone, of an interaction that also locates keypoints too."""
    embedded = interaction(region, query)
    return embedded[0] if interaction.locates else embedded


def _inputs(num_regions: int = 5) -> tuple[Tensor, Tensor]:
    return torch.randn(num_regions, 6, SIDE, SIDE), torch.randn(num_regions, NUM_QUERIES, QUERY_DIM)


def test_the_config_allows_the_interactions_there_are() -> None:
    key = "MODEL.QUERYPOSE.KEYPOINT.INTERACTION"
    for name in INTERACTIONS:
        load_config(None, [key, name])
    listed = ", ".join(repr(name) for name in INTERACTIONS)
    with pytest.raises(ConfigError, match=f"INTERACTION is 'mlp'; allowed: {listed}"):
        load_config(None, [key, "mlp"])


@pytest.mark.parametrize("name", INTERACTIONS)
def test_an_embedding_a_query_and_regions_by_themselves(name: str) -> None:
    interaction, (region, query) = _small(name), _inputs()
    embedding = _embed(interaction, region, query)
    assert embedding.shape == query.shape
    torch.testing.assert_close(embedding[1:2], _embed(interaction, region[1:2], query[1:2]))
    assert not torch.allclose(embedding, _embed(interaction, region + torch.randn_like(region), query))


@pytest.mark.parametrize("name", INTERACTIONS)
def test_queries_are_read_where_the_class_says_so(name: str) -> None:
    interaction, (region, query) = _small(name), _inputs()
    other = query + torch.randn_like(query)
    changed = not torch.equal(_embed(interaction, region, query), _embed(interaction, region, other))
    assert interaction.reads_queries == changed == (name in READING)


@pytest.mark.parametrize("name", ["dynamic_channel", "dynamic_spatial"])
def test_a_dynamic_mlp_treats_each_query_by_itself(name: str) -> None:
    interaction, (region, query) = _small(name), _inputs()
    torch.testing.assert_close(interaction(region, query)[:, 1:2], interaction(region, query[:, 1:2]))


@pytest.mark.parametrize("name", INTERACTIONS)
def test_no_region_gives_no_embedding_and_zero_gradients(name: str) -> None:
    interaction, (region, query) = _small(name).train(), _inputs(0)
    _embed(interaction, region, query).sum().backward()
    for parameter_name, parameter in interaction.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert not parameter.grad.any(), parameter_name


def test_average_pooling_in_closed_form() -> None:
    pooling = AveragePoolingEmbedding(replace(SMALL, dim=2, query_dim=2, num_queries=2))
    with torch.no_grad():
        pooling.project.weight.copy_(torch.cat([torch.eye(2), 10 * torch.eye(2)]))
        pooling.project.bias.zero_()
    region = torch.tensor([[[[1.0, 3.0]], [[4.0, 8.0]]]])
    assert pooling(region, torch.zeros(1, 2, 2)).tolist() == [[[2.0, 6.0], [20.0, 60.0]]]


def test_self_attention_does_not_care_where_a_cell_is() -> None:
    attention, (region, query) = AttentionEmbedding(SMALL), _inputs()
    shuffled = region.flatten(2)[..., torch.randperm(SIDE**2)].view_as(region)
    torch.testing.assert_close(attention(region, query), attention(shuffled, query))


def test_the_dynamic_mlp_over_space_mixes_cells_and_not_channels() -> None:
    """A generated map that passes every cell through gives each channel by itself."""
    embedding = DynamicSpatialEmbedding(replace(SMALL, num_tokens=9, dim_dynamic=6))
    seen: list[Tensor] = []
    embedding.interaction.register_forward_pre_hook(lambda module, args: seen.append(args[1]))
    region = torch.randn(2, 6, 3, 3)
    embedding(region, torch.randn(2, NUM_QUERIES, QUERY_DIM))
    torch.testing.assert_close(seen[0], region.flatten(2)[:, None])
    assert embedding.interaction.norm_outer.normalized_shape == (9,)


@pytest.mark.parametrize("name", INTERACTIONS)
def test_sizes_are_those_that_the_paper_names(name: str) -> None:
    """Sec. 4.2: "compared with dynamic MLP with over 10M parameters, SPEGM is […] efficient with only 1.1M"."""
    parts = InteractionSizes(dim=256, num_tokens=14**2, num_queries=7, query_dim=128, num_heads=8, dim_dynamic=64)
    interaction = INTERACTION_REGISTRY.get(name)
    with torch.device("meta"):
        for_parts, for_instance = interaction(parts), interaction(replace(parts, num_queries=1, query_dim=256))
    millions = [
        sum(parameter.numel() for parameter in module.parameters()) / 1e6 for module in (for_parts, for_instance)
    ]
    if name.startswith("dynamic_"):
        assert min(millions) > 10
        generated = len(for_parts.get_parameter("interaction.generator.bias"))
        assert generated == pytest.approx(2 * 256 * 64, rel=0.01)  # as many weights a query, over channels or space
    elif name == "spatial_attention":
        assert millions == pytest.approx([1.1, 1.1], abs=0.05)
    else:
        assert max(millions) < 0.4
