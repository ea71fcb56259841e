from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from querypose.analysis.complexity import (
    ZeroProducts,
    count_flops,
    count_parameters,
    image_size_for_testing,
    measure_complexity,
)
from querypose.analysis.part_meter import REST, PartMeter, part_name
from querypose.d2 import Instances, build_model
from querypose.modeling import Component, PoseModel
from querypose.modeling.pose_model import Batch
from querypose.skeleton import COCO_SKELETON
from tests.tiny import SHARPOSE, tiny_config


class Attention(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(x, x, x)


class Toy(PoseModel):
    """A convolution, two linear layers in a container that is never called itself, attention, a product of its own."""

    components: dict[str, Component] = {}  # noqa: RUF012  # the contract's property, of nothing

    def __init__(self) -> None:
        super().__init__(skeleton=COCO_SKELETON, pixel_mean=[0.0] * 3, pixel_std=[1.0] * 3)
        self.backbone = nn.Conv2d(3, 8, kernel_size=3, padding=1, bias=False)
        self.stages = nn.ModuleList([nn.Sequential(nn.Linear(8, 5)), nn.Sequential(nn.Linear(5, 8))])
        self.attention = Attention()
        self.scale = nn.Parameter(torch.ones(8, 2))

    def loss_normalizers(self, batch: Batch) -> dict[str, Tensor]:
        return {}

    def losses(self, batch: Batch, normalizers: Mapping[str, Tensor]) -> dict[str, Tensor]:
        raise NotImplementedError("Inference alone is counted.")

    def predict(self, batch: Batch) -> list[Instances]:
        x = self.backbone(batch[0]["image"].float()[None])
        tokens = x.flatten(2).mT  # (1, HW, 8)
        for stage in self.stages:
            tokens = stage(tokens)
        scores = (self.attention(tokens[None]) @ self.scale).flatten()
        instances = Instances(tuple(batch[0]["image"].shape[1:]))
        instances.scores = scores
        return [instances]


def test_part_names() -> None:
    assert part_name("decoder.box_stages.3.attention.q", 2) == "decoder.box_stages"
    assert part_name("decoder.box_stages.3.attention.q", 3) == "decoder.box_stages.attention"
    assert part_name("backbone.fpn_lateral4", 2) == "backbone.fpn_lateral"
    assert part_name("backbone", 2) == "backbone"
    assert part_name("", 2) == REST


def test_counts_of_a_model_that_can_be_counted_by_hand() -> None:
    height, width = 4, 6
    tokens = height * width
    model = Toy()
    assert count_parameters(model, 1) == {"backbone": 216, "stages": 45 + 48, REST: 16}
    assert count_flops(model, (height, width), 1) == {
        "backbone": 2 * tokens * 3 * 8 * 9,
        "stages": 2 * tokens * (8 * 5 + 5 * 8),
        "attention": 2 * 2 * tokens * tokens * 8,
        REST: 2 * tokens * 8 * 2,
    }


def test_products_that_are_not_carried_out_cost_the_same() -> None:
    cfg = tiny_config()
    model = build_model(cfg).eval().requires_grad_(False)
    assert isinstance(model, PoseModel)
    image = {"image": torch.zeros(3, 64, 96, dtype=torch.uint8)}
    counts = []
    for mode in (torch.no_grad(), ZeroProducts()):
        with mode, FlopCounterMode(display=False) as counter:
            model([image])
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] > 0
    assert sum(count_flops(model, (64, 96), 2).values()) == counts[0]


def test_complexity_of_a_config() -> None:
    cfg = tiny_config("INPUT.MIN_SIZE_TEST", "64", "INPUT.MAX_SIZE_TEST", "80")
    complexity = measure_complexity(cfg)
    model = build_model(cfg)
    assert complexity.image_size == (60, 80)
    assert complexity.num_parameters == sum(parameter.numel() for parameter in model.parameters())
    assert {"backbone.bottom_up", "decoder.box_stages", "decoder.keypoint_stages"} <= set(complexity.parts)
    assert sum(measure_complexity(cfg, depth=1).flops.values()) == sum(complexity.flops.values())
    larger = measure_complexity(cfg, image_size=(120, 160))
    assert larger.flops["backbone.bottom_up"] > 2 * complexity.flops["backbone.bottom_up"]
    assert larger.parameters == complexity.parameters
    assert measure_complexity(tiny_config(*SHARPOSE), image_size=(120, 160)).image_size == (64, 96)


def test_image_size_for_testing() -> None:
    assert image_size_for_testing(tiny_config()) == (800, 1067)
    assert image_size_for_testing(tiny_config("INPUT.MIN_SIZE_TEST", "0")) == (480, 640)


def test_a_meter_takes_its_hooks_away_and_survives_an_error() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(3, 3))
    clock = iter(range(100))
    with pytest.raises(RuntimeError), PartMeter(model, 1, lambda: next(clock)) as meter:
        model(torch.zeros(1, 2))
    assert all(not layer._forward_hooks and not layer._forward_pre_hooks for layer in model.modules())
    assert [span.end - span.start for span in meter.spans] == [1] * len(meter.spans)
