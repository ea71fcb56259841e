"""Interactions, by which the queries of a keypoint stage read region features: SPEGM (Sec. 3.2) and Table 1's others.

An interaction is a class in INTERACTION_REGISTRY, under the name in MODEL.QUERYPOSE.KEYPOINT.INTERACTION.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from querypose.layers import DynamicInteraction, RegionBatchNorm2d
from querypose.modeling.query_pose.initialization import zero_bias
from querypose.registry import PartRegistry

INTERACTION_REGISTRY = PartRegistry("INTERACTION")
INTERACTION_REGISTRY.__doc__ = "`RegionInteraction`s; built with `sizes`, the `InteractionSizes`."


@dataclass(frozen=True)
class InteractionSizes:
    """The sizes from which an interaction is built.

    Attributes:
        dim: channels C of the region features.
        num_tokens: T, cells of a region.
        num_queries: P.
        query_dim: width of query and embedding.
        num_heads: heads of an attention.
        dim_dynamic: inner width of the dynamic MLP over channels.
    """

    dim: int
    num_tokens: int
    num_queries: int
    query_dim: int
    num_heads: int
    dim_dynamic: int


class RegionInteraction(nn.Module):
    """From the features of R regions and the P queries of each to an embedding for each query.

    The keypoint stage combines query and embedding.

    Attributes:
        reads_queries: whether the embeddings depend on the queries.
    """

    reads_queries: bool

    def forward(self, region_RCHW: Tensor, query_RPC: Tensor) -> Tensor:
        """The embeddings, of the shape of the queries. A subclass must define it.

        Args:
            region_RCHW: after the stage's convolutions.
            query_RPC: of the stage before; not read if `reads_queries` is False.
        """
        raise NotImplementedError(f"{type(self).__name__} must define forward.")

    def attention_maps(self, region_RCHW: Tensor, query_RPC: Tensor) -> Tensor | None:
        """Where in its region each query looks, (R, P, H, W), to be shown; None of one without such maps."""
        return None


@INTERACTION_REGISTRY.register(name="spatial_attention")
class SpatialPartEmbedding(RegionInteraction):
    """SPEGM: a learned spatial attention map for every part, over upsampled region features.

    With one part it is the global spatial attention of Table 1.
    """

    reads_queries = False

    def __init__(self, sizes: InteractionSizes) -> None:
        super().__init__()
        dim = sizes.dim
        self.upsample = nn.ConvTranspose2d(dim, dim, kernel_size=4, stride=2, padding=1, bias=False)
        self.norm = RegionBatchNorm2d(dim)
        self.attention = nn.Conv2d(dim, sizes.num_queries, kernel_size=3, padding=1)
        self.project = nn.Linear(dim, sizes.query_dim)
        zero_bias(self.attention)
        zero_bias(self.project)

    def forward(self, region_RCHW: Tensor, query_RPC: Tensor) -> Tensor:
        region_RCHW = self.norm(self.upsample(region_RCHW)).relu_()
        attention_RPT = self.attention(region_RCHW).flatten(2).softmax(-1)
        embedding_RPC = torch.bmm(attention_RPT, region_RCHW.flatten(2).transpose(1, 2))
        return self.project(embedding_RPC)

    def attention_maps(self, region_RCHW: Tensor, query_RPC: Tensor) -> Tensor:
        logits_RPHW = self.attention(self.norm(self.upsample(region_RCHW)).relu())
        return logits_RPHW.flatten(2).softmax(-1).view_as(logits_RPHW)


@INTERACTION_REGISTRY.register(name="average_pooling")
class AveragePoolingEmbedding(RegionInteraction):
    """A linear map, for every query, of the mean over the region: the baseline of Table 2(b).

    The paper regresses "directly" from the mean. The linear map gives it the width of the queries, and because of its
    bias a region of zeros is not a vector of length zero, by which the regressor would divide.
    """

    reads_queries = False

    def __init__(self, sizes: InteractionSizes) -> None:
        super().__init__()
        self.query_dim = sizes.query_dim
        self.project = nn.Linear(sizes.dim, sizes.num_queries * sizes.query_dim)

    def forward(self, region_RCHW: Tensor, query_RPC: Tensor) -> Tensor:
        return self.project(region_RCHW.mean((2, 3))).unflatten(-1, (-1, self.query_dim))


@INTERACTION_REGISTRY.register(name="self_attention")
class AttentionEmbedding(RegionInteraction):
    """Multi-head self-attention over the queries and the cells of their region together; only the queries' outputs.

    The paper does not define how cells and queries get the same width: here the cells are mapped to that of the
    queries. Nor does it define whether cells have a position: here they have none, as in SPEGM.
    """

    reads_queries = True

    def __init__(self, sizes: InteractionSizes) -> None:
        super().__init__()
        self.project = nn.Linear(sizes.dim, sizes.query_dim)
        self.attention = nn.MultiheadAttention(sizes.query_dim, sizes.num_heads, batch_first=True)

    def forward(self, region_RCHW: Tensor, query_RPC: Tensor) -> Tensor:
        cells_RTC = self.project(region_RCHW.flatten(2).transpose(1, 2))
        tokens_RTC = torch.cat([query_RPC.to(cells_RTC.dtype), cells_RTC], dim=1)
        embedding_RPC, _ = self.attention(query_RPC, tokens_RTC, tokens_RTC, need_weights=False)
        return embedding_RPC

    def attention_maps(self, region_RCHW: Tensor, query_RPC: Tensor) -> Tensor:
        cells_RTC = self.project(region_RCHW.flatten(2).transpose(1, 2))
        tokens_RTC = torch.cat([query_RPC.to(cells_RTC.dtype), cells_RTC], dim=1)
        _, weights_RPT = self.attention(query_RPC, tokens_RTC, tokens_RTC)
        return weights_RPT[..., query_RPC.shape[1] :].unflatten(-1, region_RCHW.shape[-2:])


@INTERACTION_REGISTRY.register(name="dynamic_channel")
class DynamicChannelEmbedding(RegionInteraction):
    """The dynamic MLP over channels: each query generates the weights that mix the channels of every cell."""

    reads_queries = True

    def __init__(self, sizes: InteractionSizes) -> None:
        super().__init__()
        self.interaction = DynamicInteraction(sizes.dim, sizes.dim_dynamic, sizes.num_tokens, sizes.query_dim)

    def forward(self, region_RCHW: Tensor, query_RPC: Tensor) -> Tensor:
        region_R1TC = region_RCHW.flatten(2).transpose(1, 2)[:, None]
        return self.interaction(query_RPC, region_R1TC)


@INTERACTION_REGISTRY.register(name="dynamic_spatial")
class DynamicSpatialEmbedding(RegionInteraction):
    """The dynamic MLP over space: each query generates the weights that mix the cells of every channel.

    The paper does not define the inner width. Here a query generates about as many weights as for the dynamic MLP over
    channels, so that the two differ only in the dimension that they mix.
    """

    reads_queries = True

    def __init__(self, sizes: InteractionSizes) -> None:
        super().__init__()
        dim_inner = math.ceil(sizes.dim * sizes.dim_dynamic / sizes.num_tokens)
        self.interaction = DynamicInteraction(sizes.num_tokens, dim_inner, sizes.dim, sizes.query_dim)

    def forward(self, region_RCHW: Tensor, query_RPC: Tensor) -> Tensor:
        region_R1CT = region_RCHW.flatten(2)[:, None]
        return self.interaction(query_RPC, region_R1CT)
