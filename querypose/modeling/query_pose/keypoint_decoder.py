"""One stage of the keypoint decoder (QueryPose eq. 2) for each query type, and the regressor at its end."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from querypose.layers import DynamicInteraction, FeedForward, SelfAttention, at_least_float32, full_precision
from querypose.modeling.query_pose.initialization import xavier_uniform_blocks, xavier_uniform_matrices, zero_bias
from querypose.modeling.query_pose.part_embedding import RegionInteraction
from querypose.modeling.query_pose.part_update import PartUpdate

CHANNELS_FIRST_IN_TRAINING = torch.backends.cpu.get_cpu_capability() == "AVX2"
"""Without AVX-512, oneDNN computes gradients of convolutions faster in this layout than in channels_last."""

InteractionBuilder = Callable[[int, int], RegionInteraction]
"""Builds the interaction of a stage for so many queries of such a width."""


class InstanceRefinement(nn.Module):
    """The dynamic interaction of the full version: the instance query reads the keypoint region (Figure 3b).

    Args:
        dim: width C of queries and region features.
        dim_dynamic: inner width of the dynamic interaction.
        dim_feedforward: hidden width of the feed-forward network.
        num_tokens: cells of a region.
    """

    def __init__(self, dim: int, dim_dynamic: int, dim_feedforward: int, num_tokens: int) -> None:
        super().__init__()
        self.interaction = DynamicInteraction(dim, dim_dynamic, num_tokens)
        self.norm = nn.LayerNorm(dim)
        self.feed_forward = FeedForward(dim, dim_feedforward)

    def forward(self, query_RC: Tensor, region_RCHW: Tensor) -> Tensor:
        """The refined queries (R, C)."""
        region_RTC = region_RCHW.flatten(2).transpose(1, 2)
        return self.feed_forward(self.norm(query_RC + self.interaction(query_RC, region_RTC)))


class KeypointRegressor(nn.Module):
    """Unshared linear regressors: each keypoint's mean and sigma from the query of the part it belongs to.

    The mean is regressed from the direction of the query alone: the product is divided by the query's length, the
    bias is not.

    Args:
        part_dim: width C of a part query.
        parts: keypoint indices of each of the P parts; together every keypoint once.
    """

    part_of_keypoint: Tensor

    def __init__(self, part_dim: int, parts: Sequence[Sequence[int]]) -> None:
        super().__init__()
        num_keypoints = sum(map(len, parts))
        part_of_keypoint = torch.empty(num_keypoints, dtype=torch.long)
        for part, keypoints in enumerate(parts):
            part_of_keypoint[list(keypoints)] = part
        self.register_buffer("part_of_keypoint", part_of_keypoint, persistent=False)
        self.mean_weight = nn.Parameter(torch.empty(num_keypoints, 2, part_dim))
        self.mean_bias = nn.Parameter(torch.empty(num_keypoints, 2))
        self.sigma_weight = nn.Parameter(torch.empty(num_keypoints, 2, part_dim))
        self.sigma_bias = nn.Parameter(torch.empty(num_keypoints, 2))
        # As if each part were a linear layer of its own: Xavier-uniform weights, torch's default bias.
        with torch.no_grad():
            for weight in (self.mean_weight, self.sigma_weight):
                for keypoints in parts:
                    part_weight = weight.new_empty(2 * len(keypoints), part_dim)
                    weight[list(keypoints)] = nn.init.xavier_uniform_(part_weight).view(-1, 2, part_dim)
        for bias in (self.mean_bias, self.sigma_bias):
            nn.init.uniform_(bias, -1 / math.sqrt(part_dim), 1 / math.sqrt(part_dim))

    def begin_at_base(self) -> None:
        """Starts so that the means nearly are what `forward` is given as their base."""
        nn.init.zeros_(self.mean_bias)
        with torch.no_grad():
            self.mean_weight.mul_(0.1)

    def forward(self, part_query_RPC: Tensor, base_RKD: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Mean and sigma (R, K, D) in the frame of the box; the mean is regressed from `base_RKD` where it is given."""
        with full_precision(part_query_RPC):
            query_RKC = at_least_float32(part_query_RPC)[:, self.part_of_keypoint]
            length_RK1 = query_RKC.norm(dim=-1, keepdim=True).clamp(min=1e-12)
            mean_RKD = torch.einsum("rkc,kdc->rkd", query_RKC, self.mean_weight) / length_RK1 + self.mean_bias
            if base_RKD is not None:
                mean_RKD = mean_RKD + base_RKD
            sigma_RKD = torch.einsum("rkc,kdc->rkd", query_RKC, self.sigma_weight) + self.sigma_bias
            return mean_RKD, sigma_RKD.sigmoid()


