"""A dense model: a cell of a map says whether it holds the center of an instance, and where the keypoints are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import sigmoid_focal_loss

from querypose.config import Key, add_keys, at_least
from querypose.d2 import META_ARCH_REGISTRY, Backbone, CfgNode, ImageList, Instances, build_backbone, configurable
from querypose.modeling import Batch, Component, PoseModel, QueryPoses, image_cells, num_instances

add_keys(
    [
        Key("MODEL.TOY_DENSE.IN_FEATURE", "p2", "feature map that the heads read"),
        Key("MODEL.TOY_DENSE.OFFSET_WEIGHT", 1.0, "weight of loss_offset", at_least(0)),
    ]
)


@META_ARCH_REGISTRY.register()
class ToyDense(PoseModel):
    """Two linear maps of every cell: a center logit, and K offsets in units of the stride.

    Args:
        backbone: gives the feature map.
        in_feature: its name.
        offset_weight: of `loss_offset`.
        detections_per_image: poses kept per image in inference.
        options: of `PoseModel`.
    """

    @configurable
    def __init__(
        self, *, backbone: Backbone, in_feature: str, offset_weight: float, detections_per_image: int, **options: Any
    ) -> None:
        super().__init__(**options)
        self.backbone = backbone
        self.in_feature = in_feature
        self.offset_weight = offset_weight
        self.detections_per_image = detections_per_image
        shape = backbone.output_shape()[in_feature]
        self.stride = shape.stride
        self.center = nn.Conv2d(shape.channels, 1, kernel_size=1)
        self.offset = nn.Conv2d(shape.channels, 2 * self.skeleton.num_keypoints, kernel_size=1)
        nn.init.constant_(self.center.bias, -4.0)  # few cells hold a center

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """The arguments that YAML states; nothing else here sees `cfg`."""
        return {
            **super().from_config(cfg),
            "backbone": build_backbone(cfg),
            "in_feature": cfg.MODEL.TOY_DENSE.IN_FEATURE,
            "offset_weight": cfg.MODEL.TOY_DENSE.OFFSET_WEIGHT,
            "detections_per_image": cfg.TEST.DETECTIONS_PER_IMAGE,
        }

    @property
    def components(self) -> dict[str, Component]:
        """What MODEL.COMPILE and MODEL.RECOMPUTE may name."""
        return {"backbone": Component([self.backbone], varying_dims=(2, 3))}

    def loss_normalizers(self, batch: Batch) -> dict[str, Tensor]:
        """Both losses are sums over instances."""
        return {"instances": num_instances(batch)}

    def losses(self, batch: Batch, normalizers: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Focal loss of the centers, L1 loss of the labeled keypoints at the cells that hold a center."""
        _, logit_BHW, offset_BHWKD = self._maps(batch)
        targets = self.person_targets(batch)
        count_B = torch.tensor(targets.counts, device=self.device)
        image_R, slot_R = (torch.arange(targets.boxes_BG4.shape[1], device=self.device) < count_B[:, None]).nonzero(
            as_tuple=True
        )
        boxes_R4 = targets.boxes_BG4[image_R, slot_R]
        size_D = torch.tensor(logit_BHW.shape[:0:-1], device=self.device)
        cell_RD = ((boxes_R4[:, :2] + boxes_R4[:, 2:]) / (2 * self.stride)).long().minimum(size_D - 1)
        row_R, column_R = cell_RD[:, 1], cell_RD[:, 0]

        is_center_BHW = torch.zeros_like(logit_BHW)
        is_center_BHW[image_R, row_R, column_R] = 1.0
        target_RKD = targets.keypoints_BGKD[image_R, slot_R] / self.stride - (cell_RD[:, None] + 0.5)
        error_RK = F.smooth_l1_loss(offset_BHWKD[image_R, row_R, column_R], target_RKD, reduction="none").sum(-1)
        loss_offset = (error_RK * targets.labelled_BGK[image_R, slot_R]).sum() / self.skeleton.num_keypoints
        # An own batch may hold nobody; the normalizers count all processes and micro-batches.
        num = normalizers["instances"].clamp(min=1)
        return {
            "loss_center": sigmoid_focal_loss(logit_BHW, is_center_BHW, reduction="sum") / num,
            "loss_offset": self.offset_weight * loss_offset / num,
        }

    def predict(self, batch: Batch) -> list[Instances]:
        """The cells whose center score is the highest among their neighbors, best first."""
        images, logit_BHW, offset_BHWKD = self._maps(batch)
        score_BHW = logit_BHW.sigmoid() * image_cells(images, logit_BHW.shape[1:])
        peak_BHW = score_BHW * (score_BHW == F.max_pool2d(score_BHW, kernel_size=3, stride=1, padding=1))
        scores_BQ, cell_BQ = peak_BHW.flatten(1).topk(min(self.detections_per_image, peak_BHW[0].numel()), dim=1)
        image_B1 = torch.arange(len(cell_BQ), device=self.device)[:, None]
        width = logit_BHW.shape[2]
        cell_BQ1D = torch.stack([cell_BQ % width, cell_BQ // width], dim=-1)[:, :, None] + 0.5
        keypoints_BQKD = (cell_BQ1D + offset_BHWKD.flatten(1, 2)[image_B1, cell_BQ]) * self.stride
        score_BQK1 = scores_BQ[..., None, None].expand(*keypoints_BQKD.shape[:3], 1)
        poses = QueryPoses(scores_BQ, torch.cat([keypoints_BQKD, score_BQK1], dim=-1))
        return poses.to_instances(batch, images.image_sizes, self.detections_per_image)

    def _maps(self, batch: Batch) -> tuple[ImageList, Tensor, Tensor]:
        images = self.normalized_images(batch, self.backbone.size_divisibility)
        feature_BCHW = self.backbone(images.tensor)[self.in_feature]
        offset_BHWKD = self.offset(feature_BCHW).permute(0, 2, 3, 1).unflatten(-1, (-1, 2))
        return images, self.center(feature_BCHW)[:, 0].float(), offset_BHWKD.float()
