"""Keys of the backbones and of the feature pyramid on them."""

from __future__ import annotations

from querypose.config import Key, add_keys, at_least, between, list_of_names, one_of, registered
from querypose.d2 import BACKBONE_REGISTRY
from querypose.modeling.backbone.fpn import PYRAMID_NORMS, PYRAMIDS

# fmt: off
add_keys((
    Key("MODEL.BACKBONE.NAME", "build_timm_fpn_backbone", "builder in BACKBONE_REGISTRY",
        registered(BACKBONE_REGISTRY)),
    Key("MODEL.BACKBONE.ARCH", "resnet50", "timm model with features_only; for build_swin_fpn_backbone: swin_t/b/l"),
    Key("MODEL.BACKBONE.PRETRAINED", False,
        "start from ImageNet weights (timm's or torchvision's; needs network or cache), unless MODEL.WEIGHTS is set"),
    Key("MODEL.BACKBONE.NORM", "FrozenBN", "BatchNorm of the backbone: statistics and affine frozen, or trained",
        one_of("FrozenBN", "BN")),
    Key("MODEL.BACKBONE.FREEZE_AT", 2, "freeze the first N stages as detectron2 counts: 1 stem, 2 also res2; 0 none",
        one_of(0, 1, 2, 3, 4, 5)),
    Key("MODEL.BACKBONE.DROP_PATH_RATE", 0.0, "stochastic depth of the backbone", between(0.0, 1.0), fixed=False),
    Key("MODEL.BACKBONE.OUTPUT_STRIDE", 32,
        "of the last features; less than 32 by dilation in place of stride (16 with ResNet-50: R50-DC5)",
        one_of(8, 16, 32)),
    Key("MODEL.BACKBONE.OUT_FEATURES", [],
        "features that the model gets: some of p2..p5, without a pyramid of c2..c5; [] is all of them",
        list_of_names()),
    Key("MODEL.FPN.TYPE", "fpn",
        "pyramid: FPN, those that the QueryPose authors put on HRNet-W32 and HRNet-W48, or none: c2..c5 as they are",
        registered(PYRAMIDS)),
    Key("MODEL.FPN.OUT_CHANNELS", 256, "channels of P2..P5, and width of QueryPose's instance queries", at_least(1)),
    Key("MODEL.FPN.NORM", "", "normalization of the FPN convolutions: none, group norm, or batch norm",
        registered(PYRAMID_NORMS)),
))
# fmt: on
