"""Dynamic interaction of a query with its region features (the dynamic MLP of Sparse R-CNN)."""

from __future__ import annotations

from torch import Tensor, nn

from querypose.layers.onednn_linear import OneDNNLinear


class DynamicInteraction(nn.Module):
    """Filters region features by two linear maps that the query itself generates, then folds them into a vector.

    Args:
        dim: width C of the region features.
        dim_dynamic: inner width of the generated pair of maps.
        num_tokens: T, the number of cells of the region.
        query_dim: width of the query and of the vector; `dim` by default.
    """

    def __init__(self, dim: int, dim_dynamic: int, num_tokens: int, query_dim: int | None = None) -> None:
        super().__init__()
        query_dim = query_dim or dim
        self.dim = dim
        self.dim_dynamic = dim_dynamic
        self.generator = OneDNNLinear(query_dim, 2 * dim * dim_dynamic)
        self.norm_inner = nn.LayerNorm(dim_dynamic)
        self.norm_outer = nn.LayerNorm(dim)
        self.out = OneDNNLinear(num_tokens * dim, query_dim)
        self.norm_out = nn.LayerNorm(query_dim)

    def forward(self, query_RC: Tensor, region_RTC: Tensor) -> Tensor:
        """The interaction feature of every query, of its shape.

        Args:
            query_RC: R queries; leading dimensions may follow R, if they broadcast with those of the regions.
            region_RTC: the T cells of each one's region.
        """
        maps = self.generator(query_RC)
        squeeze, expand = maps.split(self.dim * self.dim_dynamic, dim=-1)
        features_RTC = region_RTC @ squeeze.unflatten(-1, (self.dim, self.dim_dynamic))
        features_RTC = self.norm_inner(features_RTC).relu()
        features_RTC = features_RTC @ expand.unflatten(-1, (self.dim_dynamic, self.dim))
        features_RTC = self.norm_outer(features_RTC).relu()
        return self.norm_out(self.out(features_RTC.flatten(-2))).relu()
