"""The pyramids, on a bottom-up network that gives made-up features."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from querypose.modeling.backbone import FPN, HRFPN, BackboneError, BottomUp, HRFPNv1, build_feature_pyramid
from querypose.modeling.backbone.fpn import ConvNorm

CHANNELS = (2, 3, 4, 5)


class Features(BottomUp):
    """Gives c2..c5 filled with the numbers 1, 10, 100, 1000, or random, of an image's size."""

    def __init__(self, random: bool = False) -> None:
        super().__init__(CHANNELS)
        self.random = random

    def forward(self, image_BCHW: Tensor) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(0)
        features = {}
        for index, (name, shape) in enumerate(self.output_shape().items()):
            assert shape.stride is not None
            size = [math.ceil(side / shape.stride) for side in image_BCHW.shape[-2:]]
            x_BCHW = torch.full((len(image_BCHW), CHANNELS[index], *size), 10.0**index)
            features[name] = torch.randn(x_BCHW.shape, generator=generator) if self.random else x_BCHW
        return features


def sum_of_channels(conv: nn.Module) -> None:
    """Makes a convolution add up its input channels at its center, in every output channel."""
    assert isinstance(conv, nn.Conv2d)
    center = conv.kernel_size[0] // 2
    conv.weight.data.zero_()
    conv.weight.data[:, :, center, center] = 1.0
    if conv.bias is not None:
        conv.bias.data.zero_()


def convolutions(network: nn.Module) -> list[nn.Conv2d]:
    return [module for module in network.modules() if isinstance(module, nn.Conv2d)]


def values(levels: dict[str, Tensor]) -> dict[str, list[float]]:
    return {name: sorted(set(level.flatten().tolist())) for name, level in levels.items()}


def test_fpn_adds_from_the_top_down() -> None:
    fpn = FPN(Features(), out_channels=1)
    for conv in convolutions(fpn):
        sum_of_channels(conv)
    expected = {"p5": [5000.0], "p4": [5400.0], "p3": [5430.0], "p2": [5432.0]}
    assert values(fpn(torch.zeros(1, 3, 64, 96))) == expected


def test_fpn_upsamples_to_the_nearest_cell() -> None:
    fpn = FPN(Features(random=True), out_channels=1)
    for conv in convolutions(fpn):
        sum_of_channels(conv)
    image = torch.zeros(1, 3, 64, 96)
    levels, features = fpn(image), fpn.bottom_up(image)
    upsampled = levels["p5"].repeat_interleave(2, dim=-1).repeat_interleave(2, dim=-2)
    torch.testing.assert_close(levels["p4"], features["c4"].sum(dim=1, keepdim=True) + upsampled)


def test_hrfpn_merges_all_branches_and_pools() -> None:
    pyramid = HRFPN(Features(), out_channels=1)
    for conv in convolutions(pyramid):
        sum_of_channels(conv)
    levels = pyramid(torch.zeros(1, 3, 64, 96))
    assert values(levels) == {name: [5432.0] for name in ("p2", "p3", "p4", "p5")}


def test_hrfpn_averages_over_cells() -> None:
    pyramid = HRFPN(Features(random=True), out_channels=1)
    for conv in convolutions(pyramid):
        sum_of_channels(conv)
    levels = pyramid(torch.zeros(1, 3, 64, 64))
    for index in range(1, 4):
        blocks = levels["p2"].unfold(2, 2**index, 2**index).unfold(3, 2**index, 2**index)
        torch.testing.assert_close(levels[f"p{index + 2}"], blocks.mean(dim=(-1, -2)))


def test_hrfpn_v1_adds_each_branch_at_its_own_level() -> None:
    pyramid = HRFPNv1(Features(), out_channels=1)
    for conv in convolutions(pyramid):
        sum_of_channels(conv)
    expected = {"p2": [5432.0], "p3": [5462.0], "p4": [5862.0], "p5": [10862.0]}
    assert values(pyramid(torch.zeros(1, 3, 64, 96))) == expected


def test_hrfpn_v1_has_a_bias_at_the_reduction_alone() -> None:
    pyramid = HRFPNv1(Features(), out_channels=8)
    assert {name for name, _ in pyramid.named_parameters() if name.endswith("bias")} == {"reduction_conv.0.bias"}


@pytest.mark.parametrize("kind", ["fpn", "hrfpn", "hrfpn_v1"])
def test_shapes_and_a_gradient_for_every_parameter(kind: str) -> None:
    torch.manual_seed(0)
    pyramid = build_feature_pyramid(kind, Features(random=True), out_channels=8, norm="")
    levels = pyramid(torch.zeros(2, 3, 64, 96))
    assert list(levels) == ["p2", "p3", "p4", "p5"]
    for name, shape in pyramid.output_shape().items():
        assert shape.stride is not None
        assert levels[name].shape == (2, shape.channels, 64 // shape.stride, 96 // shape.stride)
        assert levels[name].is_contiguous()
    torch.stack([level.square().sum() for level in levels.values()]).sum().backward()
    for name, parameter in pyramid.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_fpn_fits_odd_feature_maps() -> None:
    levels = FPN(Features(random=True), out_channels=8)(torch.zeros(1, 3, 75, 101))
    assert [tuple(level.shape[-2:]) for level in levels.values()] == [(19, 26), (10, 13), (5, 7), (3, 4)]


@pytest.mark.parametrize(("norm", "kind"), [("GN", nn.GroupNorm), ("BN", nn.BatchNorm2d)])
def test_normalization_replaces_the_bias(norm: str, kind: type[nn.Module]) -> None:
    fpn = FPN(Features(), out_channels=32, norm=norm)
    for name in ("fpn_lateral2", "fpn_output5"):
        conv = fpn.get_submodule(name)
        assert isinstance(conv, ConvNorm)
        assert conv.bias is None
        assert isinstance(conv.norm, kind)
    level = fpn(torch.rand(2, 3, 64, 64))["p2"]
    assert level.mean().abs() < 1e-4  # normalized, with the affine at its start


def test_names_are_those_of_detectron2() -> None:
    expected = {f"fpn_{kind}{level}.{entry}" for kind in ("lateral", "output") for level in range(2, 6)
                for entry in ("weight", "bias")}  # fmt: skip
    assert set(FPN(Features(), out_channels=8).state_dict()) == expected


def test_initialization_is_xavier_uniform_over_the_fan_in_with_zero_bias() -> None:
    torch.manual_seed(0)
    conv = ConvNorm(64, 64, 3)
    bound = math.sqrt(3 / (64 * 9))
    assert conv.weight.abs().max() <= bound
    assert conv.weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.02)
    assert conv.bias is not None
    assert not conv.bias.any()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("fpn", 24, "GN"), "MODEL.FPN.OUT_CHANNELS is 24"),
        (("fpn", 32, "LN"), "MODEL.FPN.NORM is 'LN'"),
        (("hrfpn", 32, "GN"), "MODEL.FPN.NORM is 'GN'"),
        (("bifpn", 32, ""), "MODEL.FPN.TYPE is 'bifpn'; allowed: 'fpn', 'hrfpn', 'hrfpn_v1'"),
    ],
)
def test_impossible_pyramids_are_refused(arguments: tuple[str, int, str], message: str) -> None:
    kind, out_channels, norm = arguments
    with pytest.raises(BackboneError, match=message):
        build_feature_pyramid(kind, Features(), out_channels, norm)
