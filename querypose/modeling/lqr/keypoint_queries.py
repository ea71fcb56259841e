"""Keypoint query encoding (KQE): from a cell by way of keypoint queries to keypoints (eq. 4)."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from querypose.layers import at_least_float32, full_precision
from querypose.modeling.lqr.sampling import read, reading_grid

Aggregation = Literal["sum", "weighted"]
AGGREGATIONS: tuple[Aggregation, ...] = ("sum", "weighted")
_INIT_STD = 0.001


class KeypointQueries(NamedTuple):
    """Where the K queries of every cell lie, and the keypoints that they find; displacements from the cell.

    Attributes:
        keypoint_BKDHW: D_c->k.
        query_BKDHW: D_c->q; None without queries.
        point_BKNDHW: from the cell to the N semantic points of each query (q'); None without such.
    """

    keypoint_BKDHW: Tensor
    query_BKDHW: Tensor | None = None
    point_BKNDHW: Tensor | None = None


class KeypointQueryEncoding(nn.Module):
    """A branch a keypoint, all of them as grouped convolutions.

    Deviates: what the paper leaves open (widths, kernels, norms, initialization) is fitted to its counts of parameters
    and operations; see docs/deviations.md.

    Args:
        in_channels: of the general feature R_g.
        num_keypoints: K.
        dim: channels C of a keypoint's feature R_k.
        num_points: N, semantic points of a query; with 0 the query's own feature is read.
        aggregation: of the features at these points, their sum or one in which every point has a matrix of weights.
        has_queries: False regresses a keypoint from the cell itself (Table 2).
    """

    def __init__(
        self,
        *,
        in_channels: int,
        num_keypoints: int,
        dim: int = 24,
        num_points: int = 9,
        aggregation: Aggregation = "sum",
        has_queries: bool = True,
    ) -> None:
        super().__init__()
        self.num_keypoints = num_keypoints
        self.num_points = num_points
        self.has_queries = has_queries

        def branches(in_dim: int, out_dim: int, kernel_size: int, bias: bool = True) -> nn.Conv2d:
            return nn.Conv2d(
                in_dim * num_keypoints, out_dim * num_keypoints, kernel_size, padding=kernel_size // 2,
                groups=num_keypoints, bias=bias,
            )  # fmt: skip

        # All keypoints read R_g; behind it each goes its own way.
        self.keypoint_feature = nn.Sequential(
            nn.Conv2d(in_channels, dim * num_keypoints, 1, bias=False), nn.BatchNorm2d(dim * num_keypoints), nn.ReLU()
        )
        self.to_query = branches(dim, 2, 3)
        self.to_points = branches(dim, 2 * num_points, 1) if has_queries and num_points else None
        self.to_keypoint = branches(dim, 2, 3) if has_queries else None
        self.point_weights = nn.ModuleList(
            branches(dim, dim, 1, bias=False)
            for _ in range(max(num_points, 1) if has_queries and aggregation == "weighted" else 0)
        )
        initialize_convolutions(self)
        if has_queries:  # every query begins at its cell
            nn.init.zeros_(self.to_query.weight)
        if self.to_points is not None:
            # Points that begin in one place get one gradient and never part.
            assert self.to_points.bias is not None
            self.to_points.bias.data.copy_(point_grid(num_points).flatten().repeat(num_keypoints))

    def forward(self, general_BCHW: Tensor) -> KeypointQueries:
        """Displacements in cells, in float32 at least.

        Args:
            general_BCHW: R_g.
        """
        feature_BCHW = self.keypoint_feature(general_BCHW)
        with full_precision(feature_BCHW):
            feature_BCHW = at_least_float32(feature_BCHW)
            query_BKDHW = self.to_query(feature_BCHW).unflatten(1, (self.num_keypoints, 2))
            if self.to_keypoint is None:
                return KeypointQueries(query_BKDHW)
            feature_RCHW = feature_BCHW.unflatten(1, (self.num_keypoints, -1)).flatten(0, 1)

            def branches_read(displacement_BKDHW: Tensor) -> Tensor:
                read_RCHW = read(feature_RCHW, reading_grid(displacement_BKDHW.flatten(0, 1)))
                return read_RCHW.unflatten(0, (-1, self.num_keypoints)).flatten(1, 2)

            point_BKNDHW = None
            if self.to_points is None:
                aggregated_BCHW = self._weighted(branches_read(query_BKDHW), 0)
            else:
                offset_BCHW = self.to_points(branches_read(query_BKDHW))
                offset_BKNDHW = offset_BCHW.unflatten(1, (self.num_keypoints, self.num_points, 2))
                point_BKNDHW = query_BKDHW[:, :, None] + offset_BKNDHW
                # Point after point: all reads at once would take N times the memory.
                aggregated_BCHW = torch.zeros_like(feature_BCHW)
                for index, point_BKDHW in enumerate(point_BKNDHW.unbind(2)):
                    aggregated_BCHW = aggregated_BCHW + self._weighted(branches_read(point_BKDHW), index)
            offset_BKDHW = self.to_keypoint(aggregated_BCHW).unflatten(1, (self.num_keypoints, 2))
            return KeypointQueries(query_BKDHW + offset_BKDHW, query_BKDHW, point_BKNDHW)

    def _weighted(self, feature_BCHW: Tensor, index: int) -> Tensor:
        weighted: Tensor = self.point_weights[index](feature_BCHW) if len(self.point_weights) else feature_BCHW
        return weighted


def point_grid(num_points: int) -> Tensor:
    """Positions of so many points on a grid about 0, (N, D), a cell apart: 1x3, 2x3, 3x3, 3x4, 3x5 for 3, 6, …, 15."""
    num_rows = max(1, min(3, num_points // 3))
    index_N = torch.arange(num_points)
    num_columns = -(-num_points // num_rows)
    position_ND = torch.stack([index_N % num_columns, index_N // num_columns], dim=-1).float()
    return position_ND - position_ND.mean(0)


def initialize_convolutions(module: nn.Module) -> None:
    """Small normal weights and no bias, as DEKR has them."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.normal_(layer.weight, std=_INIT_STD)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
