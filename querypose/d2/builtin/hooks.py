"""The hooks that every training has: timing, learning rate, evaluation, writers.

Deviates: detectron2 has further ones; those for checkpoints are in `querypose.engine.hooks`.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import Any

from fvcore.common.timer import Timer

from querypose.d2.builtin import comm
from querypose.d2.builtin.evaluation import flatten_results_dict
from querypose.d2.builtin.train_loop import HookBase
from querypose.d2.builtin.writers import EventWriter

__all__ = ["EvalHook", "IterationTimer", "LRScheduler", "PeriodicWriter"]


class IterationTimer(HookBase):
    """Stores the seconds of every iteration as "time", and logs the speed at the end. Register it first."""

    def __init__(self, warmup_iter: int = 3) -> None:
        """Starts no clock yet.

        Args:
            warmup_iter: iterations at the beginning that are not timed.
        """
        self._warmup_iter = warmup_iter
        self._step_timer = Timer()
        self._total_timer = Timer()
        self._start_time = time.perf_counter()

    def before_train(self) -> None:
        self._start_time = time.perf_counter()
        self._total_timer.reset()
        self._total_timer.pause()

    def before_step(self) -> None:
        self._step_timer.reset()
        self._total_timer.resume()

    def after_step(self) -> None:
        done = self.trainer.iter - self.trainer.start_iter + 1
        if done >= self._warmup_iter:
            self.trainer.storage.put_scalars(time=self._step_timer.seconds())
        else:
            self._start_time = time.perf_counter()
            self._total_timer.reset()
        self._total_timer.pause()

    def after_train(self) -> None:
        logger = logging.getLogger(__name__)
        total = timedelta(seconds=int(time.perf_counter() - self._start_time))
        in_steps = self._total_timer.seconds()
        text = timedelta(seconds=int(in_steps))
        count = self.trainer.iter + 1 - self.trainer.start_iter - self._warmup_iter
        if count > 0 and in_steps > 0:
            logger.info("Overall training speed: %d iterations in %s (%.4f s / it)", count, text, in_steps / count)
        logger.info("Total training time: %s (%s on hooks)", total, total - text)


class LRScheduler(HookBase):
    """Steps the trainer's learning-rate schedule after every iteration, and stores the rate as "lr".

    Deviates: detectron2's can be given another optimizer and schedule than the trainer's.
    """

    def before_train(self) -> None:
        """Chooses the group whose rate is shown: one number has to stand for all, that of most parameters."""
        counts: Counter[float] = Counter()
        for group in self.trainer.optimizer.param_groups:
            counts[group["initial_lr"]] += len(group["params"])
        [(most_common, _)] = counts.most_common(1)
        self._group = next(group for group in self.trainer.optimizer.param_groups if group["initial_lr"] == most_common)

    def after_step(self) -> None:
        self.trainer.storage.put_scalar("lr", self._group["lr"], smoothing_hint=False)
        self.trainer.scheduler.step()

    def state_dict(self) -> dict[str, Any]:
        state: dict[str, Any] = self.trainer.scheduler.state_dict()
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        logging.getLogger(__name__).info("Loading scheduler from state_dict ...")
        self.trainer.scheduler.load_state_dict(state_dict)


class PeriodicWriter(HookBase):
    """Lets writers write every `period` iterations and after the last one. Register it last."""

    def __init__(self, writers: Sequence[EventWriter], period: int = 20) -> None:
        self._writers = writers
        self._period = period

    def after_step(self) -> None:
        next_iter = self.trainer.iter + 1
        if next_iter % self._period == 0 or next_iter == self.trainer.max_iter:
            for writer in self._writers:
                writer.write()

    def after_train(self) -> None:
        for writer in self._writers:
            writer.write()
            writer.close()


class EvalHook(HookBase):
    """Evaluates every `eval_period` iterations and at the end. All processes must have it."""

    def __init__(self, eval_period: int, eval_function: Callable[[], Any]) -> None:
        """Evaluates nothing yet.

        Args:
            eval_period: iterations between two evaluations; 0: at the end alone.
            eval_function: gives nested dicts of metrics, which are stored under names like "keypoints/AP".
        """
        self._period = eval_period
        self._func: Callable[[], Any] | None = eval_function

    def after_step(self) -> None:
        next_iter = self.trainer.iter + 1
        if self._period > 0 and next_iter % self._period == 0 and next_iter != self.trainer.max_iter:
            self._evaluate()

    def after_train(self) -> None:
        """Evaluates, unless training failed, and lets the function go: it may hold the trainer."""
        if self.trainer.iter >= self.trainer.max_iter:
            self._evaluate()
        self._func = None

    def _evaluate(self) -> None:
        results = self._func() if self._func is not None else None
        if results:
            if not isinstance(results, Mapping):
                raise AssertionError(f"An evaluation gives a dict, not a {type(results).__name__}.")
            metrics = flatten_results_dict(results)
            for name, value in metrics.items():
                try:
                    metrics[name] = float(value)
                except (TypeError, ValueError) as error:
                    raise ValueError(f"An evaluation gives dicts of floats, but {name!r} is {value!r}.") from error
            self.trainer.storage.put_scalars(**metrics, smoothing_hint=False)
        # Rank 0 takes longer: it computes the metrics.
        comm.synchronize()
