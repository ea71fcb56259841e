"""Any timm model with `features_only` as the network below a feature pyramid."""

from __future__ import annotations

import difflib
import math
from collections.abc import Sequence
from typing import Any, cast

import timm
import torch
import torch.nn.functional as F
from timm.models import FeatureInfo
from torch import Tensor, nn

from querypose.d2 import BACKBONE_REGISTRY, CfgNode, ShapeSpec
from querypose.modeling.backbone.bottom_up import LEVELS, STRIDES, BackboneError, BottomUp
from querypose.modeling.backbone.fpn import FeaturePyramid, build_feature_pyramid, chosen_levels
from querypose.modeling.backbone.frozen_batch_norm import freeze_batch_norms, reset_batch_norms
from querypose.modeling.backbone.pretrained import (
    check_normalization,
    explained_download,
    timm_pretrained_arguments,
    wants_pretrained,
)

FLEXIBLE_SIZE: tuple[dict[str, Any], ...] = ({"dynamic_img_size": True}, {"strict_img_size": False}, {})
"""Arguments with which a family of timm's models takes images of any size; most families need none."""


class TimmBackbone(BottomUp):
    """Features at strides 4, 8, 16 and 32 of a timm model, without the layers after the last of them.

    HRNet gives the channels of its branches, not those of its classification head. A network with one resolution
    (ViT) gives the outputs of four blocks at equal distances, resized to the four strides bilinearly.

    Args:
        arch: name of the timm model, with or without the tag of its weights ("resnet50", "resnet50.tv_in1k").
        pretrained: load its ImageNet weights, from the cache or over the network.
        frozen_batch_norm: every BatchNorm is a `FrozenBatchNorm2d`.
        freeze_at: freeze so many stages, see `BottomUp.freeze`.
        drop_path_rate: stochastic depth; 0 leaves the model without.
        output_stride: of the last features; below 32, convolutions have dilation instead of stride.
        levels: which features it returns; it has no layers after the last of them.

    Raises:
        BackboneError: there is no such model, it has no features at these strides, or its weights cannot be had.
    """

    model: nn.Module

    def __init__(
        self,
        arch: str,
        *,
        pretrained: bool = False,
        frozen_batch_norm: bool = False,
        freeze_at: int = 0,
        drop_path_rate: float = 0.0,
        output_stride: int = STRIDES[-1],
        levels: Sequence[int] = LEVELS,
    ) -> None:
        _check_arch(arch)
        kwargs: dict[str, Any] = {"drop_path_rate": drop_path_rate} if drop_path_rate else {}
        if arch.startswith("hrnet"):
            _check_levels_of_hrnet(arch, levels)
            kwargs["feature_location"] = ""
        with torch.device("meta"):
            info = cast(FeatureInfo, _create(arch, kwargs).feature_info)
        indices, resize = _choose_features(arch, [entry["reduction"] for entry in info.info])
        strides = [min(stride, output_stride) for stride in STRIDES]
        reductions = [reduction for reduction in info.reduction(indices) if resize or reduction <= output_stride]
        super().__init__(
            [info.channels(index) for index in indices], math.lcm(strides[-1], *reductions), strides, levels
        )
        self.resize = resize
        if output_stride != STRIDES[-1]:
            kwargs["output_stride"] = output_stride
        weights = timm_pretrained_arguments(arch) if pretrained else {}
        with explained_download(arch, "the file to its cache"):
            out_indices = [indices[level - LEVELS[0]] for level in self.levels]
            self.model = _create(arch, {**kwargs, **weights, "out_indices": out_indices})
        self.channels_last = str(getattr(self.model, "output_fmt", "NCHW")).endswith("NHWC")
        self._check_any_size(arch)
        if frozen_batch_norm:
            if not pretrained:
                reset_batch_norms(self.model)
            freeze_batch_norms(self.model)
        if freeze_at:
            built = info.module_name(indices[: self.levels[-1] - LEVELS[0] + 1])
            self.freeze(_stage_starts(self, arch, built), freeze_at)

    def forward(self, image_BCHW: Tensor) -> dict[str, Tensor]:
        """Features {"c2": (B, C, H/4, W/4), …, "c5": (B, C, H/32, W/32)} of normalized, padded images."""
        features = {}
        for (name, shape), x_BCHW in zip(self.output_shape().items(), self.model(image_BCHW), strict=True):
            if self.channels_last:
                x_BCHW = x_BCHW.permute(0, 3, 1, 2)
            if self.resize:
                assert shape.stride is not None
                size = [math.ceil(side / shape.stride) for side in image_BCHW.shape[-2:]]
                x_BCHW = F.interpolate(x_BCHW, size=size, mode="bilinear", align_corners=False)
            features[name] = x_BCHW.contiguous()
        return features

    @torch.no_grad()
    def _check_any_size(self, arch: str) -> None:
        """Runs a small image; refuses a network for one image size, or with other features than timm declares."""
        height, width = 2 * self.size_divisibility, 3 * self.size_divisibility
        image_BCHW = torch.zeros(1, 3, height, width, device=next(self.parameters()).device)
        self.eval()
        try:
            features = self(image_BCHW)
        except (RuntimeError, AssertionError, ValueError) as error:
            raise BackboneError(
                f"MODEL.BACKBONE.ARCH {arch!r} of timm does not take images of every size "
                f"({height}x{width}: {type(error).__name__} {error}); use a convolutional network, a ViT, or "
                "build_swin_fpn_backbone."
            ) from error
        self.train()
        for (name, shape), x_BCHW in zip(self.output_shape().items(), features.values(), strict=True):
            assert shape.stride is not None
            expected = (1, shape.channels, height // shape.stride, width // shape.stride)
            if x_BCHW.shape != expected:
                raise BackboneError(
                    f"MODEL.BACKBONE.ARCH {arch!r} of timm gives {name} of shape {tuple(x_BCHW.shape)} for a "
                    f"{height}x{width} image instead of {expected}. Choose another MODEL.BACKBONE.ARCH, such as "
                    "resnet50."
                )


@BACKBONE_REGISTRY.register()
def build_timm_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FeaturePyramid:
    """MODEL.BACKBONE.ARCH of timm with the pyramid of MODEL.FPN.TYPE, giving p2..p5.

    Raises:
        BackboneError: a value of MODEL.BACKBONE or MODEL.FPN that cannot be built.
    """
    backbone = cfg.MODEL.BACKBONE
    if input_shape.channels != 3:
        raise BackboneError(f"The input has {input_shape.channels} channels (MODEL.PIXEL_MEAN); backbones take 3.")
    pretrained = wants_pretrained(cfg)
    levels = chosen_levels(cfg.MODEL.FPN.TYPE, backbone.OUT_FEATURES)
    bottom_up = TimmBackbone(
        backbone.ARCH,
        pretrained=pretrained,
        frozen_batch_norm=backbone.NORM == "FrozenBN",
        freeze_at=backbone.FREEZE_AT,
        drop_path_rate=backbone.DROP_PATH_RATE,
        output_stride=backbone.OUTPUT_STRIDE,
        levels=levels if cfg.MODEL.FPN.TYPE == "none" else LEVELS,
    )
    weights = timm.get_pretrained_cfg(backbone.ARCH) if pretrained else None
    if weights is not None:
        check_normalization(cfg, weights.mean, weights.std)
    return build_feature_pyramid(cfg.MODEL.FPN.TYPE, bottom_up, cfg.MODEL.FPN.OUT_CHANNELS, cfg.MODEL.FPN.NORM, levels)


def _check_arch(arch: str) -> None:
    """Refuses a name that timm does not have, and a tag that the model does not have; the error lists similar ones."""
    name, _, tag = arch.partition(".")
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=5, cutoff=0.5)
        hint = f" The nearest are {', '.join(near)}." if near else ""
        raise BackboneError(
            f"MODEL.BACKBONE.ARCH is {arch!r}, but timm {timm.__version__} has no such model.{hint} "
            "timm.list_models() lists all. For Swin set MODEL.BACKBONE.NAME build_swin_fpn_backbone."
        )
    tags = [known.partition(".")[2] for known in timm.list_pretrained(f"{name}.*") if known.partition(".")[0] == name]
    if tag and tag not in tags:
        raise BackboneError(f"MODEL.BACKBONE.ARCH is {arch!r}; allowed tags of {name}: {tags}.")


