"""A keypoint interaction for QueryPose with a hyper-parameter of its own."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from querypose.config import Key, above, add_keys
from querypose.d2 import CfgNode
from querypose.modeling.query_pose import INTERACTION_REGISTRY

KEY = "MODEL.QUERYPOSE.KEYPOINT.GAUSSIAN_WINDOW.SIGMA"

add_keys([Key(KEY, 0.2, "width of the window that a part looks through, as a share of the region", above(0))])


@INTERACTION_REGISTRY.register(name="gaussian_window")
class GaussianWindow(nn.Module):
    """Every part sees its region through a Gaussian window whose center it predicts.

    Args:
        dim: channels C of the region features.
        query_dim: width of a part query.
        num_queries: P, parts of an instance.
        sigma: width of the window, as a share of the region.
    """

    reads_queries = False

    def __init__(self, *, dim: int, query_dim: int, num_queries: int, sigma: float, **_: Any) -> None:
        super().__init__()
        self.sigma = sigma
        self.center = nn.Linear(dim, 2 * num_queries)
        self.project = nn.Linear(dim, query_dim)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """The argument that YAML states."""
        return {"sigma": cfg.MODEL.QUERYPOSE.KEYPOINT.GAUSSIAN_WINDOW.SIGMA}

    def forward(self, region_RCHW: Tensor, query_RPC: Tensor | None = None) -> Tensor:
        """Embeddings (R, P, query_dim) of the parts in R regions."""
        height, width = region_RCHW.shape[-2:]
        center_RPD = self.center(region_RCHW.mean((2, 3))).sigmoid().unflatten(-1, (-1, 2))
        x_W = (torch.arange(width, device=region_RCHW.device) + 0.5) / width
        y_H = (torch.arange(height, device=region_RCHW.device) + 0.5) / height
        distance_RPHW = (x_W - center_RPD[..., None, :1]) ** 2 + (y_H[:, None] - center_RPD[..., 1:, None]) ** 2
        window_RPT = (-distance_RPHW / (2 * self.sigma**2)).flatten(2).softmax(-1).to(region_RCHW.dtype)
        return self.project(window_RPT @ region_RCHW.flatten(2).transpose(1, 2))
