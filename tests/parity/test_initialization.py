"""Initialization: every kind of parameter has the distribution that the authors' has after all its resets.

reference_behaviour.md, section 6; compared by moments and bounds, under the authors' names.
"""

from __future__ import annotations

import ast
import math
import re

import pytest
import torch
from torch import Tensor, nn

from querypose.config import get_cfg
from querypose.layers import RealNVP
from querypose.modeling.query_pose.criterion import SetCriterion
from querypose.modeling.query_pose.meta_arch import build_pose_decoder
from querypose.skeleton import COCO_SKELETON
from tests.parity.golden import OfficialView, Pyramid
from tests.parity.stored import read_text

STAGE = r"head\.(pose_)?head_series\.\d+\."
ZERO_BIASES = (
    STAGE + r"(self_attn|kps_self_attn)\.(in_proj_bias|out_proj\.bias)",
    STAGE + r"inst_convs\.\d+\.bias",
    STAGE + r"part_embed_generator\.(LSA_conv|fc|upsample\.1)\.bias",
    STAGE + r".*norm\w*\.bias",
    STAGE + r"(cls|reg)_module\.\d+\.bias",
)


@pytest.fixture(scope="module")
def view() -> OfficialView:
    """A fresh full model of one stage, and the shapes of the authors' first one."""
    cfg = get_cfg()
    cfg.merge_from_list(
        [
            *("MODEL.QUERYPOSE.NUM_STAGES", "1"),
            *("MODEL.QUERYPOSE.INSTANCE_QUERY_ITERATION", "serial"),
            *("MODEL.QUERYPOSE.KEYPOINT.DYNAMIC_INTERACTION", "True"),
        ]
    )
    model = nn.Module()
    torch.manual_seed(0)
    model.decoder = build_pose_decoder(cfg, Pyramid(cfg.MODEL.FPN.OUT_CHANNELS), COCO_SKELETON)
    model.criterion = SetCriterion(flow=RealNVP())
    shapes = {}
    for line in read_text("official_state_dict_res50-full.txt").splitlines():
        name, _, rest = line.partition("\t")
        if not line.startswith("#") and not name.startswith("backbone.") and not re.search(r"_series\.[1-9]", name):
            shapes[name] = torch.empty(ast.literal_eval(rest.split("\t")[0]))
    return OfficialView(shapes, model)


def test_parameters_have_the_authors_distributions(view: OfficialView) -> None:
    checked = 0
    for name in view.state_dict:
        if name in view and view.tensor(name).requires_grad:
            with torch.no_grad():
                check_parameter(name, view.tensor(name), view)
            checked += 1
    assert checked > 140


def check_parameter(name: str, value: Tensor, view: OfficialView) -> None:
    """Section 6, line by line."""
    if name == "init_proposal_boxes.weight":
        assert torch.equal(value, torch.tensor([0.5, 0.5, 1.0, 1.0]).expand_as(value))
    elif name in ("init_proposal_features.weight", "part_query.weight"):
        check_normal(name, value)
    elif name.endswith("class_logits.bias"):
        assert value.item() == pytest.approx(-math.log(99))
    elif any(re.fullmatch(pattern, name) for pattern in ZERO_BIASES):
        assert not value.any(), name
    elif value.dim() == 1 and name.endswith("weight"):
        assert torch.equal(value, torch.ones_like(value)), name
    elif value.dim() == 1:
        # The default of nn.Linear, whose weight stands beside it.
        fan_in = view.state_dict[name.removesuffix("bias") + "weight"].shape[1]
        check_uniform(name, value, bound=1 / math.sqrt(fan_in))
    elif name.startswith("criterion.flow."):
        check_uniform(name, value, bound=1 / math.sqrt(value.shape[1]))
    else:
        receptive_field = value[0][0].numel()
        fans = (value.shape[0] + value.shape[1]) * receptive_field
        check_uniform(name, value, bound=math.sqrt(6 / fans))


def check_uniform(name: str, value: Tensor, bound: float) -> None:
    """Uniform in [-bound, bound]: mean, spread, shape and extremes, each within five standard errors."""
    value = value.double().flatten() / bound
    count = value.numel()
    assert value.abs().max() <= 1 + 1e-6, name
    # Among n uniform values none is above 1 - d with probability (1 - d)^n.
    assert value.abs().max() >= 1 - 10 / count, name
    assert value.mean().abs() < 5 * math.sqrt(1 / 3 / count), name
    # The variance of x² is 4/45, of x⁴ 16/225.
    assert abs(value.square().mean() - 1 / 3) < 5 * math.sqrt(4 / 45 / count), name
    assert abs(value.pow(4).mean() - 1 / 5) < 5 * math.sqrt(16 / 225 / count), name


def check_normal(name: str, value: Tensor) -> None:
    """Standard normal, likewise."""
    value = value.double().flatten()
    count = value.numel()
    assert value.mean().abs() < 5 / math.sqrt(count), name
    assert abs(value.square().mean() - 1) < 5 * math.sqrt(2 / count), name
    assert abs(value.pow(4).mean() - 3) < 5 * math.sqrt(96 / count), name
