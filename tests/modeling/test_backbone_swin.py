"""Swin Transformer below the pyramid."""

from __future__ import annotations

import re
import urllib.error
from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.models.swin_transformer import SwinTransformer

from querypose.config import get_cfg
from querypose.d2 import CfgNode, ShapeSpec
from querypose.modeling.backbone import (
    FPN,
    SWIN_ARCHS,
    BackboneError,
    FeaturePyramid,
    SwinArch,
    SwinBackbone,
    build_swin_fpn_backbone,
    swin,
)

TINY = SwinArch(embed_dim=8, depths=(1, 1, 2, 1), num_heads=(1, 2, 2, 4))


def images(*size: int) -> Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(0))


def tiny(**kwargs: Any) -> SwinBackbone:
    torch.manual_seed(0)
    return SwinBackbone(TINY, **kwargs)


def swin_cfg(arch: str, **backbone: object) -> CfgNode:
    cfg = get_cfg()
    cfg.MODEL.BACKBONE.NAME = "build_swin_fpn_backbone"
    cfg.MODEL.BACKBONE.ARCH = arch
    cfg.MODEL.BACKBONE.FREEZE_AT = 0
    for key, value in backbone.items():
        cfg.MODEL.BACKBONE[key] = value
    return cfg


def build(cfg: CfgNode) -> FeaturePyramid:
    return build_swin_fpn_backbone(cfg, ShapeSpec(channels=3))


