"""The hooks of a training: saving, stopping, the best weights, the averaged weights, writers, and a user's own.

A user's hook is a subclass of `querypose.d2.HookBase` in HOOK_REGISTRY, and the key HOOKS names it:

    @HOOK_REGISTRY.register()
    class Freeze(HookBase):
        def __init__(self, until: int) -> None: ...

        @classmethod
        def from_config(cls, cfg, trainer):    # left out by a hook without arguments
            return {"until": cfg.FREEZE_UNTIL}

A checkpoint is taken in the midst of the hooks of an iteration: after the schedule, the averaged weights and the user's
hooks, before the evaluation and the writers, so that an evaluation that fails costs no training. A run that goes on
therefore begins with the rest of that iteration's hooks (`RunState.finish_iteration`).
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from querypose.config import ConfigError
from querypose.d2 import CfgNode, EventWriter, HookBase, JSONWriter, Registry, RunStopped, atomic_write, comm
from querypose.engine.checkpointer import RunCheckpointer
from querypose.engine.ema import ExponentialMovingAverage
from querypose.engine.stop_signal import STOPPED_EXIT_CODE, StopSignal
from querypose.lost_output import note_loss

HOOK_REGISTRY = Registry("HOOK")
HOOK_REGISTRY.__doc__ = "Hooks that the key HOOKS may name."

_logger = logging.getLogger(__name__)

# The engine's timer gives it in every iteration but the first few of a process.
_TIME = "time"
_FINAL = "model_final"


@HOOK_REGISTRY.register()
class CPUTime(HookBase):
    """Writes `cpu_seconds`: the CPU time that this process has spent on training, evaluations apart.

    On a machine that others use too, models are compared by it. What loader processes spend is not in it: with
    DATALOADER.NUM_WORKERS 0 this process loads.

    Args:
        clock: gives seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.process_time) -> None:
        self.seconds = 0.0
        self._clock = clock
        self._start = 0.0

    def before_step(self) -> None:
        self._start = self._clock()

    def after_step(self) -> None:
        self.seconds += self._clock() - self._start
        self.trainer.storage.put_scalar("cpu_seconds", self.seconds, smoothing_hint=False)

    def state_dict(self) -> dict[str, Any]:
        return {"seconds": self.seconds}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        self.seconds = state_dict["seconds"]


def build_hooks(cfg: CfgNode, trainer: Any) -> list[HookBase]:
    """The hooks that HOOKS names, in its order; `trainer` may be a weak reference."""
    hooks = []
    for name in cfg.HOOKS:
        hook = HOOK_REGISTRY.get(name)
        hooks.append(hook(**hook.from_config(cfg, trainer)) if hasattr(hook, "from_config") else hook())
    return hooks


class PeriodicCheckpointer(HookBase):
    """Saves every `period` iterations, at the end, and when SIGTERM or SIGINT stops the run. All processes need it.

    Deviates: detectron2's saves neither random states nor the position in the data, and knows no signals.

    Args:
        checkpointer: does the saving, on the main process.
        period: iterations between two checkpoints.
        keep: how many periodic checkpoints stay; 0: all.
        run_state: further entries of a checkpoint; all processes call it together.
    """

    def __init__(
        self, checkpointer: RunCheckpointer, period: int, keep: int, run_state: Callable[[], dict[str, Any]]
    ) -> None:
        self._checkpointer = checkpointer
        self._period = period
        self._keep = keep
        self._run_state = run_state
        self._saved: int | None = None
        self._stop = StopSignal()

    def before_train(self) -> None:
        self._checkpointer.begin(anew=self.trainer.start_iter == 0)
        self._stop.install()

    def after_step(self) -> None:
        """Saves if it is time.

        Raises:
            RunStopped: the processes have agreed to stop; the state is on the disk.
            OSError: a checkpoint could not be written.
        """
        trainer = self.trainer
        self._checkpointer.check()
        stops = self._stop.is_agreed()
        if stops or (trainer.iter + 1) % self._period == 0:
            self._save(f"model_{trainer.iter:07d}")
        if trainer.iter + 1 == trainer.max_iter:
            self._save(_FINAL)
        if stops:
            self._checkpointer.wait()
            comm.synchronize()  # none ends before all is written
            _logger.info(f"Stopped after iteration {trainer.iter}. To go on, run the same command with --resume.")
            raise RunStopped(STOPPED_EXIT_CODE)
        if trainer.iter == trainer.start_iter:
            trainer.step.gather_state()  # in every process; `prepare` reads the state of the step in the main one alone
            self._checkpointer.prepare()  # now that the optimizer has its state

    def finish(self) -> None:
        """Saves model_final.pth where a run goes on from another checkpoint of its last iteration."""
        is_saved = self._checkpointer.resumed_from == f"{_FINAL}.pth"
        if self.trainer.iter + 1 == self.trainer.max_iter and not is_saved:
            self._save(_FINAL)

    def is_overdue(self) -> bool:
        """Whether a signal is to stop the run, and waiting for a batch has taken too long since then."""
        return self._stop.is_overdue()

    def stop_waiting(self, hooks_done: bool) -> None:
        """Saves and stops the run, which waits for a batch in vain.

        Args:
            hooks_done: of the iteration that has ended last; else the run that goes on begins with the rest of them.

        Raises:
            RunStopped: always. What cannot be saved is said: several processes could save only together.
        """
        trainer = self.trainer
        is_alone = comm.get_world_size() == 1
        if is_alone and trainer.start_iter <= trainer.iter < trainer.max_iter and trainer.iter != self._saved:
            self._save(f"model_{trainer.iter:07d}", hooks_done=hooks_done)
        self._checkpointer.wait()
        _logger.warning(
            "The data loader gives no batch, so that the run stops without it. "
            + ("" if is_alone else "Nothing was saved, as the processes do not meet: the last checkpoint counts. ")
            + "To go on, run the same command with --resume."
        )
        raise RunStopped(STOPPED_EXIT_CODE)

    def after_train(self) -> None:
        """Waits for the last file, and gives the signals back unless they have stopped the run."""
        self._checkpointer.wait()
        if not self._stop.is_requested:
            self._stop.release(wait=self.trainer.iter >= self.trainer.max_iter)

    def _save(self, name: str, **entries: Any) -> None:
        self._saved = self.trainer.iter
        self._checkpointer.save(name, keep=self._keep, iteration=self._saved, **self._run_state(), **entries)


