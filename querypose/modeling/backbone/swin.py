"""Swin Transformer, torchvision's, as the network below a feature pyramid.

torchvision's equals the original. timm's shifts and pads in another order, so that its results differ if the size of
the feature map is not a multiple of the window.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torchvision import models
from torchvision.models.swin_transformer import SwinTransformer

from querypose.d2 import BACKBONE_REGISTRY, CfgNode, ShapeSpec
from querypose.modeling.backbone.bottom_up import LEVELS, STRIDES, BackboneError, BottomUp
from querypose.modeling.backbone.fpn import FeaturePyramid, build_feature_pyramid, chosen_levels
from querypose.modeling.backbone.pretrained import check_normalization, explained_download, wants_pretrained


class SwinArch(NamedTuple):
    """Size of a Swin Transformer: width of the first stage, blocks and heads of each, and ImageNet weights if any."""

    embed_dim: int
    depths: tuple[int, int, int, int]
    num_heads: tuple[int, int, int, int]
    weights: models.WeightsEnum | None = None
    window_size: int = 7


SWIN_ARCHS: dict[str, SwinArch] = {
    "swin_t": SwinArch(96, (2, 2, 6, 2), (3, 6, 12, 24), models.Swin_T_Weights.IMAGENET1K_V1),
    "swin_s": SwinArch(96, (2, 2, 18, 2), (3, 6, 12, 24), models.Swin_S_Weights.IMAGENET1K_V1),
    "swin_b": SwinArch(128, (2, 2, 18, 2), (4, 8, 16, 32), models.Swin_B_Weights.IMAGENET1K_V1),
    "swin_l": SwinArch(192, (2, 2, 18, 2), (6, 12, 24, 48)),
}
"""Sizes of Liu et al. (2021). torchvision has no weights of swin_l."""

STAGE_STARTS = ("features.1", "features.2", "features.4", "features.6")
"""Stages of `SwinTransformer.features`: patch embedding, blocks, then three times patch merging and blocks."""

STAGE_ENDS = (1, 3, 5, 7)
"""Indices in `SwinTransformer.features` of the blocks of the four stages."""


class SwinBackbone(BottomUp):
    """Features at strides 4, 8, 16 and 32 of a Swin Transformer, each through a LayerNorm of its own.

    Args:
        arch: its size.
        drop_path_rate: stochastic depth of the last block; it grows linearly from 0 at the first.
        freeze_at: freeze so many stages: 1 the patch embedding, 2 also the first blocks, …, see `BottomUp.freeze`. The
            LayerNorms of the outputs, which ImageNet weights do not have, are frozen only with everything else (5).
        levels: which features it returns; it has no blocks after the last of them.
    """

    features: nn.Sequential

    def __init__(
        self, arch: SwinArch, *, drop_path_rate: float = 0.0, freeze_at: int = 0, levels: Sequence[int] = LEVELS
    ) -> None:
        super().__init__([arch.embed_dim * 2**index for index in range(len(STRIDES))], levels=levels)
        network = SwinTransformer(
            patch_size=[STRIDES[0]] * 2,
            embed_dim=arch.embed_dim,
            depths=list(arch.depths),
            num_heads=list(arch.num_heads),
            window_size=[arch.window_size] * 2,
            stochastic_depth_prob=drop_path_rate,
            num_classes=1,
        )
        last_stage = self.levels[-1] - LEVELS[0]
        self.features = network.features[: STAGE_ENDS[last_stage] + 1]
        for level in self.levels:
            self.add_module(f"norm{level - LEVELS[0]}", nn.LayerNorm(self.channels[level - LEVELS[0]]))
        self.freeze([start if index <= last_stage else None for index, start in enumerate(STAGE_STARTS)], freeze_at)

    def load_imagenet(self, state_dict: dict[str, Tensor]) -> None:
        """Loads torchvision's classification weights, without their last norm and their head."""
        own = self.state_dict()
        features = {key: value for key, value in state_dict.items() if key.startswith("features.") and key in own}
        norms = {key: value for key, value in own.items() if not key.startswith("features.")}
        self.load_state_dict({**features, **norms})

    def forward(self, image_BCHW: Tensor) -> dict[str, Tensor]:
        """Features {"c2": (B, C, H/4, W/4), …, "c5": (B, 8C, H/32, W/32)} of normalized, padded images."""
        features = {}
        x_BHWC = image_BCHW
        for index, module in enumerate(self.features):
            x_BHWC = module(x_BHWC)
            stage = STAGE_ENDS.index(index) if index in STAGE_ENDS else None
            if stage is not None and stage + LEVELS[0] in self.levels:
                normalized_BHWC = self.get_submodule(f"norm{stage}")(x_BHWC)
                features[f"c{stage + LEVELS[0]}"] = normalized_BHWC.permute(0, 3, 1, 2).contiguous()
        return features


@BACKBONE_REGISTRY.register()
def build_swin_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FeaturePyramid:
    """Swin Transformer MODEL.BACKBONE.ARCH with the pyramid of MODEL.FPN.TYPE, giving p2..p5.

    Raises:
        BackboneError: a value of MODEL.BACKBONE or MODEL.FPN that cannot be built, or weights that cannot be had.
    """
    backbone = cfg.MODEL.BACKBONE
    if input_shape.channels != 3:
        raise BackboneError(f"The input has {input_shape.channels} channels (MODEL.PIXEL_MEAN); backbones take 3.")
    if backbone.ARCH not in SWIN_ARCHS:
        raise BackboneError(
            f"MODEL.BACKBONE.ARCH is {backbone.ARCH!r}; MODEL.BACKBONE.NAME build_swin_fpn_backbone allows "
            f"{', '.join(SWIN_ARCHS)}."
        )
    arch = SWIN_ARCHS[backbone.ARCH]
    pretrained = wants_pretrained(cfg)
    if pretrained and arch.weights is None:
        having = ", ".join(name for name, known in SWIN_ARCHS.items() if known.weights is not None)
        raise BackboneError(
            f"MODEL.BACKBONE.PRETRAINED is True, but torchvision has no ImageNet weights of MODEL.BACKBONE.ARCH "
            f"{backbone.ARCH!r}; it has those of {having}. Set MODEL.BACKBONE.PRETRAINED False, and MODEL.WEIGHTS to "
            "a checkpoint."
        )
    if STRIDES[-1] != backbone.OUTPUT_STRIDE:
        raise BackboneError(
            f"MODEL.BACKBONE.OUTPUT_STRIDE is {backbone.OUTPUT_STRIDE}; a Swin Transformer allows {STRIDES[-1]}."
        )
    levels = chosen_levels(cfg.MODEL.FPN.TYPE, backbone.OUT_FEATURES)
    bottom_up = SwinBackbone(
        arch,
        drop_path_rate=backbone.DROP_PATH_RATE,
        freeze_at=backbone.FREEZE_AT,
        levels=levels if cfg.MODEL.FPN.TYPE == "none" else LEVELS,
    )
    if pretrained and arch.weights is not None:
        with explained_download(backbone.ARCH, f"{arch.weights.url} to the cache ({torch.hub.get_dir()}/checkpoints)"):
            state_dict = arch.weights.get_state_dict(progress=False, check_hash=True, weights_only=True)
        bottom_up.load_imagenet(dict(state_dict))
        transform = arch.weights.transforms()
        check_normalization(cfg, tuple(transform.mean), tuple(transform.std))
    return build_feature_pyramid(cfg.MODEL.FPN.TYPE, bottom_up, cfg.MODEL.FPN.OUT_CHANNELS, cfg.MODEL.FPN.NORM, levels)