def _create(arch: str, kwargs: dict[str, Any]) -> nn.Module:
    """The model with `features_only`, taking images of any size where its family can."""
    for index, flexible in enumerate(FLEXIBLE_SIZE):
        try:
            return timm.create_model(arch, features_only=True, **kwargs, **flexible)
        except TypeError as error:  # the family does not know the argument
            if index == len(FLEXIBLE_SIZE) - 1:
                raise BackboneError(
                    f"MODEL.BACKBONE.ARCH {arch!r} of timm does not take {sorted(kwargs)}: {error}. "
                    "Set MODEL.BACKBONE.DROP_PATH_RATE 0 if it has no stochastic depth, and "
                    "MODEL.BACKBONE.OUTPUT_STRIDE 32 if it cannot be dilated."
                ) from error
        except (RuntimeError, AssertionError, AttributeError) as error:
            raise BackboneError(
                f"MODEL.BACKBONE.ARCH {arch!r} of timm cannot be built with features_only ({error}). Choose another."
            ) from error
    raise AssertionError("unreachable: the last attempt returns or raises")


def _check_levels_of_hrnet(arch: str, levels: Sequence[int]) -> None:
    if tuple(levels) != LEVELS:
        raise BackboneError(
            f"MODEL.BACKBONE.ARCH {arch!r} fuses its branches with each other; with MODEL.FPN.TYPE none and some of "
            "MODEL.BACKBONE.OUT_FEATURES, some fusions would not be trained. Set MODEL.FPN.TYPE hrfpn."
        )


