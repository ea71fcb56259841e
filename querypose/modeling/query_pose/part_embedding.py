"""How a keypoint stage's queries read the region features: SPEGM (Sec. 3.2) and what Table 1 sets beside it.

An interaction turns the features of R regions, and where `reads_queries` says so the P queries of each, into an
embedding a query; what becomes of query and embedding is the keypoint stage's affair. One more is a class, its line in
INTERACTIONS, and its name in the config's key.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from querypose.layers import DynamicInteraction, RegionBatchNorm2d
from querypose.modeling.query_pose.initialization import zero_bias


class SpatialPartEmbedding(nn.Module):
    """SPEGM: a learned spatial attention map for every part, over upsampled region features.

    With one part it is the global spatial attention of Table 1.

    Args:
        dim: channels C of the region features.
        part_dim: width of a part embedding.
        num_parts: P.
    """

    reads_queries = False

    def __init__(self, dim: int, part_dim: int, num_parts: int) -> None:
        super().__init__()
        self.upsample = nn.ConvTranspose2d(dim, dim, kernel_size=4, stride=2, padding=1, bias=False)
        self.norm = RegionBatchNorm2d(dim)
        self.attention = nn.Conv2d(dim, num_parts, kernel_size=3, padding=1)
        self.project = nn.Linear(dim, part_dim)
        zero_bias(self.attention)
        zero_bias(self.project)

    def forward(self, region_RCHW: Tensor, query_RPC: Tensor | None = None) -> Tensor:
        """Embeddings (R, P, part_dim) of the parts in R regions (R, C, H, W)."""
        region_RCHW = self.norm(self.upsample(region_RCHW)).relu_()
        attention_RPT = self.attention(region_RCHW).flatten(2).softmax(-1)
        embedding_RPC = torch.bmm(attention_RPT, region_RCHW.flatten(2).transpose(1, 2))
        return self.project(embedding_RPC)


class AveragePoolingEmbedding(nn.Module):
    """A linear map, for every query, of the mean over the region: the baseline of Table 2(b).

    The paper regresses "directly" from the mean; the linear map gives it the width of the queries, and its bias keeps a
    region of zeros from becoming a vector of length zero, by which the regressor would divide.

    Args:
        dim: channels C of the region features.
        query_dim: width of an embedding.
        num_queries: P.
    """

    reads_queries = False

    def __init__(self, dim: int, query_dim: int, num_queries: int) -> None:
        super().__init__()
        self.query_dim = query_dim
        self.project = nn.Linear(dim, num_queries * query_dim)

    def forward(self, region_RCHW: Tensor, query_RPC: Tensor | None = None) -> Tensor:
        """Embeddings (R, P, query_dim) from R regions (R, C, H, W)."""
        return self.project(region_RCHW.mean((2, 3))).unflatten(-1, (-1, self.query_dim))


class AttentionEmbedding(nn.Module):
    """Multi-head self-attention over the queries and the cells of their region together: the queries' share of it.

    The paper leaves open how cells and queries of different width meet: the cells are mapped to the width of the
    queries. It leaves open, too, whether cells carry their position: none is added, as SPEGM has none.

    Args:
        dim: channels C of the region features.
        query_dim: width of query and embedding; a multiple of `num_heads`.
        num_heads: attention heads.
    """

    reads_queries = True

    def __init__(self, dim: int, query_dim: int, num_heads: int) -> None:
        super().__init__()
        self.project = nn.Linear(dim, query_dim)
        self.attention = nn.MultiheadAttention(query_dim, num_heads, batch_first=True)

    def forward(self, region_RCHW: Tensor, query_RPC: Tensor) -> Tensor:
        """Embeddings (R, P, query_dim) of queries of that shape, from R regions (R, C, H, W)."""
        cells_RTC = self.project(region_RCHW.flatten(2).transpose(1, 2))
        tokens_RTC = torch.cat([query_RPC.to(cells_RTC.dtype), cells_RTC], dim=1)
        embedding_RPC, _ = self.attention(query_RPC, tokens_RTC, tokens_RTC, need_weights=False)
        return embedding_RPC


class DynamicChannelEmbedding(nn.Module):
    """The dynamic MLP over channels: each query generates the weights that mix the channels of every cell.

    Args:
        dim: channels C of the region features.
        query_dim: width of query and embedding.
        num_tokens: T, cells of a region.
        dim_dynamic: inner width of the generated MLP.
    """

    reads_queries = True

    def __init__(self, dim: int, query_dim: int, num_tokens: int, dim_dynamic: int) -> None:
        super().__init__()
        self.interaction = DynamicInteraction(dim, dim_dynamic, num_tokens, query_dim)

    def forward(self, region_RCHW: Tensor, query_RPC: Tensor) -> Tensor:
        """Embeddings (R, P, query_dim) of queries of that shape, from R regions (R, C, H, W)."""
        region_R1TC = region_RCHW.flatten(2).transpose(1, 2)[:, None]
        return self.interaction(query_RPC, region_R1TC)


class DynamicSpatialEmbedding(nn.Module):
    """The dynamic MLP over space: each query generates the weights that mix the cells of every channel.

    The paper leaves the inner width open: as many as let a query generate about as many weights as it does for the
    dynamic MLP over channels, so that the two differ in nothing but the dimension that they mix.

    Args:
        dim: channels C of the region features.
        query_dim: width of query and embedding.
        num_tokens: T, cells of a region.
        dim_dynamic: inner width of the dynamic MLP over channels that this one stands beside.
    """

    reads_queries = True

    def __init__(self, dim: int, query_dim: int, num_tokens: int, dim_dynamic: int) -> None:
        super().__init__()
        self.interaction = DynamicInteraction(num_tokens, math.ceil(dim * dim_dynamic / num_tokens), dim, query_dim)

    def forward(self, region_RCHW: Tensor, query_RPC: Tensor) -> Tensor:
        """Embeddings (R, P, query_dim) of queries of that shape, from R regions (R, C, H, W)."""
        region_R1CT = region_RCHW.flatten(2)[:, None]
        return self.interaction(query_RPC, region_R1CT)


@dataclass(frozen=True)
class InteractionSizes:
    """All that an interaction may want to know to be built.

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


INTERACTIONS: Mapping[str, Callable[[InteractionSizes], nn.Module]] = {
    "spatial_attention": lambda sizes: SpatialPartEmbedding(sizes.dim, sizes.query_dim, sizes.num_queries),
    "self_attention": lambda sizes: AttentionEmbedding(sizes.dim, sizes.query_dim, sizes.num_heads),
    "dynamic_channel": lambda sizes: DynamicChannelEmbedding(
        sizes.dim, sizes.query_dim, sizes.num_tokens, sizes.dim_dynamic
    ),
    "dynamic_spatial": lambda sizes: DynamicSpatialEmbedding(
        sizes.dim, sizes.query_dim, sizes.num_tokens, sizes.dim_dynamic
    ),
    "average_pooling": lambda sizes: AveragePoolingEmbedding(sizes.dim, sizes.query_dim, sizes.num_queries),
}

RegionInteraction = Callable[..., nn.Module]


def region_interaction(name: str, *, dim: int, num_tokens: int, num_heads: int, dim_dynamic: int) -> RegionInteraction:
    """A builder of the interaction `name` that is left with the keywords `num_queries` and `query_dim`."""
    return lambda num_queries, query_dim: INTERACTIONS[name](
        InteractionSizes(dim, num_tokens, num_queries, query_dim, num_heads, dim_dynamic)
    )
