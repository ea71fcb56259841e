"""A top-down model: heat maps of the keypoints on the crop of one instance."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from querypose.config import Key, above, add_keys
from querypose.d2 import META_ARCH_REGISTRY, Backbone, CfgNode, ImageList, Instances, build_backbone, configurable
from querypose.modeling import Batch, Component, PoseModel, QueryPoses, num_instances

add_keys(
    [
        Key("MODEL.TOY_TOP_DOWN.IN_FEATURE", "p2", "feature map that the heat maps are made of"),
        Key("MODEL.TOY_TOP_DOWN.SIGMA", 1.0, "width of the Gaussian target, in cells", above(0)),
    ]
)


@META_ARCH_REGISTRY.register()
class ToyTopDown(PoseModel):
    """K heat maps; a keypoint is where its map is highest. Train it with `INPUT.PIPELINE: person_crops`.

    Args:
        backbone: gives the feature map.
        in_feature: its name.
        sigma: of the targets, in cells.
        options: of `PoseModel`.
    """

    @configurable
    def __init__(self, *, backbone: Backbone, in_feature: str, sigma: float, **options: Any) -> None:
        super().__init__(**options)
        self.backbone = backbone
        self.in_feature = in_feature
        self.sigma = sigma
        shape = backbone.output_shape()[in_feature]
        self.stride = shape.stride
        self.heatmap = nn.Conv2d(shape.channels, self.skeleton.num_keypoints, kernel_size=1)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """The arguments that YAML states; nothing else here sees `cfg`."""
        return {
            **super().from_config(cfg),
            "backbone": build_backbone(cfg),
            "in_feature": cfg.MODEL.TOY_TOP_DOWN.IN_FEATURE,
            "sigma": cfg.MODEL.TOY_TOP_DOWN.SIGMA,
        }

    @property
    def components(self) -> dict[str, Component]:
        """What MODEL.COMPILE and MODEL.RECOMPUTE may name."""
        return {"backbone": Component([self.backbone])}

    def loss_normalizers(self, batch: Batch) -> dict[str, Tensor]:
        """A crop is an instance."""
        return {"instances": num_instances(batch)}

    def losses(self, batch: Batch, normalizers: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Squared distance of the maps from Gaussians around the labeled keypoints."""
        _, heatmap_BKHW = self._heatmaps(batch)
        targets = self.person_targets(batch)
        # The pipeline leaves one instance a crop; augmentation may have moved it out of the picture.
        has_instance_B = torch.tensor(targets.counts, device=self.device) > 0
        if targets.boxes_BG4.shape[1] == 0:
            return {"loss_heatmap": 0.0 * heatmap_BKHW.sum()}
        center_BKD = targets.keypoints_BGKD[:, 0] / self.stride
        is_labeled_BK = targets.labelled_BGK[:, 0] & has_instance_B[:, None]
        height, width = heatmap_BKHW.shape[2:]
        x_W = torch.arange(width, device=self.device) + 0.5
        y_H1 = torch.arange(height, device=self.device)[:, None] + 0.5
        distance_BKHW = (x_W - center_BKD[..., None, :1]) ** 2 + (y_H1 - center_BKD[..., None, 1:]) ** 2
        target_BKHW = torch.exp(-distance_BKHW / (2 * self.sigma**2))
        error_BK = (heatmap_BKHW - target_BKHW).square().sum((2, 3))
        loss = (error_BK * is_labeled_BK).sum() / self.skeleton.num_keypoints
        return {"loss_heatmap": loss / normalizers["instances"].clamp(min=1)}

    def predict(self, batch: Batch) -> list[Instances]:
        """One pose a crop: the cell where each map is highest; its score is the mean of these."""
        images, heatmap_BKHW = self._heatmaps(batch)
        score_BK, cell_BK = heatmap_BKHW.flatten(2).max(-1)
        width = heatmap_BKHW.shape[3]
        keypoints_BKD = (torch.stack([cell_BK % width, cell_BK // width], dim=-1) + 0.5) * self.stride
        score_BK = score_BK.clamp(1e-6, 1)
        keypoints_BK3 = torch.cat([keypoints_BKD, score_BK[..., None]], dim=-1)
        return QueryPoses(score_BK.mean(1, keepdim=True), keypoints_BK3[:, None]).to_instances(
            batch, images.image_sizes, num_poses=1
        )

    def _heatmaps(self, batch: Batch) -> tuple[ImageList, Tensor]:
        images = self.normalized_images(batch, self.backbone.size_divisibility)
        return images, self.heatmap(self.backbone(images.tensor)[self.in_feature]).float()