class KeypointStage(nn.Module):
    """Base of all keypoint stages: convolutions on the region, and the refinement of the instance query.

    A subclass defines from which query keypoints are regressed (Table 1) and makes `regressor` for it.

    Args:
        dim: width C of instance queries and region features.
        num_convs: 3x3 convolutions on the region.
        conv_dim: their inner width.
        refinement: refines the instance query before anything reads it (full version), or None (light).

    Attributes:
        num_queries: P, queries that the stage returns for `regressor`.
        query_dim: their width.
        carries_queries: whether the stage reads the queries of the stage before.
    """

    num_queries: int
    query_dim: int
    carries_queries: bool
    regressor: KeypointRegressor

    def __init__(self, *, dim: int, num_convs: int, conv_dim: int, refinement: InstanceRefinement | None) -> None:
        super().__init__()
        self.dim = dim
        widths = [dim, *[conv_dim] * (num_convs - 1), dim]
        convs = [nn.Conv2d(width_in, width_out, 3, padding=1) for width_in, width_out in pairwise(widths)]
        for conv in convs:
            zero_bias(conv)
        self.convs = nn.Sequential(*(layer for conv in convs for layer in (conv, nn.ReLU(inplace=True))))
        self.refinement = refinement

    def read_region(self, region_RCHW: Tensor, instance_query_RC: Tensor) -> tuple[Tensor, Tensor]:
        """The region features after the convolutions, and the instance queries, refined where the stage does that.

        Heat maps that a region brings along behind its features go round the convolutions.
        """
        if CHANNELS_FIRST_IN_TRAINING and torch.is_grad_enabled():
            region_RCHW = region_RCHW.contiguous()
        maps_RKHW = region_RCHW[:, self.dim :]
        region_RCHW = self.convs(region_RCHW[:, : self.dim])
        if self.refinement is not None:
            instance_query_RC = self.refinement(instance_query_RC, region_RCHW)
        if maps_RKHW.shape[1]:
            region_RCHW = torch.cat([region_RCHW, maps_RKHW.to(region_RCHW.dtype)], dim=1)
        return region_RCHW, instance_query_RC


class PartQueryStage(KeypointStage):
    """Keypoints from part queries: part embeddings, update of the part queries, attention among them.

    Args:
        dim: width C of instance queries and region features.
        num_convs: 3x3 convolutions on the region.
        conv_dim: their inner width.
        refinement: of the instance query before its residual is taken, or None.
        interaction: builds the module that embeds the parts.
        parts: keypoint indices of each of the P parts.
        part_dim: width of a part query.
        part_update: builds the module that updates part queries of such a width.
        num_heads: heads of the attention among parts.
        dim_feedforward: hidden width of the feed-forward network.
    """

    def __init__(
        self,
        *,
        dim: int,
        num_convs: int,
        conv_dim: int,
        refinement: InstanceRefinement | None,
        interaction: InteractionBuilder,
        parts: Sequence[Sequence[int]],
        part_dim: int,
        part_update: Callable[[int], PartUpdate],
        num_heads: int,
        dim_feedforward: int,
    ) -> None:
        super().__init__(dim=dim, num_convs=num_convs, conv_dim=conv_dim, refinement=refinement)
        self.num_queries, self.query_dim = len(parts), part_dim
        self.part_embedding = interaction(len(parts), part_dim)
        self.instance_residual = nn.Linear(dim, len(parts) * part_dim)
        self.part_update = part_update(part_dim)
        self.part_attention = SelfAttention(part_dim, num_heads)
        self.feed_forward = FeedForward(part_dim, dim_feedforward)
        xavier_uniform_matrices(self)
        xavier_uniform_blocks(self.instance_residual.weight, len(parts))
        self.regressor = KeypointRegressor(part_dim, parts)
        if self.part_embedding.locates:
            self.regressor.begin_at_base()
        # An interaction that reads the queries carries them too, even if the update does not.
        self.carries_queries = bool(self.part_update.carries_queries or self.part_embedding.reads_queries)

    def forward(self, region_RCHW: Tensor, instance_query_RC: Tensor, query_RPC: Tensor) -> tuple[Tensor, ...]:
        """Decodes R regions, each of them by itself.

        Args:
            region_RCHW: features of the predicted boxes from the finest level.
            instance_query_RC: their instance queries, as the box stage left them.
            query_RPC: their part queries, as the keypoint stage before left them.

        Returns:
            part queries (R, P, C), for `regressor` and the next stage; instance queries (R, C), refined where the
            stage does that; with an interaction that locates, positions (R, K, D) in the frame of the region.
        """
        region_RCHW, instance_query_RC = self.read_region(region_RCHW, instance_query_RC)
        embedded = self.part_embedding(region_RCHW, query_RPC)
        embedding_RPC, *position_RKD = embedded if self.part_embedding.locates else (embedded,)
        embedding_RPC = embedding_RPC + self.instance_residual(instance_query_RC).view_as(embedding_RPC)
        query_RPC = self.part_update(embedding_RPC, query_RPC)
        return self.feed_forward(self.part_attention(query_RPC)), instance_query_RC, *position_RKD


