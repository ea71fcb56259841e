"""Twenty steps of training give the losses that they gave when this file was written.

A refactor may not change them. Where a change of the model or of training is meant to, print the new curves with
`python -m tests.test_golden_loss` and say in the commit why they moved.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor, nn

from querypose.d2 import BACKBONE_REGISTRY, Backbone, CfgNode, ShapeSpec, build_model
from querypose.engine import PoseTrainer
from tests.tiny import FULL_VERSION, LQR, random_batch, tiny_config

NUM_STEPS = 20
# fmt: off
GOLDEN = {
    "light": [
        36.4108, 30.6511, 31.6963, 29.8613, 29.7786, 26.9429, 25.6921, 24.3204, 23.2985, 21.8904,
        22.5157, 22.1798, 21.1206, 21.5537, 21.6137, 21.2392, 20.5467, 20.3198, 20.2334, 18.4248,
    ],
    "full": [
        25.2493, 26.2529, 25.5202, 22.2615, 23.2782, 20.5952, 19.1362, 19.0318, 18.8491, 18.8866,
        17.7692, 17.3275, 17.6551, 16.4809, 16.3022, 15.5836, 15.8409, 15.007, 13.8385, 13.8611,
    ],
    "POET": [
        51.9901, 50.7879, 48.9347, 48.0403, 47.3077, 46.7337, 46.0683, 45.4046, 44.7301, 44.0016,
        43.1251, 42.2062, 41.2973, 40.5034, 39.7368, 39.0788, 38.4381, 37.8373, 37.1912, 36.5708,
    ],
    "LQR": [
        2.1106, 2.0592, 1.9811, 1.884, 1.7723, 1.6486, 1.521, 1.4007, 1.2969, 1.2128,
        1.1396, 1.067, 0.9969, 0.9357, 0.8844, 0.8379, 0.7921, 0.7471, 0.7036, 0.6617,
    ],
    "LQR, discrete, quality": [
        3.1091, 3.047, 2.9514, 2.8304, 2.6904, 2.5347, 2.3709, 2.2148, 2.0764, 1.9558,
        1.8471, 1.7422, 1.642, 1.5504, 1.4689, 1.3954, 1.3262, 1.2589, 1.1929, 1.1278,
    ],
}
# fmt: on
OVERRIDES: dict[str, list[str]] = {
    "light": [],
    "full": FULL_VERSION,
    "POET": ["MODEL.META_ARCHITECTURE", "POET", "MODEL.BACKBONE.OUT_FEATURES", "['p4']"],
    "LQR": LQR,
    "LQR, discrete, quality": [*LQR, "MODEL.LQR.LABEL", "discrete", "MODEL.LQR.QUALITY_BRANCH", "True"],
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


@contextmanager
def float64_by_default() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


def loss_curve(*overrides: str) -> list[float]:
    """Total loss of each step, from a fixed start on a fixed batch."""
    torch.manual_seed(0)
    batch = random_batch([2, 1], 17)
    cfg = tiny_config("MODEL.BACKBONE.NAME", "_build_plain_pyramid", "SOLVER.BASE_LR", "0.001", *overrides)
    # In float64, weights too, where the order in which a machine adds up does not show within 20 steps.
    with float64_by_default():
        model = build_model(cfg)
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
    assert curve == pytest.approx(GOLDEN[version], abs=1e-4)
    assert curve[-1] < curve[0]


if __name__ == "__main__":
    for name, arguments in OVERRIDES.items():
        print(name, [round(value, 4) for value in loss_curve(*arguments)])
