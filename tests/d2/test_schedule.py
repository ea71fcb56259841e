"""Learning-rate schedules in closed form."""

from __future__ import annotations

import math

import pytest
import torch

from querypose.config import get_cfg
from querypose.d2 import CfgNode, DefaultTrainer


def _cfg() -> CfgNode:
    cfg = get_cfg()
    cfg.SOLVER.BASE_LR = 1.0
    cfg.SOLVER.MAX_ITER = 100
    cfg.SOLVER.STEPS = [50, 80]
    cfg.SOLVER.GAMMA = 0.1
    cfg.SOLVER.WARMUP_ITERS = 10
    cfg.SOLVER.WARMUP_FACTOR = 0.2
    return cfg


def _rates(cfg: CfgNode, factor: float = 1.0) -> list[float]:
    """The rate of every iteration."""
    parameter = torch.nn.Parameter(torch.zeros(()))
    optimizer = torch.optim.SGD([{"params": [parameter], "lr": factor}], lr=1.0)
    scheduler = DefaultTrainer.build_lr_scheduler(cfg, optimizer)
    rates = []
    for _ in range(cfg.SOLVER.MAX_ITER):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


def _warmup(iteration: int) -> float:
    return 0.2 + 0.8 * iteration / 10 if iteration < 10 else 1.0


def test_multi_step() -> None:
    expected = [_warmup(i) * (1.0 if i < 50 else 0.1 if i < 80 else 0.01) for i in range(100)]
    assert _rates(_cfg()) == pytest.approx(expected)
    assert _rates(_cfg(), factor=10.0) == pytest.approx([10 * rate for rate in expected])


def test_constant_warmup_and_none() -> None:
    cfg = _cfg()
    cfg.SOLVER.WARMUP_METHOD = "constant"
    assert _rates(cfg)[:11] == pytest.approx([0.2] * 10 + [1.0])
    cfg.SOLVER.WARMUP_ITERS = 0
    assert _rates(cfg)[0] == pytest.approx(1.0)


def test_cosine() -> None:
    cfg = _cfg()
    cfg.SOLVER.LR_SCHEDULER_NAME = "WarmupCosineLR"
    rates = _rates(cfg)
    cosine = [0.5 * (1 + math.cos(math.pi * i / 100)) for i in range(100)]
    assert rates[10:] == pytest.approx(cosine[10:])
    assert rates[0] == pytest.approx(0.2)
    assert rates[5] == pytest.approx((0.2 + cosine[10]) / 2)


def test_steps_past_the_end_have_no_effect() -> None:
    cfg = _cfg()
    cfg.SOLVER.STEPS = [50, 500]
    assert _rates(cfg)[-1] == pytest.approx(0.1)


def test_state_goes_on_where_it_was() -> None:
    cfg = _cfg()
    parameter = torch.nn.Parameter(torch.zeros(()))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    scheduler = DefaultTrainer.build_lr_scheduler(cfg, optimizer)
    for _ in range(60):
        optimizer.step()
        scheduler.step()
    state = scheduler.state_dict()
    assert state == {"base_lrs": [1.0], "last_epoch": 60}
    other = DefaultTrainer.build_lr_scheduler(cfg, torch.optim.SGD([parameter], lr=1.0))
    other.load_state_dict(state)
    assert other.get_lr() == pytest.approx([0.1])


def test_unknown_schedule_is_refused() -> None:
    cfg = _cfg()
    cfg.SOLVER.LR_SCHEDULER_NAME = "Exponential"
    with pytest.raises(ValueError, match="Exponential"):
        _rates(cfg)
