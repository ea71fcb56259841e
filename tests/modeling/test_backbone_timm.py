"""timm networks below the pyramid: features, frozen stages, weights, refusals."""

from __future__ import annotations

import copy
import http.server
import threading
import urllib.error
from collections.abc import Iterator
from pathlib import Path

import pytest
import safetensors.torch
import timm
import torch
from huggingface_hub import constants
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from querypose.config import get_cfg
from querypose.d2 import CfgNode, ShapeSpec
from querypose.modeling.backbone import (
    FPN,
    HRFPN,
    BackboneError,
    FeaturePyramid,
    FrozenBatchNorm2d,
    HRFPNv1,
    TimmBackbone,
    build_timm_fpn_backbone,
    pretrained,
)
from querypose.modeling.backbone.frozen_batch_norm import reset_batch_norms

# timm has small networks of the usual kinds for tests; one of each kind that is built differently.
ARCHS = ("resnet18", "hrnet_w18_small", "test_convnext", "test_efficientnet", "test_vit", "vit_tiny_patch16_224")
STAGES = ("conv1.", "layer1.", "layer2.", "layer3.", "layer4.")


def images(*size: int, seed: int = 0) -> Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed))


def backbone_cfg(arch: str, **backbone: object) -> CfgNode:
    cfg = get_cfg()
    cfg.MODEL.BACKBONE.ARCH = arch
    cfg.MODEL.FPN.OUT_CHANNELS = 8
    for key, value in backbone.items():
        cfg.MODEL.BACKBONE[key] = value
    return cfg


def build(cfg: CfgNode) -> FeaturePyramid:
    return build_timm_fpn_backbone(cfg, ShapeSpec(channels=3))


@pytest.fixture
def _empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))