@pytest.mark.parametrize("size", [(64, 96), (224, 224), (32, 32), (75, 101)])
def test_any_input_size(size: tuple[int, int]) -> None:
    """Feature maps that are no multiple of the window or of two are padded inside."""
    backbone = tiny().eval()
    features = backbone(images(1, 3, *size))
    sides = [side // 4 for side in size]
    for (name, feature), shape in zip(features.items(), backbone.output_shape().values(), strict=True):
        assert feature.shape == (1, shape.channels, *sides), name
        assert feature.is_contiguous()
        assert feature.isfinite().all()
        sides = [-(-side // 2) for side in sides]


def test_shapes_and_a_gradient_for_every_parameter() -> None:
    pyramid = FPN(tiny(), 8).train()
    levels = pyramid(images(2, 3, 64, 96))
    assert {name: tuple(level.shape) for name, level in levels.items()} == {
        "p2": (2, 8, 16, 24), "p3": (2, 8, 8, 12), "p4": (2, 8, 4, 6), "p5": (2, 8, 2, 3),
    }  # fmt: skip
    torch.autograd.backward(list(levels.values()), [torch.randn_like(level) for level in levels.values()])
    silent = [name for name, p in pyramid.named_parameters() if p.grad is None or not p.grad.any()]
    assert silent == []


def test_batch_is_single_images() -> None:
    backbone = tiny().eval()
    image_BCHW = images(3, 3, 64, 96)
    together = backbone(image_BCHW)
    for index in range(3):
        alone = backbone(image_BCHW[index : index + 1])
        for name, feature in together.items():
            torch.testing.assert_close(feature[index : index + 1], alone[name], rtol=1e-4, atol=1e-5)


def test_imagenet_weights_give_torchvisions_features() -> None:
    torch.manual_seed(1)
    reference = SwinTransformer(
        [4, 4], TINY.embed_dim, list(TINY.depths), list(TINY.num_heads), window_size=[7, 7], stochastic_depth_prob=0.0
    ).eval()
    backbone = tiny().eval()
    backbone.load_imagenet(reference.state_dict())
    image_BCHW = images(1, 3, 64, 96)
    expected = reference.norm(reference.features(image_BCHW)).permute(0, 3, 1, 2)
    torch.testing.assert_close(backbone(image_BCHW)["c5"], expected)
    incomplete = {name: value for name, value in reference.state_dict().items() if "features.7" not in name}
    with pytest.raises(RuntimeError, match="Missing key"):
        backbone.load_imagenet(incomplete)


def test_drop_path_acts_in_training_alone_and_not_in_frozen_stages() -> None:
    image_BCHW = images(1, 3, 64, 64)
    torch.manual_seed(0)
    with torch.no_grad():
        backbone = tiny(drop_path_rate=0.9).train()
        assert not torch.equal(backbone(image_BCHW)["c5"], backbone(image_BCHW)["c5"])
        assert torch.equal(backbone.eval()(image_BCHW)["c5"], backbone(image_BCHW)["c5"])
        frozen = tiny(drop_path_rate=0.9, freeze_at=5).train()
        assert torch.equal(frozen(image_BCHW)["c5"], frozen(image_BCHW)["c5"])


@pytest.mark.parametrize("freeze_at", range(6))
def test_freeze_at_counts_patch_embedding_and_stages(freeze_at: int) -> None:
    backbone = tiny(freeze_at=freeze_at)
    backbone.train()
    # Patch embedding, blocks, and three times patch merging and blocks.
    frozen_parts = {0: 0, 1: 1, 2: 2, 3: 4, 4: 6, 5: 8}[freeze_at]
    for index, part in enumerate(backbone.features):
        assert part.training == (index >= frozen_parts)
        assert all(parameter.requires_grad == (index >= frozen_parts) for parameter in part.parameters())
    assert all(p.requires_grad == (freeze_at < 5) for p in backbone.get_submodule("norm0").parameters())


def test_parameter_count_of_swin_t_is_that_of_the_authors() -> None:
    with torch.device("meta"):
        pyramid = FPN(SwinBackbone(SWIN_ARCHS["swin_t"]), 256)
    assert sum(parameter.numel() for parameter in pyramid.parameters()) == 30_250_682


@pytest.mark.parametrize(("arch", "channels"), [("swin_t", 96), ("swin_s", 96), ("swin_b", 128), ("swin_l", 192)])
def test_every_size_builds(arch: str, channels: int) -> None:
    with torch.device("meta"):
        pyramid = build(swin_cfg(arch))
        levels = pyramid(torch.zeros(1, 3, 64, 64))
    assert [shape.channels for shape in pyramid.bottom_up.output_shape().values()] == [
        channels * 2**index for index in range(4)
    ]
    assert levels["p5"].shape == (1, 256, 2, 2)


def test_other_architectures_are_refused() -> None:
    with pytest.raises(BackboneError, match=r"MODEL.BACKBONE.ARCH is 'resnet50'; .* allows swin_t, swin_s, swin_b"):
        build(swin_cfg("resnet50"))


def test_swin_l_has_no_imagenet_weights() -> None:
    with pytest.raises(BackboneError, match=r"no ImageNet weights of MODEL.BACKBONE.ARCH 'swin_l'.*swin_b.*WEIGHTS"):
        build(swin_cfg("swin_l", PRETRAINED=True))


def test_weights_out_of_reach_are_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    weights = SWIN_ARCHS["swin_t"].weights
    assert weights is not None

    def fail(self: object, **kwargs: object) -> None:
        assert kwargs["weights_only"] is True
        raise urllib.error.URLError("no route")

    monkeypatch.setattr(type(weights), "get_state_dict", fail)
    pattern = f"MODEL.BACKBONE.PRETRAINED is True.*'swin_t'.*{re.escape(weights.url)}.*MODEL.WEIGHTS"
    with pytest.raises(BackboneError, match=pattern):
        build(swin_cfg("swin_t", PRETRAINED=True))


def test_weights_are_loaded_on_request(monkeypatch: pytest.MonkeyPatch) -> None:
    weights = SWIN_ARCHS["swin_t"].weights
    assert weights is not None
    monkeypatch.setitem(SWIN_ARCHS, "swin_t", TINY._replace(weights=weights))
    source = tiny()
    for parameter in source.parameters():
        parameter.data.add_(1.0)
    monkeypatch.setattr(type(weights), "get_state_dict", lambda self, **kwargs: source.state_dict())
    bottom_up = build(swin_cfg("swin_t", PRETRAINED=True)).bottom_up
    assert isinstance(bottom_up, swin.SwinBackbone)
    for name, value in bottom_up.features.state_dict().items():
        assert torch.equal(value, source.features.state_dict()[name])