def _choose_features(arch: str, reductions: Sequence[int]) -> tuple[list[int], bool]:
    """Indices of the features for strides 4 to 32, and whether they must be resized to these strides."""
    if all(stride in reductions for stride in STRIDES):
        return [len(reductions) - 1 - list(reversed(reductions)).index(stride) for stride in STRIDES], False
    if len(set(reductions)) == 1 and len(reductions) >= len(STRIDES):
        return [len(reductions) * quarter // len(STRIDES) - 1 for quarter in range(1, len(STRIDES) + 1)], True
    raise BackboneError(
        f"MODEL.BACKBONE.ARCH is {arch!r}, with features at strides {sorted(set(reductions))}; the pyramid needs "
        f"{list(STRIDES)}, or one stride throughout. Models with these: resnet50, convnext_tiny, hrnet_w32."
    )


def _stage_starts(backbone: TimmBackbone, arch: str, feature_modules: Sequence[str]) -> list[str | None]:
    """The first module of each of the stages whose outputs are C2..C5, for `BottomUp.freeze`.

    The stem is everything before the container of the first feature's module (`blocks`), or, if that module has no
    container (`layer1`), before the module. A later stage begins after the feature before it.
    """
    names = [name for name, _ in backbone.named_modules()]
    if "model.transition3" in names:  # HRNet: its branches are parallel, so that features do not mark its stages
        return ["model.layer1", "model.transition1", "model.transition2", "model.transition3"]
    ends = [_resolve(names, arch, module) for module in feature_modules]
    parent = ends[0].rpartition(".")[0]
    siblings = [name for name in names if name.startswith(f"{parent}.") and name.count(".") == ends[0].count(".")]
    standing_alone = parent in ("model", "model.model", "model.body")
    starts: list[str | None] = [ends[0] if standing_alone else siblings[0]]
    for end in ends[: len(LEVELS) - 1]:
        behind = [name for name in names[names.index(end) + 1 :] if not name.startswith(f"{end}.")]
        starts.append(behind[0] if behind else None)
    return starts


def _resolve(names: Sequence[str], arch: str, module: str) -> str:
    """The name under `TimmBackbone` of a module as timm's feature_info names it in the full model."""
    head, _, tail = module.partition(".")
    for candidate in (f"model.{module}", f"model.{head}_{tail}", f"model.model.{module}", f"model.body.{module}"):
        if candidate in names:
            return candidate
    raise BackboneError(
        f"MODEL.BACKBONE.ARCH {arch!r} of timm does not tell where its stages end (it has no module {module!r}), so "
        "that no stage can be frozen; set MODEL.BACKBONE.FREEZE_AT 0."
    )
