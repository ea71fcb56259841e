"""A folded network gives what it gave before."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from querypose.layers.batch_norm_folding import fold_batch_norms
from querypose.modeling.backbone.frozen_batch_norm import FrozenBatchNorm2d, freeze_batch_norms
from querypose.modeling.backbone.timm_backbone import TimmBackbone

TOLERANCE = 1e-9


def _randomise_batch_norms(model: nn.Module) -> nn.Module:
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None and module.running_var is not None:
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.1)
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return model.double().eval()


def _norms(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if isinstance(module, nn.BatchNorm2d | FrozenBatchNorm2d)]


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize(
    ("kind", "groups"), [(nn.Conv2d, 1), (nn.Conv2d, 2), (nn.ConvTranspose2d, 1), (nn.ConvTranspose2d, 2)]
)
def test_convolutions_of_every_kind(kind: type[nn.Conv2d], groups: int, bias: bool, frozen: bool) -> None:
    layers = nn.Sequential(kind(4, 6, 3, groups=groups, bias=bias), nn.BatchNorm2d(6), nn.ReLU())
    model = _randomise_batch_norms(layers)
    if frozen:
        freeze_batch_norms(model)
    image = torch.randn(2, 4, 8, 8, dtype=torch.float64)
    folded = copy.deepcopy(model)
    assert fold_batch_norms(folded, lambda: folded(image)) == ["1"]
    assert not _norms(folded)
    torch.testing.assert_close(folded(image), model(image), atol=TOLERANCE, rtol=TOLERANCE)


@pytest.mark.parametrize("arch", ["resnet10t", "hrnet_w18_small", "regnety_002", "mobilenetv3_small_050"])
@pytest.mark.parametrize("frozen", [False, True])
def test_backbones_of_every_build(arch: str, frozen: bool) -> None:
    """Activations and drop blocks that timm keeps in its normalizations stay."""
    model = _randomise_batch_norms(TimmBackbone(arch))
    if frozen:
        freeze_batch_norms(model)
    folded = copy.deepcopy(model)
    image = torch.randn(1, 3, 64, 96, dtype=torch.float64)
    with torch.no_grad():
        assert len(fold_batch_norms(folded, lambda: folded(image))) == len(_norms(model)) > 0
        assert not _norms(folded)
        other_image = torch.randn(2, 3, 96, 64, dtype=torch.float64)
        for found, expected in zip(folded(other_image).values(), model(other_image).values(), strict=True):
            torch.testing.assert_close(found, expected, atol=TOLERANCE, rtol=TOLERANCE)


class Shared(nn.Module):
    """What cannot be folded: a convolution before two normalizations, and a normalization behind none."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)
        self.first, self.second, self.alone = nn.BatchNorm2d(3), nn.BatchNorm2d(3), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.alone(self.first(self.conv(x)) + self.second(self.conv(x)))


def test_what_does_not_follow_one_convolution_alone_stays() -> None:
    model = _randomise_batch_norms(Shared())
    image = torch.randn(1, 3, 4, 4, dtype=torch.float64)
    folded = copy.deepcopy(model)
    assert fold_batch_norms(folded, lambda: folded(image)) == []
    torch.testing.assert_close(folded(image), model(image))


def test_a_model_in_training_mode_is_refused() -> None:
    model = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))
    with pytest.raises(RuntimeError, match="evaluation mode"):
        fold_batch_norms(model, lambda: None)
