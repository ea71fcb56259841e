"""A model made ready for inference says the same, and leaves the model alone."""

from __future__ import annotations

import copy
import shutil
from typing import Any

import pytest
import torch
from torch import nn

from querypose.config import ConfigError
from querypose.d2 import Instances, build_model
from querypose.engine.inference import InferenceModel
from tests.engine.toy_pose import ToyPose
from tests.tiny import FULL_VERSION, LQR, POET, random_batch, tiny_config

VERSIONS = {"light": [], "full": FULL_VERSION, "POET": POET, "LQR": LQR}
SIZES = [(64, 96), (96, 64), (128, 96), (60, 100)]


def _model(*overrides: str) -> nn.Module:
    torch.manual_seed(0)
    model = build_model(tiny_config("MODEL.QUERYPOSE.PROPOSAL_INIT", "grid", *overrides))
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d) and module.running_var is not None:
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("box_deltas.weight"):  # boxes that stay near the grid
                parameter.mul_(0.2)
    return model


def _images(*sizes: tuple[int, int]) -> list[dict[str, Any]]:
    return [image for size in sizes for image in random_batch([0], 17, size)]


@torch.no_grad()
def _predict(model: nn.Module, images: list[dict[str, Any]]) -> list[Instances]:
    return [output["instances"] for output in model(images)]


def _places(poses: Instances) -> torch.Tensor:
    """Where each pose is: the corner of its box, or the first keypoint of a model without boxes."""
    corners = poses.pred_boxes.tensor[:, :2] if poses.has("pred_boxes") else poses.pred_keypoints[:, 0, :2]
    return corners.sum(1)


def _assert_near(
    found: list[Instances], expected: list[Instances], pixels: float, score: float, mean_pixels: float | None = None
) -> None:
    """Scores within `score`, keypoints within `pixels`, and on average within `mean_pixels`."""
    for one, other in zip(found, expected, strict=True):
        # By their place: nearly equal scores may change places.
        order, other_order = (_places(poses).argsort() for poses in (one, other))
        assert len(one) == len(other) > 0
        torch.testing.assert_close(one.scores[order], other.scores[other_order], atol=score, rtol=0)
        xy, other_xy = one.pred_keypoints[order][..., :2], other.pred_keypoints[other_order][..., :2]
        torch.testing.assert_close(xy, other_xy, atol=pixels, rtol=0)
        assert mean_pixels is None or (xy - other_xy).abs().mean() < mean_pixels


@pytest.mark.parametrize("version", VERSIONS)
def test_the_results_are_those_of_the_model(version: str) -> None:
    model, images = _model(*VERSIONS[version]), _images(*SIZES)
    ready = InferenceModel(model)
    _assert_near(_predict(ready, images), _predict(model.eval(), images), pixels=1e-3, score=1e-6)
    assert not [module for module in ready.modules() if isinstance(module, nn.BatchNorm2d)]


def test_in_place_there_is_one_model_alone() -> None:
    model, images = _model().eval(), _images(*SIZES)
    expected = _predict(InferenceModel(model), images)
    ready = InferenceModel(model, in_place=True)
    assert ready.model is model
    _assert_near(_predict(ready, images), expected, pixels=0.0, score=0.0)


@pytest.mark.parametrize("version", ["light", "full", "POET"])  # LQR's peaks are others where scores are nearly equal
def test_bfloat16_results_are_near(version: str) -> None:
    model, images = _model(*VERSIONS[version]), _images(*SIZES)
    found = _predict(InferenceModel(model, precision=torch.bfloat16), images)
    # bfloat16 keeps 3 digits, and an untrained regressor divides by short queries: some keypoint is pixels off.
    _assert_near(found, _predict(model.eval(), images), pixels=10.0, score=0.01, mean_pixels=1.0)
    assert found[0].pred_keypoints.dtype == found[0].scores.dtype == torch.float32


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler for the CPU")
@pytest.mark.parametrize("version", ["light", "POET"])
def test_compiled_results_are_near_and_sizes_compile_once(version: str) -> None:
    torch.compiler.reset()
    model = _model(*VERSIONS[version])
    ready, expected_model = InferenceModel(model, compiled=True), InferenceModel(model)
    for size in SIZES:
        images = _images(size)
        _assert_near(_predict(ready, images), _predict(expected_model, images), pixels=1e-2, score=1e-5)
    with torch.compiler.set_stance("fail_on_recompile"):
        for size in [(64, 128), (128, 64), (96, 128), (70, 90)]:
            images = _images(size)
            _assert_near(_predict(ready, images), _predict(expected_model, images), pixels=1e-2, score=1e-5)
    torch.compiler.reset()


@pytest.mark.parametrize("version", ["light", "POET", "LQR"])
def test_the_model_goes_on_training_as_if_nothing_had_been(version: str) -> None:
    model = _model(*VERSIONS[version])
    before = copy.deepcopy(model.state_dict())
    ready = InferenceModel(model, precision=torch.bfloat16)
    _predict(ready, _images((64, 96)))
    assert model.training
    assert all(module.training for module in model.modules())
    assert all(parameter.requires_grad for parameter in model.parameters())
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    torch.stack(list(model(random_batch([2], 17)).values())).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_a_forward_put_over_a_module_stays_with_the_model() -> None:
    model, images = _model(), _images((64, 96))
    expected = _predict(InferenceModel(model), images)
    calls: list[str] = []
    backbone = model.get_submodule("backbone")
    own_forward = backbone.forward

    def translated(image: torch.Tensor) -> Any:
        calls.append("original")
        return own_forward(image)

    backbone.forward = translated  # as a compilation in place does
    _assert_near(_predict(InferenceModel(model), images), expected, pixels=0, score=0)
    assert not calls


@pytest.mark.parametrize("arch", ["resnet18", "regnetx_002"])
def test_a_backbone_with_frozen_stages_is_evaluated_too(arch: str) -> None:
    model, images = _model("MODEL.BACKBONE.ARCH", arch, "MODEL.BACKBONE.FREEZE_AT", "2"), _images(*SIZES)
    ready = InferenceModel(model)
    assert not ready.eval().train().model.training  # as an evaluation loop does
    assert model.training
    _assert_near(_predict(ready, images), _predict(model.eval(), images), pixels=1e-2, score=1e-5)


def test_config_decides_precision_and_compilation() -> None:
    ready = InferenceModel(tiny_config("TEST.PRECISION", "bfloat16"), _model())
    assert ready.precision == torch.bfloat16
    assert InferenceModel(tiny_config(), _model()).precision is None


def test_a_model_without_components_to_compile_says_so() -> None:
    with pytest.raises(ConfigError, match=r"TEST\.COMPILE is True, but ToyPose names no components"):
        InferenceModel(ToyPose(), compiled=True)
