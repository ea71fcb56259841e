"""A keypoint interaction for QueryPose, with a hyper-parameter of its own."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from querypose.config import Key, above, add_keys
from querypose.d2 import CfgNode
from querypose.modeling.query_pose import INTERACTION_REGISTRY, InteractionSizes, RegionInteraction

add_keys(
    [
        Key(
            "MODEL.QUERYPOSE.KEYPOINT.GAUSSIAN_WINDOW.SIGMA",
            0.2,
            "width of the window through which a part sees its region, as a share of the region",
            above(0),
        )
    ]
)


@INTERACTION_REGISTRY.register(name="gaussian_window")
class GaussianWindow(RegionInteraction):
    """Every part sees its region through a Gaussian window, whose center is predicted from the mean of the region."""

    reads_queries = False

    def __init__(self, sizes: InteractionSizes, sigma: float) -> None:
        super().__init__()
        self.sigma = sigma
        self.center = nn.Linear(sizes.dim, 2 * sizes.num_queries)
        self.project = nn.Linear(sizes.dim, sizes.query_dim)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """The argument that YAML states."""
        return {"sigma": cfg.MODEL.QUERYPOSE.KEYPOINT.GAUSSIAN_WINDOW.SIGMA}

    def forward(self, region_RCHW: Tensor, query_RPC: Tensor) -> Tensor:
        height, width = region_RCHW.shape[-2:]
        center_RPD = self.center(region_RCHW.mean((2, 3))).sigmoid().unflatten(-1, (-1, 2))
        x_W = (torch.arange(width, device=region_RCHW.device) + 0.5) / width
        y_H1 = (torch.arange(height, device=region_RCHW.device)[:, None] + 0.5) / height
        squared_RPHW = (x_W - center_RPD[..., :1, None]) ** 2 + (y_H1 - center_RPD[..., 1:, None]) ** 2
        window_RPT = (-squared_RPHW / (2 * self.sigma**2)).flatten(2).softmax(-1)
        return self.project(window_RPT.to(region_RCHW.dtype) @ region_RCHW.flatten(2).transpose(1, 2))
