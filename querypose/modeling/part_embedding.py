"""Part embeddings from region features: SPEGM (Sec. 3.2)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from querypose.layers import RegionBatchNorm2d
from querypose.modeling.initialization import zero_bias


class SpatialPartEmbedding(nn.Module):
    """SPEGM: a learned spatial attention map for every part, over upsampled region features.

    Args:
        dim: channels C of the region features.
        part_dim: width of a part embedding.
        num_parts: P.
    """

    def __init__(self, dim: int, part_dim: int, num_parts: int) -> None:
        super().__init__()
        self.upsample = nn.ConvTranspose2d(dim, dim, kernel_size=4, stride=2, padding=1, bias=False)
        self.norm = RegionBatchNorm2d(dim)
        self.attention = nn.Conv2d(dim, num_parts, kernel_size=3, padding=1)
        self.project = nn.Linear(dim, part_dim)
        zero_bias(self.attention)
        zero_bias(self.project)

    def forward(self, region_RCHW: Tensor) -> Tensor:
        """Embeddings (R, P, part_dim) of the parts in R regions (R, C, H, W)."""
        region_RCHW = self.norm(self.upsample(region_RCHW)).relu_()
        attention_RPT = self.attention(region_RCHW).flatten(2).softmax(-1)
        embedding_RPC = torch.bmm(attention_RPT, region_RCHW.flatten(2).transpose(1, 2))
        return self.project(embedding_RPC)
