"""The common hooks: timing, learning rate, checkpoints, evaluation, writers."""

from __future__ import annotations

import logging
import math
import operator
import os
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import Any

import torch
from fvcore.common.param_scheduler import ParamScheduler
from fvcore.common.timer import Timer

from querypose.d2.builtin import comm
from querypose.d2.builtin.checkpoint import PeriodicCheckpointer as _PeriodicCheckpointer
from querypose.d2.builtin.evaluation import flatten_results_dict
from querypose.d2.builtin.schedule import LRMultiplier
from querypose.d2.builtin.train_loop import HookBase
from querypose.d2.builtin.writers import EventWriter

__all__ = [
    "BestCheckpointer",
    "CallbackHook",
    "EvalHook",
    "HookBase",
    "IterationTimer",
    "LRScheduler",
    "PeriodicCheckpointer",
    "PeriodicWriter",
]


class CallbackHook(HookBase):
    """A hook made of functions, each called with the trainer."""

    def __init__(
        self,
        *,
        before_train: Callable[[Any], object] | None = None,
        after_train: Callable[[Any], object] | None = None,
        before_step: Callable[[Any], object] | None = None,
        after_step: Callable[[Any], object] | None = None,
    ) -> None:
        self._callbacks = {
            "before_train": before_train,
            "after_train": after_train,
            "before_step": before_step,
            "after_step": after_step,
        }

    def _call(self, moment: str) -> None:
        callback = self._callbacks[moment]
        if callback is not None:
            callback(self.trainer)

    def before_train(self) -> None:
        """Calls the function of that name."""
        self._call("before_train")

    def after_train(self) -> None:
        """Calls the function of that name, and lets all of them go: they may hold the trainer."""
        self._call("after_train")
        self._callbacks = dict.fromkeys(self._callbacks)

    def before_step(self) -> None:
        """Calls the function of that name."""
        self._call("before_step")

    def after_step(self) -> None:
        """Calls the function of that name."""
        self._call("after_step")


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
        """Starts the clocks."""
        self._start_time = time.perf_counter()
        self._total_timer.reset()
        self._total_timer.pause()

    def before_step(self) -> None:
        """Starts timing the iteration."""
        self._step_timer.reset()
        self._total_timer.resume()

    def after_step(self) -> None:
        """Stores the time of the iteration, once the warm-up is over."""
        done = self.trainer.iter - self.trainer.start_iter + 1
        if done >= self._warmup_iter:
            self.trainer.storage.put_scalars(time=self._step_timer.seconds())
        else:
            self._start_time = time.perf_counter()
            self._total_timer.reset()
        self._total_timer.pause()

    def after_train(self) -> None:
        """Logs speed and total time."""
        logger = logging.getLogger(__name__)
        total = time.perf_counter() - self._start_time
        in_steps = self._total_timer.seconds()
        count = self.trainer.iter + 1 - self.trainer.start_iter - self._warmup_iter
        if count > 0 and in_steps > 0:
            logger.info(
                "Overall training speed: %d iterations in %s (%.4f s / it)", count, _seconds(in_steps), in_steps / count
            )
        logger.info("Total training time: %s (%s on hooks)", _seconds(total), _seconds(total - in_steps))


def _seconds(seconds: float) -> str:
    return str(timedelta(seconds=int(seconds)))


class LRScheduler(HookBase):
    """Steps the learning-rate schedule after every iteration, and stores the rate as "lr"."""

    def __init__(self, optimizer: Any = None, scheduler: Any = None) -> None:
        """What is not given is taken from the trainer.

        Args:
            optimizer: a torch optimizer.
            scheduler: a torch LRScheduler, or an fvcore ParamScheduler that gives a factor of the learning rates.
        """
        self._optimizer = optimizer
        self._scheduler = scheduler

    def before_train(self) -> None:
        """Takes what was not given from the trainer."""
        self._optimizer = self._optimizer or self.trainer.optimizer
        if isinstance(self.scheduler, ParamScheduler):
            self._scheduler = LRMultiplier(
                self._optimizer, self.scheduler, self.trainer.max_iter, last_iter=self.trainer.iter - 1
            )
        # One figure has to stand for all groups: the rate that most parameters have at the start.
        counts: Counter[float] = Counter()
        for group in self._optimizer.param_groups:
            counts[group.get("initial_lr", group["lr"])] += len(group["params"])
        most_common = counts.most_common(1)[0][0]
        self._group = next(
            group for group in self._optimizer.param_groups if group.get("initial_lr", group["lr"]) == most_common
        )

    def after_step(self) -> None:
        """Stores the rate of this iteration, and sets that of the next."""
        self.trainer.storage.put_scalar("lr", self._group["lr"], smoothing_hint=False)
        self.scheduler.step()

    @property
    def scheduler(self) -> Any:
        """The schedule: that which was given, else the trainer's."""
        return self._scheduler or self.trainer.scheduler

    def state_dict(self) -> dict[str, Any]:
        """The schedule's state."""
        if isinstance(self.scheduler, torch.optim.lr_scheduler.LRScheduler):
            return self.scheduler.state_dict()
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes up the schedule's state."""
        if isinstance(self.scheduler, torch.optim.lr_scheduler.LRScheduler):
            logging.getLogger(__name__).info("Loading scheduler from state_dict ...")
            self.scheduler.load_state_dict(state_dict)


class PeriodicCheckpointer(_PeriodicCheckpointer, HookBase):
    """The `PeriodicCheckpointer` as a hook."""

    def before_train(self) -> None:
        """Takes the number of iterations from the trainer."""
        self.max_iter = self.trainer.max_iter

    def after_step(self) -> None:
        """Saves if it is time."""
        self.step(self.trainer.iter)


