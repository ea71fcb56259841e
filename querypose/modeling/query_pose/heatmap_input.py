"""Heat maps that are more than a loss: an input of the keypoint decoder."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from querypose.layers import at_least_float32, pooling_layout
from querypose.modeling.keypoint_heatmaps import AuxiliaryHeatmap


class HeatmapInput(AuxiliaryHeatmap):
    """Heat maps that the keypoint decoder reads too, behind the features of its level."""

    LEVEL = "keypoints"
    LOGITS = "heatmap_logits"

    def add_level(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The features with the level LEVEL (B, C + K, H, W), `in_feature` and the heat maps' scores in [0, 1]."""
        feature_BCHW = features[self.in_feature]
        logits_BKHW = at_least_float32(self._logits(features))
        level = torch.cat([feature_BCHW, logits_BKHW.sigmoid()], dim=1)
        return {**features, self.LEVEL: pooling_layout(level), self.LOGITS: logits_BKHW}

    def _logits(self, features: Mapping[str, Tensor]) -> Tensor:
        return features[self.LOGITS] if self.LOGITS in features else super()._logits(features)
