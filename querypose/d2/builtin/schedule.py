"""Learning-rate schedules: warm-up, then steps or a cosine."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

import torch
from fvcore.common.param_scheduler import CosineParamScheduler, MultiStepParamScheduler, ParamScheduler
from torch.optim.lr_scheduler import LRScheduler

from querypose.d2.builtin.config import CfgNode


class WarmupParamScheduler(ParamScheduler):
    """A schedule with a warm-up in place of its beginning."""

    def __init__(
        self, scheduler: ParamScheduler, warmup_factor: float, warmup_length: float, warmup_method: str = "linear"
    ) -> None:
        """Keeps `scheduler` for the rest.

        Args:
            scheduler: factor of the learning rate by progress in [0, 1].
            warmup_factor: share of its first value at which the warm-up begins.
            warmup_length: progress at which the warm-up ends.
            warmup_method: "linear" up to where `scheduler` goes on, or "constant".

        Raises:
            ValueError: there is no such method.
        """
        if warmup_method not in ("linear", "constant"):
            raise ValueError(f"SOLVER.WARMUP_METHOD is {warmup_method!r}; allowed: 'linear', 'constant'.")
        self._scheduler = scheduler
        self._length = warmup_length
        self._start = warmup_factor * scheduler(0.0)
        self._end = scheduler(warmup_length) if warmup_method == "linear" else self._start

    def __call__(self, where: float) -> float:
        if where >= self._length:
            return float(self._scheduler(where))
        share = where / self._length
        return self._start * (1 - share) + self._end * share


class LRMultiplier(LRScheduler):
    """Multiplies every parameter group's own learning rate by one schedule."""

    def __init__(
        self, optimizer: torch.optim.Optimizer, multiplier: ParamScheduler, max_iter: int, last_iter: int = -1
    ) -> None:
        self._multiplier = multiplier
        self._max_iter = max_iter
        super().__init__(optimizer, last_epoch=last_iter)

    def state_dict(self) -> dict[str, Any]:
        """Base rates and iteration; the schedule itself follows from the config."""
        return {"base_lrs": self.base_lrs, "last_epoch": self.last_epoch}

    def get_lr(self) -> list[float | torch.Tensor]:
        factor = self._multiplier(self.last_epoch / self._max_iter)
        return [base_lr * factor for base_lr in self.base_lrs]


def _multi_step(cfg: CfgNode) -> ParamScheduler:
    solver = cfg.SOLVER
    # Several at one iteration, as of a schedule that was shortened, are one step by all of their factors.
    steps = sorted({step for step in solver.STEPS if step < solver.MAX_ITER})
    if any(step > solver.MAX_ITER for step in solver.STEPS):
        logging.getLogger(__name__).warning(
            "SOLVER.STEPS is %s; steps above SOLVER.MAX_ITER (%d) have no effect.", list(solver.STEPS), solver.MAX_ITER
        )
    counts = [sum(other <= step for other in solver.STEPS) for step in (0, *steps)]
    return MultiStepParamScheduler(
        values=[solver.GAMMA**count for count in counts], milestones=steps, num_updates=solver.MAX_ITER
    )


LR_SCHEDULES: Mapping[str, Callable[[CfgNode], ParamScheduler]] = {
    "WarmupMultiStepLR": _multi_step,
    "WarmupCosineLR": lambda cfg: CosineParamScheduler(1.0, 0.0),
}
"""What comes after the warm-up, by the names of SOLVER.LR_SCHEDULER_NAME."""


def build_lr_scheduler(cfg: CfgNode, optimizer: torch.optim.Optimizer) -> LRMultiplier:
    """The schedule that SOLVER states: WarmupMultiStepLR, or WarmupCosineLR down to zero.

    Raises:
        ValueError: there is no schedule of that name.
    """
    solver = cfg.SOLVER
    if solver.LR_SCHEDULER_NAME not in LR_SCHEDULES:
        known = ", ".join(map(repr, LR_SCHEDULES))
        raise ValueError(f"SOLVER.LR_SCHEDULER_NAME is {solver.LR_SCHEDULER_NAME!r}; allowed: {known}.")
    schedule = LR_SCHEDULES[solver.LR_SCHEDULER_NAME](cfg)
    warmup_length = min(solver.WARMUP_ITERS / solver.MAX_ITER, 1.0)
    warmed_up = WarmupParamScheduler(schedule, solver.WARMUP_FACTOR, warmup_length, solver.WARMUP_METHOD)
    return LRMultiplier(optimizer, warmed_up, max_iter=solver.MAX_ITER)
