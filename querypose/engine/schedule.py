"""How long a training lasts: in iterations, in epochs, which become iterations here, or in minutes of the clock."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping, Sized
from typing import Any

from querypose.config import ConfigError, require_one_unit
from querypose.d2 import CfgNode, HookBase, TrainerBase, comm

ENDLESS = 2**62
"""Iterations of a training that minutes end."""

_EPOCHS_AND_ITERATIONS = (
    ("SOLVER", "MAX_EPOCHS", "MAX_ITER"),
    ("SOLVER", "STEP_EPOCHS", "STEPS"),
    ("SOLVER", "CHECKPOINT_EPOCHS", "CHECKPOINT_PERIOD"),
    ("TEST", "EVAL_EPOCHS", "EVAL_PERIOD"),
)


def iterations_per_epoch(data_loader: Any, batch_size: int) -> float | None:
    """In how many iterations every record is read once, a fraction where the last batch reaches into the next epoch.

    None where the loader does not say how many records it has.
    """
    dataset = getattr(data_loader, "dataset", None)
    return len(dataset) / batch_size if isinstance(dataset, Sized) else None


def with_iterations(cfg: CfgNode, epoch: float | None) -> CfgNode:
    """A config whose keys in epochs have become those in iterations, rounded to the nearest one.

    Args:
        cfg: stays as it is.
        epoch: iterations of one; see `iterations_per_epoch`.

    Raises:
        ConfigError: a number of epochs is set, and nobody knows how long one is; or what it replaces is set too.
    """
    require_one_unit(cfg)
    cfg, is_frozen = cfg.clone(), cfg.is_frozen()
    cfg.defrost()
    for section, in_epochs, in_iterations in _EPOCHS_AND_ITERATIONS:
        node = cfg[section]
        if not (epochs := node[in_epochs]):
            continue
        if epoch is None:
            raise ConfigError(
                f"{section}.{in_epochs} is {epochs}, but the data loader does not say how many records it has; allowed "
                f"here: {section}.{in_iterations}, in iterations."
            )
        if isinstance(epochs, float):
            node[in_iterations], node[in_epochs] = max(1, round(epochs * epoch)), 0.0
        else:
            node[in_iterations], node[in_epochs] = [round(count * epoch) for count in epochs], []
    if is_frozen:
        cfg.freeze()
    return cfg


class TimeLimit(HookBase):
    """Ends a training with the iteration in which its minutes are over, and lets the learning rate follow the clock.

    The schedule of the learning rate is run through in these minutes, whatever its iterations are. Register it before
    the hook that steps the schedule. The clock is the first process'. What a stopped run had spent until its last
    checkpoint counts; what it did after it is done again.

    Args:
        minutes: of the training, evaluations on the way included.
        max_iter: iterations of the schedule.
        clock: gives seconds.

    Attributes:
        seconds: of the training that are over, as of the end of the last iteration.
    """

    def __init__(self, minutes: float, max_iter: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.limit = minutes * 60
        self.seconds = 0.0
        self._max_iter = max_iter
        self._clock = clock
        self._start = 0.0

    @property
    def share(self) -> float:
        """Of the time that is over, at most 1."""
        return min(self.seconds / self.limit, 1.0)

    def before_train(self) -> None:
        self._start = self._clock() - self.seconds

    def after_step(self) -> None:
        self.seconds = comm.all_gather(self._clock() - self._start)[0]
        self.trainer.scheduler.last_epoch = self.share * self._max_iter - 1  # which its step adds again
        if self.share == 1:
            self.trainer.max_iter = self.trainer.iter + 1
            self.trainer.step.write_scalars()  # as the last iteration does

    def state_dict(self) -> dict[str, Any]:
        return {"seconds": self.seconds}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        self.seconds = state_dict["seconds"]


class EndableLoop(TrainerBase):
    """The engine's loop, which ends where a hook lowers `max_iter`: by itself it reads that once, in the beginning."""

    def train(self, start_iter: int, max_iter: int) -> None:
        with contextlib.suppress(_Ended):
            super().train(start_iter, max_iter)

    def after_step(self) -> None:
        super().after_step()
        if self.iter + 1 >= self.max_iter:
            self.iter += 1  # tells after_train that training came to its end
            raise _Ended


class _Ended(BaseException):
    """Not an Exception, which the loop would log as a failure."""
