"""Backbone weights by their original names: the libraries' networks compute what the originals do."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from querypose.checkpoint import (
    convert_pose_hrnet,
    convert_querypose_official,
    convert_state_dict,
    convert_swin,
)
from querypose.checkpoint.backbones import BOTTOM_UP
from querypose.config import load_config
from querypose.d2 import CheckpointError, build_backbone
from tests.checkpoint.listings import config_file, read_listing
from tests.checkpoint.published_backbones import pose_hrnet, random_weights, relative_positions, resnet, swin

WINDOW, SWIN_T_HEADS = 7, (3, 6, 12, 24)


def original_weights(listing: str) -> dict[str, Tensor]:
    """Random weights of the listing's bottom-up network, by its own names."""
    shapes = {
        name.removeprefix(BOTTOM_UP): tuple(value.shape)
        for name, value in read_listing(listing).items()
        if name.startswith(BOTTOM_UP)
    }
    weights = random_weights(shapes)
    return {
        name: relative_positions(WINDOW) if name.endswith("relative_position_index") else value
        for name, value in weights.items()
    }


def build_bottom_up(listing: str) -> nn.Module:
    overrides = ["MODEL.DEVICE", "cpu", "MODEL.BACKBONE.PRETRAINED", "False"]
    backbone = build_backbone(load_config(config_file(listing), overrides))
    assert isinstance(backbone.bottom_up, nn.Module)
    return backbone.bottom_up


def converted_bottom_up(listing: str, weights: dict[str, Tensor]) -> nn.Module:
    bottom_up = build_bottom_up(listing)
    converted = convert_querypose_official({BOTTOM_UP + name: value for name, value in weights.items()}, parts=())
    bottom_up.load_state_dict({name.removeprefix(BOTTOM_UP): value for name, value in converted.items()}, strict=True)
    return bottom_up.eval()


def assert_equal_features(bottom_up: nn.Module, expected: list[Tensor], image_BCHW: Tensor) -> None:
    with torch.no_grad():
        found = list(bottom_up(image_BCHW).values())
    for feature, golden in zip(found, expected, strict=True):
        assert feature.shape == golden.shape
        assert (feature - golden).abs().max() < 1e-5 * golden.abs().max()


def test_resnet_is_detectron2s_with_the_stride_in_the_3x3() -> None:
    weights = original_weights("res50-light")
    image_BCHW = torch.randn(1, 3, 64, 96)
    assert_equal_features(converted_bottom_up("res50-light", weights), resnet(weights, image_BCHW), image_BCHW)


@pytest.mark.parametrize("listing", ["hrnet32-light", "hrnet48-full"])
def test_hrnet_is_pose_hrnet_with_all_branches_fused(listing: str) -> None:
    weights = original_weights(listing)
    image_BCHW = torch.randn(1, 3, 64, 96)
    bottom_up = converted_bottom_up(listing, weights)
    assert_equal_features(bottom_up, pose_hrnet(weights, image_BCHW), image_BCHW)
    norms = [module for module in bottom_up.modules() if isinstance(module, nn.BatchNorm2d)]
    assert {(norm.momentum, norm.eps) for norm in norms} == {(0.1, 1e-5)}


@pytest.mark.parametrize("size", [(256, 384), (288, 320)])
def test_swin_is_the_original_for_images_above_224_pixels(size: tuple[int, int]) -> None:
    weights = original_weights("swinT-full")
    image_BCHW = torch.randn(1, 3, *size)
    expected = swin(weights, image_BCHW, WINDOW, SWIN_T_HEADS)
    assert_equal_features(converted_bottom_up("swinT-full", weights), expected, image_BCHW)


def test_swin_does_not_shift_windows_of_a_map_that_one_window_covers() -> None:
    """The deviation in docs/deviations.md: only the last stage differs, where a side has at most 7 cells."""
    weights = original_weights("swinT-full")
    image_BCHW = torch.randn(1, 3, 224, 256)
    with torch.no_grad():
        found = list(converted_bottom_up("swinT-full", weights)(image_BCHW).values())
    expected = swin(weights, image_BCHW, WINDOW, SWIN_T_HEADS)
    deviations = [float((a - b).abs().max() / b.abs().max()) for a, b in zip(found, expected, strict=True)]
    assert max(deviations[:3]) < 1e-5
    assert deviations[3] > 1e-3


def test_pose_hrnet_checkpoint_fills_all_but_the_fusions_it_has_not() -> None:
    cfg = load_config(config_file("hrnet32-light"), ["MODEL.DEVICE", "cpu"])
    weights = original_weights("hrnet32-light")
    pose = {
        name: v for name, v in weights.items() if not name.startswith(tuple(f"stage4.2.fuse_layers.{i}" for i in "123"))
    }
    pose |= {"final_layer.weight": torch.zeros(17, 32, 1, 1), "final_layer.bias": torch.zeros(17)}
    converted = convert_state_dict("pose-hrnet", pose, cfg)
    assert len(converted) == len(pose) - 2
    assert all(name.startswith(f"{BOTTOM_UP}model.") for name in converted)

    del pose["stage2.0.branches.0.0.conv1.weight"]
    with pytest.raises(CheckpointError, match=r"lacks .*stage2.0.branches.0.0.conv1.weight"):
        convert_state_dict("pose-hrnet", pose, cfg)
    with pytest.raises(CheckpointError, match=r"deconv_layers.0.weight"):
        convert_pose_hrnet({"deconv_layers.0.weight": torch.zeros(1)})


def test_original_swin_checkpoint_fills_all_but_the_norms_of_the_outputs() -> None:
    cfg = load_config(config_file("swinT-full"), ["MODEL.DEVICE", "cpu"])
    weights = original_weights("swinT-full")
    classifier = {name: v for name, v in weights.items() if not name.startswith("norm")}
    classifier |= {name: torch.zeros(1) for name in ("head.weight", "head.bias", "norm.weight", "norm.bias")}
    classifier["layers.0.blocks.1.attn_mask"] = torch.zeros(64, 49, 49)
    converted = convert_state_dict("swin", classifier, cfg)
    assert len(converted) == len(classifier) - 5
    with pytest.raises(CheckpointError, match=r"blocks\.0\.attn\.q_bias"):
        convert_swin({"blocks.0.attn.q_bias": torch.zeros(1)})
