"""Backbones: a network that gives features at strides 4 to 32, and a pyramid on it that gives P2..P5."""

from querypose.modeling.backbone import config as config
from querypose.modeling.backbone.bottom_up import BackboneError, BottomUp
from querypose.modeling.backbone.fpn import FPN, HRFPN, FeaturePyramid, HRFPNv1, build_feature_pyramid
from querypose.modeling.backbone.frozen_batch_norm import FrozenBatchNorm2d, freeze_batch_norms
from querypose.modeling.backbone.swin import SWIN_ARCHS, SwinArch, SwinBackbone, build_swin_fpn_backbone
from querypose.modeling.backbone.timm_backbone import TimmBackbone, build_timm_fpn_backbone

__all__ = [
    "FPN",
    "HRFPN",
    "SWIN_ARCHS",
    "BackboneError",
    "BottomUp",
    "FeaturePyramid",
    "FrozenBatchNorm2d",
    "HRFPNv1",
    "SwinArch",
    "SwinBackbone",
    "TimmBackbone",
    "build_feature_pyramid",
    "build_swin_fpn_backbone",
    "build_timm_fpn_backbone",
    "freeze_batch_norms",
]
