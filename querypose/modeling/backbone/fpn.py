"""Feature pyramids over a bottom-up network: FPN, the two that the QueryPose authors put on HRNet, and none.

A pyramid gives {"p2", "p3", "p4", "p5"} of one width, at strides 4, 8, 16 and 32, or some of these.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from querypose.d2 import Backbone, ShapeSpec
from querypose.modeling.backbone.bottom_up import LEVELS, STRIDES, BackboneError, BottomUp

GROUPS = 32
"""Groups of a GroupNorm in the pyramid."""


class FeaturePyramid(Backbone):
    """Base of the pyramids: a bottom-up network and the shapes of P2..P5.

    Args:
        bottom_up: gives c2..c5.
        out_channels: channels of every level.
        levels: which it gives, in increasing order; it has no layers for the others.
    """

    bottom_up: BottomUp

    def __init__(self, bottom_up: BottomUp, out_channels: int, levels: Sequence[int] = LEVELS) -> None:
        super().__init__()
        self.bottom_up = bottom_up
        self.out_channels = out_channels
        self.levels = tuple(levels)

    @property
    def size_divisibility(self) -> int:
        """What height and width of the input must be multiples of."""
        return self.bottom_up.size_divisibility

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Channels and stride of p2..p5, of those that it gives."""
        return {
            f"p{level}": ShapeSpec(channels=self.out_channels, stride=stride)
            for level, stride in zip(LEVELS, STRIDES, strict=True)
            if level in self.levels
        }


