"""A model on the device computes what float64 on the CPU does, within what its precision allows."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torchvision.ops import roi_align

from querypose.engine.model_preparation import prepare_model
from querypose.layers.roi_align import roi_align_channels_last
from querypose.modeling import PoseModel
from tests.tiny import ARCHITECTURES, exact_model, random_batch

COCO = 17


@pytest.fixture(autouse=True)
def _without_tf32() -> Iterator[None]:
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.set_float32_matmul_precision(before[0])
    torch.backends.cudnn.allow_tf32 = before[1]


def _on(device: torch.device, reference: PoseModel) -> PoseModel:
    return copy.deepcopy(reference).to(device, torch.float32)


def _losses(model: PoseModel, precision: torch.dtype | None = None) -> dict[str, Tensor]:
    """Of a batch that is the same for every model; their gradient is added to the parameters'."""
    torch.manual_seed(1)
    batch = random_batch([2, 0, 1], COCO)
    with torch.autocast(model.device.type, precision, enabled=precision is not None):
        losses = model(batch)
    torch.stack([loss.double() for loss in losses.values()]).sum().backward()
    return {name: loss.detach().double().cpu() for name, loss in losses.items()}


def _gradient(model: nn.Module) -> Tensor:
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    return torch.cat([gradient.double().cpu().flatten() for gradient in gradients])


def _distance(found: Tensor, expected: Tensor) -> float:
    """Of two vectors, relative to the length of the second."""
    return float((found - expected).norm() / expected.norm())


def _assert_agree(model: PoseModel, reference: PoseModel, bound: float, precision: torch.dtype | None = None) -> None:
    expected, found = _losses(reference), _losses(model, precision)
    assert list(found) == list(expected)
    assert _distance(torch.stack([*found.values()]), torch.stack([*expected.values()])) < bound
    assert _distance(_gradient(model), _gradient(reference)) < bound


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_losses_and_gradients_in_float32(architecture: str, device: torch.device) -> None:
    reference = exact_model(*ARCHITECTURES[architecture])
    _assert_agree(_on(device, reference), reference, bound=1e-4)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_poses_in_float32(architecture: str, device: torch.device) -> None:
    reference = exact_model(*ARCHITECTURES[architecture]).eval()
    batch = random_batch([1, 1], COCO)
    with torch.no_grad():
        expected = [output["instances"] for output in reference(batch)]
        found = [output["instances"].to("cpu") for output in _on(device, reference)(batch)]
    for ours, theirs in zip(found, expected, strict=True):
        # In the order of the scores, in which rounding may exchange neighbors.
        assert len(ours) == len(theirs)
        torch.testing.assert_close(ours.scores.double(), theirs.scores.double(), rtol=1e-4, atol=1e-6)
        by_place = [poses.pred_keypoints.double().flatten(1).sum(1).sort().values for poses in (ours, theirs)]
        torch.testing.assert_close(by_place[0], by_place[1], rtol=1e-4, atol=1e-2)


@pytest.mark.gpu
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_tf32(architecture: str, gpu: torch.device) -> None:
    """10 bits of mantissa in every product, 2 ** -11 of error in each factor, through some tens of layers."""
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.allow_tf32 = True
    reference = exact_model(*ARCHITECTURES[architecture])
    _assert_agree(_on(gpu, reference), reference, bound=0.05)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize(("precision", "bound"), [(torch.bfloat16, 0.1), (torch.float16, 0.02)])
def test_losses_in_mixed_precision(
    architecture: str, precision: torch.dtype, bound: float, device: torch.device
) -> None:
    """The bounds are some tens of roundings of 2 ** -9 and 2 ** -12; gradients, which have more, need only be there."""
    reference = exact_model(*ARCHITECTURES[architecture])
    model = _on(device, reference)
    expected, found = _losses(reference), _losses(model, precision)
    assert _distance(torch.stack([*found.values()]), torch.stack([*expected.values()])) < bound
    assert _gradient(model).isfinite().all()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_channels_last(architecture: str, device: torch.device) -> None:
    reference = exact_model(*ARCHITECTURES[architecture])
    model = prepare_model(_on(device, reference), channels_last=True, compiled=(), recomputed=())
    assert isinstance(model, PoseModel)
    _assert_agree(model, reference, bound=1e-4)


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_compiled_components(architecture: str, gpu: torch.device) -> None:
    reference = exact_model(*ARCHITECTURES[architecture])
    model = _on(gpu, reference)
    prepare_model(model, channels_last=False, compiled=tuple(model.components), recomputed=())
    _assert_agree(model, reference, bound=1e-4)


def test_region_pooling_is_torchvisions(device: torch.device) -> None:
    torch.manual_seed(0)
    feature = torch.randn(2, 8, 24, 40, device=device, dtype=torch.float64, requires_grad=True)
    corner = torch.rand(30, 2, device=device, dtype=torch.float64) * 60
    boxes = torch.cat([corner, corner + torch.rand_like(corner) * 80 + 4], dim=1)
    rois = torch.cat([torch.arange(30, device=device)[:, None] % 2, boxes], dim=1)
    weight = torch.randn(30, 8, 7, 7, device=device, dtype=torch.float64)
    results: list[tuple[Tensor, Tensor]] = []
    for pool in (
        lambda: roi_align_channels_last(feature, rois, 7, 0.25, 2),
        lambda: roi_align(feature, rois, 7, 0.25, 2, aligned=True),
    ):
        feature.grad = None
        region = pool()
        (region * weight).sum().backward()
        assert feature.grad is not None
        results.append((region.detach(), feature.grad))
    torch.testing.assert_close(results[0], results[1], rtol=1e-9, atol=1e-9)
