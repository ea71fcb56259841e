from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from querypose.engine import PoseTrainer, build_optimizer
from querypose.engine.optimizer import is_bias
from tests.engine.toy_pose import toy_cfg, toy_model, write_toy_config

DECAYS: dict[str, Any] = {"weight_decay": 0.1, "weight_decay_norm": 0.2, "weight_decay_bias": 0.3}


class Mixed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 3, 1)
        self.norm = nn.BatchNorm2d(3)
        self.attention = nn.MultiheadAttention(4, 2)
        self.layer_norm = nn.LayerNorm(4)
        self.queries = nn.Embedding(5, 4)
        self.flow = nn.Linear(4, 4)
        self.tied = self.flow
        self.frozen = nn.Linear(4, 4).requires_grad_(False)


def settings_by_name(model: nn.Module, groups: list[dict[str, Any]]) -> dict[str, tuple[float, float]]:
    names = {parameter: name for name, parameter in model.named_parameters()}
    return {names[p]: (group["lr"], group["weight_decay"]) for group in groups for p in group["params"]}


def test_each_parameter_gets_the_rate_and_the_decay_of_its_name_and_kind() -> None:
    model = Mixed()
    factors = [("flow.", 10.0), ("conv", 0.5), ("flow", 7.0)]
    optimizer = build_optimizer(model, base_lr=2.0, lr_factors=factors, **DECAYS)
    settings = settings_by_name(model, optimizer.param_groups)
    assert settings == {
        "conv.weight": (1.0, 0.1),
        "conv.bias": (1.0, 0.3),
        "norm.weight": (2.0, 0.2),
        "norm.bias": (2.0, 0.3),
        "attention.in_proj_weight": (2.0, 0.1),
        "attention.in_proj_bias": (2.0, 0.3),
        "attention.out_proj.weight": (2.0, 0.1),
        "attention.out_proj.bias": (2.0, 0.3),
        "layer_norm.weight": (2.0, 0.2),
        "layer_norm.bias": (2.0, 0.3),
        "queries.weight": (2.0, 0.1),
        "flow.weight": (20.0, 0.1),
        "flow.bias": (20.0, 0.3),
    }


def test_groups_are_as_few_as_different_settings() -> None:
    groups = build_optimizer(Mixed(), base_lr=2.0, lr_factors=[("flow.", 10.0)], **DECAYS).param_groups
    assert [(group["lr"], group["weight_decay"]) for group in groups] == [
        (2.0, 0.1), (2.0, 0.3), (2.0, 0.2), (20.0, 0.1), (20.0, 0.3),
    ]  # fmt: skip


def test_a_bias_is_told_by_its_own_name_alone() -> None:
    assert [is_bias(name) for name in ("bias", "in_proj_bias", "weight", "biased", "bias_k")] == [
        True, True, False, False, False,
    ]  # fmt: skip


def test_the_update_equals_that_of_one_group_per_tensor() -> None:
    ours, reference = toy_model(seed=3), toy_model(seed=3)
    optimizer = build_optimizer(
        ours, base_lr=0.01, lr_factors=[("flow.", 10.0)], betas=(0.8, 0.99),
        weight_decay=0.1, weight_decay_norm=0.0, weight_decay_bias=0.05,
    )  # fmt: skip
    assert optimizer.param_groups[0]["fused"]
    single = []
    for name, parameter in reference.named_parameters():
        decay = 0.05 if name.endswith("bias") else 0.0 if name.startswith("norm") else 0.1
        single.append({"params": [parameter], "lr": 0.1 if "flow" in name else 0.01, "weight_decay": decay})
    per_tensor = torch.optim.AdamW(single, betas=(0.8, 0.99), foreach=False, fused=False)
    generator = torch.Generator().manual_seed(1)
    for _ in range(5):
        for parameter, other in zip(ours.parameters(), reference.parameters(), strict=True):
            parameter.grad = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
            other.grad = parameter.grad.clone()
        optimizer.step()
        per_tensor.step()
    for parameter, other in zip(ours.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(parameter, other, rtol=0, atol=1e-12)


def test_a_factor_that_fits_nothing_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="querypose.engine.optimizer"):
        build_optimizer(Mixed(), base_lr=1.0, lr_factors=[("flow.", 2.0), ("criterion.flow", 2.0)], **DECAYS)
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == 1
    assert "'criterion.flow'" in messages[0]
    assert "SOLVER.LR_FACTORS" in messages[0]


def test_a_model_without_trainable_parameters_is_refused() -> None:
    with pytest.raises(ValueError, match="Linear has no trainable parameter"):
        build_optimizer(
            nn.Linear(2, 2).requires_grad_(False),
            base_lr=1.0,
            weight_decay=0.0,
            weight_decay_norm=0.0,
            weight_decay_bias=0.0,
        )


def test_schedule_of_the_config(tmp_path: Path) -> None:
    config_file = write_toy_config(
        tmp_path, MAX_ITER=100, STEPS=[60, 80], GAMMA=0.1, WARMUP_ITERS=10, WARMUP_FACTOR=0.01, BASE_LR=0.5
    )
    cfg = toy_cfg(config_file)
    optimizer = PoseTrainer.build_optimizer(cfg, toy_model())
    scheduler = PoseTrainer.build_lr_scheduler(cfg, optimizer)
    rates = []
    for _ in range(100):
        rates.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        scheduler.step()
    factors = {0: 0.01, 5: 0.01 + 0.99 * 0.5, 10: 1.0, 59: 1.0, 60: 0.1, 79: 0.1, 80: 0.01, 99: 0.01}
    for iteration, factor in factors.items():
        assert min(rates[iteration]) == pytest.approx(0.5 * factor), iteration
        assert max(rates[iteration]) == pytest.approx(2 * 0.5 * factor), iteration


def test_paper_settings_are_the_defaults() -> None:
    from querypose.config import get_cfg

    cfg = get_cfg()

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.criterion = nn.ModuleDict({"flow": nn.Linear(2, 2)})
            self.norm = nn.LayerNorm(2)

    optimizer = PoseTrainer.build_optimizer(cfg, Model())
    assert sorted((group["lr"], group["weight_decay"]) for group in optimizer.param_groups) == [
        (pytest.approx(2.5e-5), 1e-4), (pytest.approx(2.5e-4), 1e-4),
    ]  # fmt: skip
    assert all(tuple(group["betas"]) == (0.9, 0.999) for group in optimizer.param_groups)