class BestCheckpointer(HookBase):
    """Keeps the weights with the greatest value of a metric as model_best.pth, after evaluations during training.

    Deviates: with detectron2's the last checkpoint is then the best one, and resuming forgets what the best value was.

    Args:
        checkpointer: does the saving.
        metric: such as "keypoints/AP"; greater is better. Of a task, "keypoints", it is the first metric.
        period: that of the evaluation.
    """

    def __init__(self, checkpointer: RunCheckpointer, metric: str, period: int) -> None:
        self._checkpointer = checkpointer
        self._metric = metric
        self._period = period
        self.best: dict[str, Any] = {}

    def after_step(self) -> None:
        if (self.trainer.iter + 1) % self._period == 0 and self.trainer.iter + 1 != self.trainer.max_iter:
            self._save_if_best()

    def after_train(self) -> None:
        if self.trainer.iter >= self.trainer.max_iter:
            self._save_if_best()
            self._checkpointer.wait()

    def state_dict(self) -> dict[str, Any]:
        """The metric's name, its best value, and the iteration it was reached in."""
        return self.best

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Takes up the best value so far; that of another metric is forgotten."""
        self.best = dict(state_dict) if self._is_meant(state_dict["metric"]) else {}

    def _save_if_best(self) -> None:
        if not comm.is_main_process():
            return  # it alone has the metrics
        latest = self.trainer.storage.latest()
        metric = next(filter(self._is_meant, latest), None)
        if metric is None:
            _logger.warning(
                f"model_best.pth is not written: TEST.BEST_METRIC is {self._metric!r}, and the evaluation gives "
                f"no such metric. Choose one of: {', '.join(name for name in sorted(latest) if '/' in name)}."
            )
            return
        value, iteration = latest[metric]
        if math.isfinite(value) and value > self.best.get("value", -math.inf):
            self.best = {"metric": metric, "value": value, "iteration": iteration}
            self._checkpointer.save_weights("model_best", iteration=iteration, best=self.best)

    def _is_meant(self, name: str) -> bool:
        return self._metric in (name, name.rpartition("/")[0])


class EarlyStopping(HookBase):
    """Ends a training whose metric has not risen for some evaluations; the last weights are saved and evaluated.

    It acts in the iteration after an evaluation, so that a run that goes on from a checkpoint ends where it would have.

    Args:
        metric: such as "progress/OKS"; greater is better.
        period: iterations between two evaluations.
        patience: evaluations without a new best value that end the training.
    """

    def __init__(self, metric: str, period: int, patience: int) -> None:
        self._metric = metric
        self._period = period
        self._patience = patience
        self._best = -math.inf
        self._num_without = 0

    def after_step(self) -> None:
        trainer = self.trainer
        if trainer.iter == 0 or trainer.iter % self._period:
            return
        if comm.is_main_process():  # it alone has the metrics
            self._take(trainer.storage.latest())
        if not comm.all_gather(self._num_without >= self._patience)[0]:
            return
        _logger.info(
            f"{self._metric} has not risen above {self._best:.2f} in the last {self._num_without} evaluations. The "
            "training ends early (TEST.EARLY_STOPPING)."
        )
        trainer.max_iter = trainer.iter + 1
        trainer.step.write_scalars()  # as the last iteration does

    def state_dict(self) -> dict[str, Any]:
        """The metric's name, its best value, and the number of evaluations since."""
        return {"metric": self._metric, "best": self._best, "num_without": self._num_without}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Takes up the count; that of another metric is forgotten."""
        if state_dict["metric"] == self._metric:
            self._best, self._num_without = state_dict["best"], state_dict["num_without"]

    def _take(self, latest: Mapping[str, tuple[float, int]]) -> None:
        if self._metric not in latest:
            raise ConfigError(
                f"TEST.EARLY_STOPPING.METRIC is {self._metric!r}, and the evaluation gives no such metric. Choose one "
                f"of: {', '.join(name for name in sorted(latest) if '/' in name)}."
            )
        value = latest[self._metric][0]
        if value > self._best:
            self._best, self._num_without = value, 0
        else:  # NaN too
            self._num_without += 1


class EMAHook(HookBase):
    """Takes the weights into the average after every iteration."""

    def __init__(self, average: ExponentialMovingAverage) -> None:
        self._average = average

    def after_step(self) -> None:
        self._average.update()


class PeriodicWriter(HookBase):
    """Lets writers write every `period` iterations and at the end; a run that goes on loses no line and repeats none.

    It opens the writers when training begins: a trainer that is only built opens no file. Its state is the scalars that
    no writer has written yet.

    Args:
        build_writers: called on the main process when training begins.
        period: iterations between two lines.
        metrics_file: what the `JSONWriter` writes.
    """

    def __init__(self, build_writers: Callable[[], Sequence[EventWriter]], period: int, metrics_file: Path) -> None:
        self._build_writers = build_writers
        self._period = period
        self._metrics_file = metrics_file
        self._writers: list[EventWriter] = []
        self._written: int | None = None
        self._pending: list[tuple[str, float, int, bool]] = []

    def before_train(self) -> None:
        if not comm.is_main_process():
            return
        for name, value, iteration, smoothing_hint in self._pending:
            self.trainer.storage.put_scalar(name, value, smoothing_hint=smoothing_hint, cur_iter=iteration)
        if self._written is None:
            self._written = self.trainer.start_iter - 1
        # A killed run wrote lines after its last checkpoint; those iterations come again.
        drop_lines_after(self._metrics_file, self._written if self.trainer.continues else math.inf)
        self._writers = list(self._build_writers())

    def after_step(self) -> None:
        is_time = (self.trainer.iter + 1) % self._period == 0
        if is_time or self.trainer.iter + 1 == self.trainer.max_iter:
            self._write()
        if is_time:
            self._written = self.trainer.iter

    def after_train(self) -> None:
        self._write()
        for writer in self._writers:
            with self._losses_noted(writer):
                writer.close()

    def _write(self) -> None:
        """Lets every writer write. One that cannot is closed, and the training goes on without it."""
        for writer in list(self._writers):
            with self._losses_noted(writer):
                writer.write()
                continue
            self._writers.remove(writer)
            with contextlib.suppress(OSError):
                writer.close()

    @contextlib.contextmanager
    def _losses_noted(self, writer: EventWriter) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            folder = self._metrics_file.parent
            is_json = isinstance(writer, JSONWriter)
            note_loss(str(self._metrics_file if is_json else f"{folder} (by {type(writer).__name__})"), error)

    def state_dict(self) -> dict[str, Any]:
        """The last iteration that was written, and the scalars since, with the hints that writers smooth them by."""
        if self._written is None:
            return {}
        storage = self.trainer.storage
        hints = storage.smoothing_hints()
        latest = [(name, value, iteration, hints[name]) for name, (value, iteration) in storage.latest().items()]
        pending = [scalar for scalar in latest if scalar[2] > self._written and scalar[0] != _TIME]
        return {"written": self._written, "pending": pending}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        self._written = state_dict["written"]
        self._pending = [tuple(scalar) for scalar in state_dict["pending"]]


def drop_lines_after(metrics_file: Path, iteration: float) -> None:
    """Takes the lines of later iterations out of a metrics.json, and those that are damaged or cut off."""
    if not metrics_file.is_file():
        return
    lines = metrics_file.read_bytes().splitlines(keepends=True)
    iterations = [_iteration_of(line) for line in lines]
    kept = [line for line, number in zip(lines, iterations, strict=True) if number is not None and number <= iteration]
    if len(kept) < len(lines):
        late = sum(number is not None for number in iterations) - len(kept)
        if late:
            _logger.info(f"{metrics_file}: {late} lines written after the checkpoint were removed.")
        if damaged := len(lines) - len(kept) - late:
            _logger.warning(f"{metrics_file}: {damaged} damaged lines were removed.")
        with atomic_write(metrics_file) as stream:
            stream.writelines(kept)


def _iteration_of(line: bytes) -> float | None:
    """That of a row of metrics.json; None where the line is not a whole row."""
    try:
        number = json.loads(line)["iteration"] if line.endswith(b"\n") else None
    except (ValueError, LookupError, TypeError, RecursionError):
        return None
    return number if isinstance(number, int | float) else None
