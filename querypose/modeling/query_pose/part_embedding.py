"""Interactions, by which the queries of a keypoint stage read region features: SPEGM (Sec. 3.2) and Table 1's others.

An interaction is a class in INTERACTION_REGISTRY, under the name in MODEL.QUERYPOSE.KEYPOINT.INTERACTION.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from querypose.layers import DynamicInteraction, RegionBatchNorm2d, at_least_float32, full_precision
from querypose.modeling.query_pose.initialization import zero_bias
from querypose.registry import PartRegistry

HEATMAP_SHARPNESS = 2.0
"""Power of a heat map as attention at the start: the many cells of low score must not outweigh the peak."""
SMALLEST_SCORE = 0.01
"""Added to a heat map before its logarithm; about what the maps have where there is nothing."""

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
        num_keypoints: K, for an interaction that locates keypoints.
        num_maps: channels beside `dim` that the region brings along: 0, or a heat map for each of K keypoints.
    """

    dim: int
    num_tokens: int
    num_queries: int
    query_dim: int
    num_heads: int
    dim_dynamic: int
    num_keypoints: int = 0
    num_maps: int = 0


class RegionInteraction(nn.Module):
    """From the features of R regions and the P queries of each to an embedding for each query.

    The keypoint stage combines query and embedding.

    Attributes:
        reads_queries: whether the embeddings depend on the queries.
        locates: whether `forward` also says where the keypoints are, for the regressor to begin from: it then returns
            embeddings and positions (R, K, D) in the frame of the region, center at 0 and corners at ±0.5.
    """

    reads_queries: bool
    locates = False

    def forward(self, region_RCHW: Tensor, query_RPC: Tensor) -> Tensor | tuple[Tensor, Tensor]:
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


@INTERACTION_REGISTRY.register(name="located_attention")
class LocatedPartEmbedding(RegionInteraction):
    """SPEGM that keeps where it looked.

    A softmax over cells times features forgets the cells: what attention has found is lost, and position must come
    back through zero padding. Here every keypoint has an attention map beside those of the parts. The mean position
    under it (soft-argmax) is where the regressor begins, and the mean position under a part's map joins its embedding.
    The mean is finer than a cell, so that there is no upsampling. Where the region brings heat maps along, a keypoint's
    attention begins as its heat map.
    """

    reads_queries = False
    locates = True

    def __init__(self, sizes: InteractionSizes) -> None:
        super().__init__()
        self.dim, self.num_keypoints = sizes.dim, sizes.num_keypoints
        self.attention = nn.Conv2d(sizes.dim, sizes.num_keypoints + sizes.num_queries, kernel_size=3, padding=1)
        # Where in a region a keypoint usually is.
        self.prior = nn.Parameter(torch.zeros(sizes.num_keypoints + sizes.num_queries, sizes.num_tokens))
        self.sharpness = nn.Parameter(torch.full((sizes.num_maps, 1), HEATMAP_SHARPNESS)) if sizes.num_maps else None
        self.project = nn.Linear(sizes.dim + 2, sizes.query_dim)
        zero_bias(self.attention)
        zero_bias(self.project)

    def forward(self, region_RCHW: Tensor, query_RPC: Tensor) -> tuple[Tensor, Tensor]:
        of_keypoint_RKT, of_part_RPT = self._attention(region_RCHW)
        with full_precision(region_RCHW):
            center_TD = _cell_centers(region_RCHW.shape[2], region_RCHW.shape[3], of_part_RPT)
            position_RKD, position_RPD = of_keypoint_RKT @ center_TD, of_part_RPT @ center_TD
        region_RTC = region_RCHW[:, : self.dim].flatten(2).transpose(1, 2)
        embedding_RPC = torch.bmm(of_part_RPT.to(region_RTC.dtype), region_RTC)
        return self.project(torch.cat([embedding_RPC, position_RPD.to(embedding_RPC.dtype)], dim=-1)), position_RKD

    def attention_maps(self, region_RCHW: Tensor, query_RPC: Tensor) -> Tensor:
        return self._attention(region_RCHW)[1].unflatten(-1, region_RCHW.shape[-2:])

    def _attention(self, region_RCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Maps of the keypoints (R, K, T) and of the parts (R, P, T), each adding up to 1."""
        logits_RNT = at_least_float32(self.attention(region_RCHW[:, : self.dim])).flatten(2) + self.prior
        of_keypoint_RKT = logits_RNT[:, : self.num_keypoints]
        if self.sharpness is not None:
            heatmaps_RKT = at_least_float32(region_RCHW[:, self.dim :]).flatten(2)
            of_keypoint_RKT = of_keypoint_RKT + self.sharpness * (heatmaps_RKT + SMALLEST_SCORE).log()
        return of_keypoint_RKT.softmax(-1), logits_RNT[:, self.num_keypoints :].softmax(-1)


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


def _cell_centers(height: int, width: int, like: Tensor) -> Tensor:
    """Centers (T, D) of a region's cells in its own frame, center at 0 and corners at ±0.5."""
    y_H, x_W = ((torch.arange(size).to(like) + 0.5) / size - 0.5 for size in (height, width))
    return torch.stack(torch.meshgrid(x_W, y_H, indexing="xy"), dim=-1).flatten(0, 1)
