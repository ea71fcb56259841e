"""The progress line of a run, and how its scalars are shown."""

from __future__ import annotations

import datetime
import logging
import re
import resource
import sys
from collections.abc import Mapping

import torch

from querypose.d2 import EventWriter, get_event_storage
from querypose.engine.schedule import TimeLimit

_STAGE_LOSS = re.compile(r"loss_\w+_\d+$")


class ProgressLine(EventWriter):
    """Logs one line: iteration, epoch, ETA, img/s, losses, learning rate, data time, memory; AP and progress if any.

    Of the losses the line has the total and those of the last stage; `metrics.json` has all.

    Args:
        max_iter: iterations of the run.
        images_per_iteration: images of an iteration over all processes.
        window: iterations that the speed is averaged over.
        epoch: iterations of one, if that is known.
        time_limit: ends the run in place of `max_iter`.
    """

    def __init__(
        self,
        max_iter: int,
        images_per_iteration: int,
        window: int = 20,
        *,
        epoch: float | None = None,
        time_limit: TimeLimit | None = None,
    ) -> None:
        self._max_iter = max_iter
        self._images_per_iteration = images_per_iteration
        self._window = window
        self._epoch = epoch
        self._time_limit = time_limit
        self._written = -1

    def write(self) -> None:
        storage = get_event_storage()
        iteration = storage.iter + 1
        limit = self._time_limit
        if iteration > (self._max_iter if limit is None else limit.trainer.max_iter) or iteration == self._written:
            return
        self._written = iteration
        scalars = {name: value for name, (value, _) in storage.latest().items()}
        if limit is None:
            parts = [f"iter {iteration}/{self._max_iter}"]
        else:
            parts = [f"iter {iteration}", f"minute {limit.seconds / 60:.1f}/{limit.limit / 60:g}"]
        if self._epoch is not None:
            parts.append(f"epoch {iteration / self._epoch:.2f}")
        if "time" in storage.histories():
            history = storage.history("time")
            seconds = history.avg(storage.count_samples("time", self._window))
            eta = history.median(1000) * (self._max_iter - iteration)
            if limit is not None:
                eta = max(limit.limit - limit.seconds, 0.0)
            speed = self._images_per_iteration / seconds
            storage.put_scalar("eta_seconds", eta, smoothing_hint=False)
            storage.put_scalar("images_per_second", speed, smoothing_hint=False)
            parts += [f"eta {datetime.timedelta(seconds=int(eta))}", f"{speed:.1f} img/s"]
        parts += losses_for_display(scalars)
        if "lr" in scalars:
            parts.append(f"lr {scalars['lr']:.3g}")
        if "data_time" in scalars:
            parts.append(f"data {scalars['data_time']:.3f}s")
        parts.append(f"mem {peak_memory() / 2**30:.1f}G")
        evaluated = (name for name in scalars if name.endswith("keypoints/AP") or "progress/" in name)
        parts += [f"{name.replace('progress/', '')} {scalars[name]:.2f}" for name in evaluated]
        logging.getLogger(__name__).info("  ".join(parts))


def losses_for_display(scalars: Mapping[str, float]) -> list[str]:
    """`total_loss` and the losses of the last stage, which carry no stage number, as short texts."""
    shown = {
        name.removeprefix("loss_"): value
        for name, value in scalars.items()
        if name.startswith("loss_") and not _STAGE_LOSS.match(name)
    }
    total = [f"loss {scalars['total_loss']:.4g}"] if "total_loss" in scalars else []
    return total + [f"{name} {value:.4g}" for name, value in shown.items()]


def peak_memory() -> int:
    """The most memory, in bytes, that this process has held so far: GPU memory where it uses a GPU, else its own."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