class NoPyramid(FeaturePyramid):
    """The features of a bottom-up network as they are.

    Args:
        bottom_up: gives the features; its levels are those of this backbone.
    """

    def __init__(self, bottom_up: BottomUp) -> None:
        super().__init__(bottom_up, bottom_up.channels[-1], bottom_up.levels)

    def forward(self, image_BCHW: Tensor) -> dict[str, Tensor]:
        """Features {"c2": (B, C, H/4, W/4), …} of normalized, padded images."""
        return self.bottom_up(image_BCHW)

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Channels and stride of c2..c5, of those that it gives."""
        return self.bottom_up.output_shape()


class FPN(FeaturePyramid):
    """The feature pyramid network of Lin et al. (2017), without P6.

    Modules are named as in detectron2 (`fpn_lateral2`, `fpn_output2`, …, `bottom_up`) and initialized likewise.

    Args:
        bottom_up: gives c2..c5.
        out_channels: channels of every level.
        norm: "" for none (then the convolutions have a bias), "GN" or "BN".
        levels: which it gives.
    """

    def __init__(self, bottom_up: BottomUp, out_channels: int, norm: str = "", levels: Sequence[int] = LEVELS) -> None:
        super().__init__(bottom_up, out_channels, levels)
        for level, channels in zip(LEVELS, bottom_up.channels, strict=True):
            if level >= self.levels[0]:
                self.add_module(f"fpn_lateral{level}", ConvNorm(channels, out_channels, 1, norm))
            if level in self.levels:
                self.add_module(f"fpn_output{level}", ConvNorm(out_channels, out_channels, 3, norm))

    def forward(self, image_BCHW: Tensor) -> dict[str, Tensor]:
        """Levels {"p2": (B, C, H/4, W/4), …, "p5": (B, C, H/32, W/32)} of normalized, padded images."""
        features = self.bottom_up(image_BCHW)
        levels: dict[str, Tensor] = {}
        merged_BCHW: Tensor | None = None
        for level in range(LEVELS[-1], self.levels[0] - 1, -1):
            lateral_BCHW = self.get_submodule(f"fpn_lateral{level}")(features[f"c{level}"])
            if merged_BCHW is not None:
                # Not by a factor of 2: the finer level is not twice as large if the input's size is not a multiple.
                merged_BCHW = F.interpolate(merged_BCHW, size=lateral_BCHW.shape[-2:], mode="nearest")
            merged_BCHW = lateral_BCHW if merged_BCHW is None else lateral_BCHW + merged_BCHW
            if level in self.levels:
                levels[f"p{level}"] = self.get_submodule(f"fpn_output{level}")(merged_BCHW)
        return dict(sorted(levels.items()))


class HRFPN(FeaturePyramid):
    """The pyramid that the QueryPose authors put on HRNet-W32: all branches merged at stride 4, then pooled down.

    c2..c5 are brought to stride 4 (bilinear), concatenated and reduced by a 1x1 convolution to x; level i = 0..3 is a
    3x3 convolution of x averaged over 2^i cells. Entries are named as theirs; their unused `fpn_conv.4` is left out.

    Args:
        bottom_up: gives c2..c5.
        out_channels: channels of every level.
        levels: which it gives.
    """

    def __init__(self, bottom_up: BottomUp, out_channels: int, levels: Sequence[int] = LEVELS) -> None:
        super().__init__(bottom_up, out_channels, levels)
        # A Sequential of one, and torch's default initialization, as the authors have it.
        self.reduction_conv = nn.Sequential(nn.Conv2d(sum(bottom_up.channels), out_channels, 1))
        self.fpn_conv = nn.ModuleDict(
            {str(level - LEVELS[0]): nn.Conv2d(out_channels, out_channels, 3, padding=1) for level in self.levels}
        )

    def forward(self, image_BCHW: Tensor) -> dict[str, Tensor]:
        """Levels {"p2": (B, C, H/4, W/4), …, "p5": (B, C, H/32, W/32)} of normalized, padded images."""
        merged_BCHW = self.reduction_conv(concatenate_at_finest(self.bottom_up(image_BCHW)))
        levels = {}
        for level in self.levels:
            index = level - LEVELS[0]
            pooled_BCHW = F.avg_pool2d(merged_BCHW, 2**index) if index else merged_BCHW
            levels[f"p{level}"] = self.fpn_conv[str(index)](pooled_BCHW)
        return levels


class HRFPNv1(FeaturePyramid):
    """The pyramid that the QueryPose authors put on HRNet-W48: as `HRFPN`, with each branch added at its own level.

    p2 is a 3x3 convolution of the merged x; for i = 1..3, x is halved by averaging, the 1x1-convolved branch of that
    stride is added to it, and a 3x3 convolution gives the level. Only the reduction has a bias. Entries are named as
    theirs; their unused `fpn_conv.4` and `lateral_conv.0` are left out (so the laterals count from 1, as theirs do).

    Args:
        bottom_up: gives c2..c5.
        out_channels: channels of every level.
        levels: which it gives.
    """

    def __init__(self, bottom_up: BottomUp, out_channels: int, levels: Sequence[int] = LEVELS) -> None:
        super().__init__(bottom_up, out_channels, levels)
        channels = bottom_up.channels
        self.reduction_conv = nn.Sequential(nn.Conv2d(sum(channels), out_channels, 1))
        self.lateral_conv = nn.ModuleDict(
            {
                str(index): ConvNorm(channels[index], out_channels, 1, bias=False)
                for index in range(1, self.levels[-1] - LEVELS[0] + 1)
            }
        )
        self.fpn_conv = nn.ModuleDict(
            {str(level - LEVELS[0]): ConvNorm(out_channels, out_channels, 3, bias=False) for level in self.levels}
        )

    def forward(self, image_BCHW: Tensor) -> dict[str, Tensor]:
        """Levels {"p2": (B, C, H/4, W/4), …, "p5": (B, C, H/32, W/32)} of normalized, padded images."""
        features = self.bottom_up(image_BCHW)
        merged_BCHW = self.reduction_conv(concatenate_at_finest(features))
        levels = {}
        for level in range(LEVELS[0], self.levels[-1] + 1):
            index = str(level - LEVELS[0])
            if level > LEVELS[0]:
                merged_BCHW = F.avg_pool2d(merged_BCHW, 2) + self.lateral_conv[index](features[f"c{level}"])
            if level in self.levels:
                levels[f"p{level}"] = self.fpn_conv[index](merged_BCHW)
        return levels


def _group_norm(channels: int) -> nn.GroupNorm:
    if channels % GROUPS:
        raise BackboneError(
            f"MODEL.FPN.OUT_CHANNELS is {channels}; allowed with MODEL.FPN.NORM 'GN': multiples of {GROUPS}."
        )
    return nn.GroupNorm(GROUPS, channels)


PYRAMID_NORMS: Mapping[str, Callable[[int], nn.Module | None]] = {
    "": lambda channels: None,
    "GN": _group_norm,
    "BN": nn.BatchNorm2d,
}


class ConvNorm(nn.Conv2d):
    """A convolution that keeps the size, with an optional normalization as its child `norm`; no activation.

    Initialized like Caffe2's Xavier fill: uniform with variance 1 / fan_in, bias 0.

    Args:
        in_channels: channels in.
        out_channels: channels out.
        kernel_size: side of the kernel, odd.
        norm: "", "GN" or "BN".
        bias: None for a bias exactly where there is no normalization.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int, norm: str = "", bias: bool | None = None
    ) -> None:
        with_bias = not norm if bias is None else bias
        super().__init__(in_channels, out_channels, kernel_size, padding=kernel_size // 2, bias=with_bias)
        nn.init.kaiming_uniform_(self.weight, a=1)
        if self.bias is not None:
            nn.init.zeros_(self.bias)
        self.norm = PYRAMID_NORMS[norm](out_channels)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """(B, in, H, W) to (B, out, H, W)."""
        x_BCHW = super().forward(x_BCHW)
        return x_BCHW if self.norm is None else self.norm(x_BCHW)


def concatenate_at_finest(features: dict[str, Tensor]) -> Tensor:
    """c2..c5 side by side (B, sum of channels, H/4, W/4), the coarser ones brought to stride 4 bilinearly."""
    finest_BCHW, *coarser = features.values()
    size = finest_BCHW.shape[-2:]
    resized = [F.interpolate(x_BCHW, size=size, mode="bilinear", align_corners=False) for x_BCHW in coarser]
    return torch.cat([finest_BCHW, *resized], dim=1)


PYRAMIDS: Mapping[str, Callable[..., FeaturePyramid]] = {
    "fpn": FPN,
    "hrfpn": HRFPN,
    "hrfpn_v1": HRFPNv1,
    "none": NoPyramid,
}


def build_feature_pyramid(
    kind: str, bottom_up: BottomUp, out_channels: int, norm: str, levels: Sequence[int] = LEVELS
) -> FeaturePyramid:
    """The pyramid that MODEL.FPN.TYPE names, one of PYRAMIDS.

    Args:
        kind: its name.
        bottom_up: gives c2..c5; without a pyramid `levels` of them.
        out_channels: channels of every level of a pyramid.
        norm: of an FPN.
        levels: which the pyramid gives.

    Raises:
        BackboneError: there is no such kind or normalization, an HRNet pyramid is asked for a normalization, or any for
            strides other than 4 to 32.
    """
    if kind not in PYRAMIDS:
        raise BackboneError(f"MODEL.FPN.TYPE is {kind!r}; allowed: {', '.join(map(repr, PYRAMIDS))}.")
    if norm not in PYRAMID_NORMS:
        raise BackboneError(f"MODEL.FPN.NORM is {norm!r}; allowed: {', '.join(map(repr, PYRAMID_NORMS))}.")
    pyramid = PYRAMIDS[kind]
    if pyramid is NoPyramid:
        return NoPyramid(bottom_up)
    if bottom_up.strides != STRIDES:
        raise BackboneError(
            f"MODEL.FPN.TYPE is {kind!r} and MODEL.BACKBONE.OUTPUT_STRIDE is {bottom_up.strides[-1]}, but a pyramid "
            f"needs the strides {list(STRIDES)}: set MODEL.FPN.TYPE none or MODEL.BACKBONE.OUTPUT_STRIDE {STRIDES[-1]}."
        )
    if pyramid is FPN:
        return FPN(bottom_up, out_channels, norm, levels)
    if norm:
        raise BackboneError(f"MODEL.FPN.NORM is {norm!r}; allowed with MODEL.FPN.TYPE {kind!r}: ''.")
    return pyramid(bottom_up, out_channels, levels)


def chosen_levels(kind: str, out_features: Sequence[str]) -> tuple[int, ...]:
    """Numbers of the levels in MODEL.BACKBONE.OUT_FEATURES, in increasing order; all where it is empty.

    Raises:
        BackboneError: one is not among those of the pyramid MODEL.FPN.TYPE.
    """
    letter = "c" if kind == "none" else "p"
    known = {f"{letter}{level}": level for level in LEVELS}
    if unknown := [name for name in out_features if name not in known]:
        raise BackboneError(
            f"MODEL.BACKBONE.OUT_FEATURES has {unknown}; allowed with MODEL.FPN.TYPE {kind!r}: {', '.join(known)}."
        )
    return tuple(sorted({known[name] for name in out_features})) or LEVELS
