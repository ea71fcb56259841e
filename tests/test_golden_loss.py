"""Twenty steps of training give the losses that they gave when this file was written.

A refactor may not change them. Where a change of the model or of training is meant to, print the new curves with
`python -m tests.test_golden_loss` and say in the commit why they moved.
"""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from querypose.d2 import BACKBONE_REGISTRY, Backbone, CfgNode, ShapeSpec, build_model
from querypose.engine import PoseTrainer
from tests.tiny import FULL_VERSION, random_batch, tiny_config

NUM_STEPS = 20
# fmt: off
GOLDEN = {
    "light": [
        26.9596, 24.9763, 23.2916, 21.0363, 18.1855, 17.0923, 15.6453, 18.5032, 17.4306, 16.9756,
        16.6652, 14.6305, 13.9304, 13.6854, 13.372, 12.8688, 12.4789, 11.5126, 11.5713, 11.0313,
    ],
    "full": [
        28.9984, 21.0715, 19.718, 18.3617, 19.4526, 18.2517, 17.3963, 17.0588, 17.1137, 17.3549,
        17.5249, 17.8272, 17.9408, 17.2997, 16.8657, 15.6271, 15.4182, 14.7015, 14.1733, 14.33,
    ],
    "POET": [
        45.4514, 41.4246, 40.711, 40.2988, 39.851, 39.4569, 39.1215, 38.8056, 38.3696, 37.8673,
        37.3375, 36.7543, 36.3136, 35.9521, 35.5463, 35.1468, 34.6701, 34.1956, 33.8196, 33.4254,
    ],
}
# fmt: on
OVERRIDES: dict[str, list[str]] = {
    "light": [],
    "full": FULL_VERSION,
    "POET": ["MODEL.META_ARCHITECTURE", "POET", "MODEL.BACKBONE.OUT_FEATURES", "['p4']"],
}


class PlainPyramid(Backbone):
    """Four strided convolutions: a pyramid whose start depends on torch alone, not on the version of timm.

    Of its levels it gives the named ones.
    """

    size_divisibility = 32

    def __init__(self, channels: int, names: Sequence[str]) -> None:
        super().__init__()
        self.names = names
        self.stem = nn.Conv2d(3, channels, kernel_size=4, stride=4)
        self.downs = nn.ModuleList(nn.Conv2d(channels, channels, kernel_size=2, stride=2) for _ in range(3))
        self._channels = channels

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        levels = [self.stem(x)]
        for down in self.downs:
            levels.append(down(levels[-1].relu()))
        named = {f"p{number}": level for number, level in enumerate(levels, start=2)}
        return {name: named[name] for name in self.names}

    def output_shape(self) -> dict[str, ShapeSpec]:
        return {name: ShapeSpec(channels=self._channels, stride=2 ** int(name[1:])) for name in self.names}


def _build_plain_pyramid(cfg: CfgNode, input_shape: ShapeSpec) -> PlainPyramid:
    return PlainPyramid(cfg.MODEL.FPN.OUT_CHANNELS, cfg.MODEL.BACKBONE.OUT_FEATURES or ["p2", "p3", "p4", "p5"])


if "_build_plain_pyramid" not in BACKBONE_REGISTRY:
    BACKBONE_REGISTRY.register(_build_plain_pyramid)


def loss_curve(*overrides: str) -> list[float]:
    """Total loss of each step, from a fixed start on a fixed batch."""
    torch.manual_seed(0)
    batch = random_batch([2, 1], 17)
    cfg = tiny_config("MODEL.BACKBONE.NAME", "_build_plain_pyramid", "SOLVER.BASE_LR", "0.001", *overrides)
    # In float64, where the order in which a machine adds up does not show within 20 steps.
    model = build_model(cfg).double()
    optimizer = PoseTrainer.build_optimizer(cfg, model)
    curve = []
    for _ in range(NUM_STEPS):
        loss = torch.stack(list(model(batch).values())).sum()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        curve.append(loss.item())
    return curve


@pytest.mark.parametrize("version", GOLDEN)
def test_losses_are_those_of_the_golden_curve(version: str) -> None:
    curve = loss_curve(*OVERRIDES[version])
    assert curve == pytest.approx(GOLDEN[version], abs=2e-3)
    assert curve[-1] < curve[0]


if __name__ == "__main__":
    for name, arguments in OVERRIDES.items():
        print(name, [round(value, 4) for value in loss_curve(*arguments)])