class InstanceQueryStage(KeypointStage):
    """All keypoints from the instance query, which an instance embedding enhances (the IQ rows of Table 1).

    The paper does not define how. Here the embedding is added and normalized, and a feed-forward network follows, as in
    a box stage. The stage returns the enhanced query, so that with serial iteration (Figure 3b) both decoders share
    one query.

    Args:
        dim: width C of instance queries and region features.
        num_convs: 3x3 convolutions on the region.
        conv_dim: their inner width.
        refinement: of the instance query before the interaction, or None.
        interaction: builds the module that embeds the instance.
        num_keypoints: K.
        dim_feedforward: hidden width of the feed-forward network.
    """

    carries_queries = False  # the box stages carry the instance query

    def __init__(
        self,
        *,
        dim: int,
        num_convs: int,
        conv_dim: int,
        refinement: InstanceRefinement | None,
        interaction: InteractionBuilder,
        num_keypoints: int,
        dim_feedforward: int,
    ) -> None:
        super().__init__(dim=dim, num_convs=num_convs, conv_dim=conv_dim, refinement=refinement)
        self.num_queries, self.query_dim = 1, dim
        self.instance_embedding = interaction(1, dim)
        self.norm = nn.LayerNorm(dim)
        self.feed_forward = FeedForward(dim, dim_feedforward)
        xavier_uniform_matrices(self)
        self.regressor = KeypointRegressor(dim, [range(num_keypoints)])

    def forward(self, region_RCHW: Tensor, instance_query_RC: Tensor, query_RPC: Tensor) -> tuple[Tensor, Tensor]:
        """The enhanced instance queries, as (R, 1, C) for `regressor` and as (R, C); see PartQueryStage."""
        region_RCHW, instance_query_RC = self.read_region(region_RCHW, instance_query_RC)
        query_R1C = instance_query_RC[:, None]
        query_R1C = self.feed_forward(self.norm(query_R1C + self.instance_embedding(region_RCHW, query_R1C)))
        return query_R1C, query_R1C[:, 0]


class DirectStage(KeypointStage):
    """All keypoints from an embedding of the region alone, without any query (the baseline of Table 2b).

    Args:
        dim: width C of region features and embedding.
        num_convs: 3x3 convolutions on the region.
        conv_dim: their inner width.
        interaction: builds the module that embeds the region, one that reads no query.
        num_keypoints: K.
    """

    carries_queries = False

    def __init__(
        self, *, dim: int, num_convs: int, conv_dim: int, interaction: InteractionBuilder, num_keypoints: int
    ) -> None:
        super().__init__(dim=dim, num_convs=num_convs, conv_dim=conv_dim, refinement=None)
        self.num_queries, self.query_dim = 1, dim
        self.embedding = interaction(1, dim)
        xavier_uniform_matrices(self)
        self.regressor = KeypointRegressor(dim, [range(num_keypoints)])

    def forward(self, region_RCHW: Tensor, instance_query_RC: Tensor, query_RPC: Tensor) -> tuple[Tensor, Tensor]:
        """Embeddings (R, 1, C) for `regressor`, and the instance queries as they came; see PartQueryStage."""
        region_RCHW, instance_query_RC = self.read_region(region_RCHW, instance_query_RC)
        return at_least_float32(self.embedding(region_RCHW, query_RPC)), instance_query_RC