@pytest.mark.parametrize("arch", ARCHS)
def test_features_have_the_strides_and_channels_that_are_declared(arch: str) -> None:
    torch.manual_seed(0)
    pyramid = build(backbone_cfg(arch, NORM="BN", FREEZE_AT=0)).eval().double()
    assert pyramid.size_divisibility == 32
    image_BCHW = images(2, 3, 96, 64).double()
    with torch.no_grad():
        features, levels = pyramid.bottom_up(image_BCHW), pyramid(image_BCHW)
        single = pyramid(image_BCHW[1:])
    for outputs, shapes in ((features, pyramid.bottom_up.output_shape()), (levels, pyramid.output_shape())):
        assert list(outputs) == list(shapes)
        for (name, shape), stride in zip(shapes.items(), (4, 8, 16, 32), strict=True):
            assert shape.stride == stride
            assert outputs[name].shape == (2, shape.channels, 96 // stride, 64 // stride)
    for name, level in single.items():
        torch.testing.assert_close(level, levels[name][1:], rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("norm", ["BN", "FrozenBN"])
def test_every_trainable_parameter_gets_a_gradient(arch: str, norm: str) -> None:
    torch.manual_seed(0)
    pyramid = build(backbone_cfg(arch, NORM=norm, FREEZE_AT=0)).train()
    reset_batch_norms(pyramid)  # timm starts the last of a ResNet block at 0, which silences the block for one step
    levels = pyramid(images(2, 3, 64, 96))
    # A random direction: the sum of a batch-normalized map does not depend on what it normalizes.
    directions = [torch.randn_like(level) for level in levels.values()]
    torch.autograd.backward(list(levels.values()), directions)
    silent = [name for name, p in pyramid.named_parameters() if p.grad is None or not p.grad.any()]
    assert silent == []


@pytest.mark.parametrize("size", [(1, 3, 75, 101), (1, 3, 32, 32)])
def test_sizes_off_the_grid_pass_a_convolutional_network(size: tuple[int, ...]) -> None:
    levels = build(backbone_cfg("resnet18", FREEZE_AT=0)).eval()(images(*size))
    for level, stride in zip(levels.values(), (4, 8, 16, 32), strict=True):
        assert level.shape[-2:] == (-(-size[2] // stride), -(-size[3] // stride))


def test_hrnet_gives_the_native_channels_of_its_branches() -> None:
    with torch.device("meta"):
        shapes = TimmBackbone("hrnet_w32").output_shape()
    assert [shape.channels for shape in shapes.values()] == [32, 64, 128, 256]


def test_parameter_counts_are_those_of_the_authors() -> None:
    """Their counts, less the unused last convolution of HRFPN and the unused first lateral of HRFPN_v1."""
    with torch.device("meta"):
        resnet = FPN(TimmBackbone("resnet50", frozen_batch_norm=True, freeze_at=2), 256)
        hrnet_w32 = HRFPN(TimmBackbone("hrnet_w32"), 256)
        hrnet_w48 = HRFPNv1(TimmBackbone("hrnet_w48"), 256)
    counts = [sum(p.numel() for p in network.parameters()) for network in (resnet, hrnet_w32, hrnet_w48)]
    unused_bias, unused_output, unused_lateral = 256, 256 * 256 * 9, 48 * 256
    assert counts == [
        26_799_296,
        32_379_072 - unused_output - unused_bias,
        68_643_136 - unused_output - unused_lateral,
    ]
    assert sum(p.numel() for p in resnet.parameters() if p.requires_grad) == 26_576_896


@pytest.mark.parametrize("freeze_at", range(6))
def test_freeze_at_counts_the_stages_of_a_resnet_as_detectron2(freeze_at: int) -> None:
    network = TimmBackbone("resnet18", freeze_at=freeze_at).model
    trainable = {name for name, parameter in network.named_parameters() if parameter.requires_grad}
    stages = {stage for stage in STAGES if any(name.startswith(stage) for name in trainable)}
    assert stages == set(STAGES[freeze_at:])
    assert any(name.startswith("bn1.") for name in trainable) == (freeze_at == 0)
    for name, module in network.named_modules():
        if isinstance(module, _BatchNorm | FrozenBatchNorm2d):
            stage = 0 if name == "bn1" else STAGES.index(name.split(".")[0] + ".")
            assert isinstance(module, FrozenBatchNorm2d) == (stage < freeze_at), name


@pytest.mark.parametrize(
    ("arch", "stage_starts"),
    [
        ("hrnet_w18_small", ("layer1", "transition1", "transition2", "transition3")),
        ("test_convnext", ("stages_0", "stages_1", "stages_2", "stages_3")),
        ("test_efficientnet", ("blocks.0", "blocks.2", "blocks.3", "blocks.4")),
        ("vit_tiny_patch16_224", ("model.blocks.0", "model.blocks.3", "model.blocks.6", "model.blocks.9")),
    ],
)
def test_freeze_at_freezes_what_comes_before_the_stage(arch: str, stage_starts: tuple[str, ...]) -> None:
    order = list(dict(TimmBackbone(arch).model.named_modules()))
    for freeze_at, start in enumerate(stage_starts, start=1):
        network = TimmBackbone(arch, freeze_at=freeze_at).model
        for name, parameter in network.named_parameters():
            module = name.rpartition(".")[0]
            behind = order.index(module) >= order.index(start)
            assert parameter.requires_grad == behind, (name, start)


def test_frozen_stages_stay_in_eval_mode_and_unchanged() -> None:
    torch.manual_seed(0)
    backbone = TimmBackbone("test_convnext", freeze_at=2, drop_path_rate=0.5)
    backbone.train()
    stages = {name: [m.training for m in module.modules()] for name, module in backbone.model.named_children()}
    assert not any(stages["stem_0"] + stages["stages_0"])
    assert all(stages["stages_1"] + stages["stages_2"])
    assert not any(module.training for module in backbone.eval().modules())

    resnet = TimmBackbone("resnet18", freeze_at=2).train()
    before = {name: value.clone() for name, value in resnet.state_dict().items()}
    resnet(images(2, 3, 64, 64))["c5"].sum().backward()
    changed = [name for name, value in resnet.state_dict().items() if not torch.equal(value, before[name])]
    assert {name.split(".")[1] for name in changed} == {"layer2", "layer3", "layer4"}  # running statistics


def test_everything_frozen_is_eval_and_without_gradient() -> None:
    backbone = TimmBackbone("resnet18", freeze_at=5).train()
    assert not any(module.training for module in backbone.modules())
    assert not any(parameter.requires_grad for parameter in backbone.parameters())
    assert not any(isinstance(module, _BatchNorm) for module in backbone.modules())


def test_frozen_batch_norm_from_scratch_leaves_no_branch_switched_off() -> None:
    """In timm the last BatchNorm of a ResNet block starts at 0; frozen there, the block would never learn."""
    for module in TimmBackbone("resnet18", frozen_batch_norm=True).modules():
        assert not isinstance(module, _BatchNorm)
        if isinstance(module, FrozenBatchNorm2d):
            assert module.weight.all()


def test_a_copy_is_frozen_like_the_original() -> None:
    backbone = copy.deepcopy(TimmBackbone("resnet18", freeze_at=2)).train()
    assert not backbone.get_submodule("model.layer1").training
    assert backbone.get_submodule("model.layer2").training


def test_drop_path_acts_in_training_alone() -> None:
    torch.manual_seed(0)
    backbone = TimmBackbone("test_convnext", drop_path_rate=0.9)
    for name, parameter in backbone.named_parameters():
        if name.endswith("gamma"):  # layer scale, 1e-6 at the start
            nn.init.ones_(parameter)
    image_BCHW = images(1, 3, 64, 64)
    with torch.no_grad():
        assert not torch.equal(backbone.train()(image_BCHW)["c5"], backbone(image_BCHW)["c5"])
        assert torch.equal(backbone.eval()(image_BCHW)["c5"], backbone(image_BCHW)["c5"])


@pytest.mark.parametrize(
    ("arch", "kwargs", "message"),
    [
        ("resnet5O", {}, "MODEL.BACKBONE.ARCH is 'resnet5O'.* resnet50"),
        ("resnet50.no_such", {}, "MODEL.BACKBONE.ARCH is 'resnet50.no_such'; .*tv_in1k"),
        ("visformer_tiny", {}, r"MODEL.BACKBONE.ARCH is 'visformer_tiny'.*strides \[8, 16, 32\].*resnet50"),
        ("hiera_tiny_224", {}, "MODEL.BACKBONE.ARCH 'hiera_tiny_224' .*does not take images of every size"),
        ("hrnet_w18_small", {"drop_path_rate": 0.1}, "MODEL.BACKBONE.ARCH 'hrnet_w18_small' .*DROP_PATH_RATE 0"),
    ],
)
def test_networks_that_do_not_fit_are_refused(arch: str, kwargs: dict[str, float], message: str) -> None:
    with pytest.raises(BackboneError, match=message):
        TimmBackbone(arch, **kwargs)  # type: ignore[arg-type]  # of several types


def test_images_have_three_channels() -> None:
    with pytest.raises(BackboneError, match="1 channels"):
        build_timm_fpn_backbone(backbone_cfg("resnet18"), ShapeSpec(channels=1))


# ---- ImageNet weights ------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("_empty_cache")
def test_weights_come_from_the_cache_without_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pretrained, "check_reachable", _no_network)
    torch.manual_seed(0)
    full = timm.create_model("test_resnet.r160_in1k")
    repository = tmp_path / "models--timm--test_resnet.r160_in1k"
    snapshot = repository / "snapshots" / "0123"
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0123")
    safetensors.torch.save_file(full.state_dict(), snapshot / "model.safetensors")
    torch.manual_seed(1)
    network = build(backbone_cfg("test_resnet.r160_in1k", PRETRAINED=True, NORM="BN")).bottom_up.model
    assert isinstance(network, nn.Module)
    for name, value in network.state_dict().items():
        assert torch.equal(value, full.state_dict()[name]), name


@pytest.mark.usefixtures("_empty_cache")
@pytest.mark.parametrize("error", [urllib.error.URLError("no route"), TimeoutError("timed out")])
def test_weights_out_of_reach_are_one_clear_error(error: OSError, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(server: str) -> None:
        raise error

    monkeypatch.setattr(pretrained, "check_reachable", unreachable)
    with pytest.raises(BackboneError, match=r"MODEL.BACKBONE.PRETRAINED is True.*'resnet18'.*MODEL.WEIGHTS"):
        build(backbone_cfg("resnet18", PRETRAINED=True))


def test_architectures_without_weights_say_so() -> None:
    with pytest.raises(BackboneError, match=r"timm has no weights of MODEL.BACKBONE.ARCH 'efficientnet_b8'"):
        build(backbone_cfg("efficientnet_b8", PRETRAINED=True))


def test_a_checkpoint_replaces_the_pretrained_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pretrained, "check_reachable", _no_network)
    cfg = backbone_cfg("resnet18", PRETRAINED=True)
    cfg.MODEL.WEIGHTS = "model_final.pth"
    build(cfg)


def test_frozen_random_stages_are_announced(caplog: pytest.LogCaptureFixture) -> None:
    build(backbone_cfg("resnet18", FREEZE_AT=2))
    assert "MODEL.BACKBONE.FREEZE_AT is 2" in caplog.text
    caplog.clear()
    build(backbone_cfg("resnet18", FREEZE_AT=0))
    assert not caplog.text


@pytest.mark.parametrize(("image_format", "expected"), [("RGB", [123.675, 116.28, 103.53]), ("BGR", [103.53, 116.28])])
def test_another_normalization_is_announced(
    image_format: str, expected: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    cfg = backbone_cfg("resnet18")
    cfg.INPUT.FORMAT = image_format
    imagenet = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    if image_format == "RGB":
        pretrained.check_normalization(cfg, *imagenet)
        assert not caplog.text
        cfg.MODEL.PIXEL_MEAN = [127.5, 127.5, 127.5]
    pretrained.check_normalization(cfg, *imagenet)
    assert f"set MODEL.PIXEL_MEAN to {str(expected)[:-1]}" in caplog.text


class _Refusing(http.server.BaseHTTPRequestHandler):
    """Answers every request with an error, which shows that somebody is there."""

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[str]:
    with http.server.HTTPServer(("127.0.0.1", 0), _Refusing) as listening:
        thread = threading.Thread(target=listening.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{listening.server_port}"
        listening.shutdown()
        thread.join()


def test_a_server_that_refuses_is_reachable_and_none_is_not(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "*")
    pretrained.check_reachable(server)
    with pytest.raises(OSError, match="refused"):
        pretrained.check_reachable("http://127.0.0.1:1")


def _no_network(server: str) -> None:
    raise AssertionError(f"asked for {server}")
