"""The registries of models and backbones, and what a backbone is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from fvcore.common.registry import Registry
from torch import Tensor, nn

from querypose.d2.builtin.config import CfgNode

META_ARCH_REGISTRY = Registry("META_ARCH")
META_ARCH_REGISTRY.__doc__ = "Meta-architectures, whole models: called with a config, they give an `nn.Module`."

BACKBONE_REGISTRY = Registry("BACKBONE")
BACKBONE_REGISTRY.__doc__ = "Builders of backbones: called with (cfg, input_shape: ShapeSpec), they give a `Backbone`."


@dataclass
class ShapeSpec:
    """What is known of the shape of a feature map, None where it is not known."""

    channels: int | None = None
    height: int | None = None
    width: int | None = None
    stride: int | None = None


class Backbone(nn.Module):
    """Base class of backbones: `forward` takes B x C x H x W and gives feature maps by name."""

    # A subclass sets these three, or overrides output_shape.
    _out_features: list[str]
    _out_feature_channels: dict[str, int]
    _out_feature_strides: dict[str, int]

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Feature maps by name. A subclass must define it."""
        raise NotImplementedError(f"{type(self).__name__} must define forward.")

    @property
    def size_divisibility(self) -> int:
        """Multiple that input height and width must have; 0: any size does."""
        return 0

    @property
    def padding_constraints(self) -> dict[str, int]:
        """Further demands on the input's size, as `ImageList.from_tensors` takes them."""
        return {}

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Channels and stride of every feature map."""
        return {
            name: ShapeSpec(channels=self._out_feature_channels[name], stride=self._out_feature_strides[name])
            for name in self._out_features
        }


def build_backbone(cfg: CfgNode, input_shape: ShapeSpec | None = None) -> Backbone:
    """Builds the backbone that MODEL.BACKBONE.NAME names.

    Args:
        cfg: the config; MODEL.PIXEL_MEAN gives the channels where `input_shape` is None.
        input_shape: of the image.

    Raises:
        KeyError: no builder of that name is registered.
        AssertionError: the builder does not give a `Backbone`.
    """
    if input_shape is None:
        input_shape = ShapeSpec(channels=len(cfg.MODEL.PIXEL_MEAN))
    backbone: Any = BACKBONE_REGISTRY.get(cfg.MODEL.BACKBONE.NAME)(cfg, input_shape)
    if not isinstance(backbone, Backbone):
        raise AssertionError(f"{cfg.MODEL.BACKBONE.NAME} gave a {type(backbone).__name__}, not a Backbone.")
    return backbone


def build_model(cfg: CfgNode) -> nn.Module:
    """Builds the model that MODEL.META_ARCHITECTURE names, on MODEL.DEVICE, without loading weights.

    Raises:
        KeyError: no meta-architecture of that name is registered.
    """
    model: nn.Module = META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE)(cfg)
    return model.to(torch.device(cfg.MODEL.DEVICE))