class PeriodicWriter(HookBase):
    """Lets writers write every `period` iterations and after the last one. Register it last."""

    def __init__(self, writers: Sequence[EventWriter], period: int = 20) -> None:
        for writer in writers:
            if not isinstance(writer, EventWriter):
                raise AssertionError(f"A writer is an EventWriter, not a {type(writer).__name__}.")
        self._writers = writers
        self._period = period

    def after_step(self) -> None:
        """Writes if it is time."""
        next_iter = self.trainer.iter + 1
        if next_iter % self._period == 0 or next_iter == self.trainer.max_iter:
            for writer in self._writers:
                writer.write()

    def after_train(self) -> None:
        """Writes what other hooks stored at the end, and closes the writers."""
        for writer in self._writers:
            writer.write()
            writer.close()


def _is_evaluation_time(trainer: Any, period: int) -> bool:
    """Whether an evaluation is due after the current iteration; that after the last one belongs to `after_train`."""
    next_iter = trainer.iter + 1
    return period > 0 and next_iter % period == 0 and next_iter != trainer.max_iter


class EvalHook(HookBase):
    """Evaluates every `eval_period` iterations and at the end. All processes must have it."""

    def __init__(self, eval_period: int, eval_function: Callable[[], Any], eval_after_train: bool = True) -> None:
        """Evaluates nothing yet.

        Args:
            eval_period: iterations between two evaluations; 0: at the end alone.
            eval_function: gives nested dicts of figures, which are stored under names like "keypoints/AP".
            eval_after_train: whether to evaluate at the end.
        """
        self._period = eval_period
        self._func: Callable[[], Any] | None = eval_function
        self._eval_after_train = eval_after_train

    def after_step(self) -> None:
        """Evaluates if it is time."""
        if _is_evaluation_time(self.trainer, self._period):
            self._evaluate()

    def after_train(self) -> None:
        """Evaluates, unless training failed, and lets the function go: it may hold the trainer."""
        if self._eval_after_train and self.trainer.iter >= self.trainer.max_iter:
            self._evaluate()
        self._func = None

    def _evaluate(self) -> None:
        results = self._func() if self._func is not None else None
        if results:
            if not isinstance(results, Mapping):
                raise AssertionError(f"An evaluation gives a dict, not a {type(results).__name__}.")
            figures = flatten_results_dict(results)
            for name, value in figures.items():
                try:
                    figures[name] = float(value)
                except (TypeError, ValueError) as error:
                    raise ValueError(f"An evaluation gives dicts of floats, but {name!r} is {value!r}.") from error
            self.trainer.storage.put_scalars(**figures, smoothing_hint=False)
        # Rank 0 takes longer: it computes the figures.
        comm.synchronize()


class BestCheckpointer(HookBase):
    """Keeps the checkpoint with the best value of a metric. Register it after the hook that computes the metric.

    Deviates: the file last_checkpoint keeps naming the latest checkpoint, so that training resumes from there; and the
    best value survives resuming.
    """

    def __init__(
        self, eval_period: int, checkpointer: Any, val_metric: str, mode: str = "max", file_prefix: str = "model_best"
    ) -> None:
        """Saves nothing yet.

        Args:
            eval_period: that of the `EvalHook`.
            checkpointer: does the saving.
            val_metric: such as "keypoints/AP".
            mode: "max" or "min".
            file_prefix: name of the checkpoint.
        """
        if mode not in ("max", "min"):
            raise AssertionError(f"mode is {mode!r}; allowed: 'max', 'min'.")
        self._period = eval_period
        self._checkpointer = checkpointer
        self._val_metric = val_metric
        self._is_better = operator.gt if mode == "max" else operator.lt
        self._file_prefix = file_prefix
        self.best_metric: float | None = None
        self.best_iter: int | None = None

    def after_step(self) -> None:
        """Saves if there was an evaluation and it was the best."""
        if _is_evaluation_time(self.trainer, self._period):
            self._save_if_best()

    def after_train(self) -> None:
        """Saves if the last evaluation was the best."""
        if self.trainer.iter >= self.trainer.max_iter:
            self._save_if_best()

    def state_dict(self) -> dict[str, Any]:
        """The best value and its iteration."""
        return {} if self.best_metric is None else {"best_metric": self.best_metric, "best_iter": self.best_iter}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Takes up the best value and its iteration."""
        self.best_metric, self.best_iter = state_dict["best_metric"], state_dict["best_iter"]

    def _save_if_best(self) -> None:
        logger = logging.getLogger(__name__)
        if self._val_metric not in self.trainer.storage.latest():
            logger.warning(
                "There is no metric %r, so the best checkpoint cannot be kept; there are %s.",
                self._val_metric,
                sorted(self.trainer.storage.latest()),
            )
            return
        value, iteration = self.trainer.storage.latest()[self._val_metric]
        if not math.isfinite(value) or (self.best_metric is not None and not self._is_better(value, self.best_metric)):
            logger.info("%s is %.5f; the best is %s.", self._val_metric, value, self.best_metric)
            return
        self.best_metric, self.best_iter = value, iteration
        latest = os.path.basename(self._checkpointer.get_checkpoint_file())
        self._checkpointer.save(self._file_prefix, iteration=iteration)
        if latest:
            self._checkpointer.tag_last_checkpoint(latest)
        logger.info("%s is %.5f, the best so far; saved as %s.", self._val_metric, value, self._file_prefix)
