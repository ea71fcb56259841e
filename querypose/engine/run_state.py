"""What a run is besides weights, optimizer and schedule: random states, data position, scalars not yet written."""

from __future__ import annotations

import contextlib
import logging
import random
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch

from querypose.d2 import comm
from querypose.data.training_order import TrainingOrder
from querypose.engine.hooks import BestCheckpointer, PeriodicCheckpointer
from querypose.engine.resuming import recorded_config

_logger = logging.getLogger(__name__)


class RunState:
    """Takes this state of a `PoseTrainer`, or of a weak reference to one, and gives it back.

    All processes must call each method together.
    """

    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer
        self._random_states: Mapping[str, Any] | None = None
        self._is_resumed = False
        self._hooks_done = False

    def entries(self) -> dict[str, Any]:
        """The entry "run" of a checkpoint; of the main process alone it is complete."""
        trainer = self._trainer
        trainer.step.gather_state()
        of_process = {"random": random_states(), "scalars": trainer.step.scalars.state_dict()}
        state: dict[str, Any] = {"processes": comm.gather(of_process), "config": recorded_config(trainer.cfg)}
        if (order := self._training_order()) is not None:
            state["data"] = order.state_dict()
        return {"run": state}

    def resume(self, checkpoint: Mapping[str, Any]) -> None:
        """Takes up a run: the data position now, the rest when training begins. Says what it took up, and what not.

        Args:
            checkpoint: what is left of it after weights, optimizer, schedule and the like were loaded.
        """
        trainer = self._trainer
        state = checkpoint.get("run", {})
        self._is_resumed = bool(state)
        self._hooks_done = checkpoint.get("hooks_done", False)
        order = self._training_order()
        if order is None:
            problems = ["the data loader is not one of this project, so it starts at the beginning"]
        elif "data" not in state:
            problems = ["the checkpoint has no data position, so the data start at the beginning"]
        else:
            problems = order.resume(state["data"], trainer.start_iter)
        if not state:
            problems.append("the checkpoint has no random states")
        elif len(state["processes"]) != comm.get_world_size():
            problems.append(
                f"it had {len(state['processes'])} processes and now has {comm.get_world_size()}, so random states are "
                "not restored, and sums over the processes are rounded differently"
            )
        elif "scalars" not in state["processes"][0]:
            problems.append("the checkpoint was written by an older version of this project")
        else:
            of_process = state["processes"][comm.get_rank()]
            trainer.step.scalars.load_state_dict(of_process["scalars"])
            self._random_states = of_process["random"]
            with untouched_random_states():  # what cannot be restored is told now
                restore_random_states(self._random_states)
        restored = ["weights", "optimizer", "schedule"]
        restored += [f"averaged weights ({trainer.ema.num_updates} updates)"] if trainer.ema is not None else []
        restored += ["gradient scaler"] if trainer.step.grad_scaler.is_enabled() else []
        restored += [f"random states of {comm.get_world_size()} processes"] if self._random_states else []
        if "data" in state:
            restored.append(f"data position (image {trainer.start_iter * state['data']['batch_size']})")
        restored += [
            f"best {hook.best['metric']} {hook.best['value']:.2f}"
            for hook in self._hooks(BestCheckpointer)
            if hook.best
        ]
        if (limit := trainer.time_limit) is None:
            end = f"of {trainer.max_iter}"
        else:
            end = f"after {limit.seconds / 60:.1f} of {limit.limit / 60:g} minutes"
        _logger.info(f"Resumed at iteration {trainer.start_iter} {end}: {', '.join(restored)}")
        if problems:
            _logger.warning(f"This run is not bit-identical to one that never stopped: {'; '.join(problems)}.")

    def finish_iteration(self) -> None:
        """Restores random states, and runs what was left of the hooks of the iteration that was saved."""
        trainer = self._trainer
        if self._random_states is not None:
            restore_random_states(self._random_states)
        if self._is_resumed:
            trainer.iter = trainer.storage.iter = trainer.start_iter - 1
            # A checkpoint is taken in the midst of an iteration's hooks: those behind it have not run yet.
            [save] = self._hooks(PeriodicCheckpointer)
            save.finish()
            for hook in [] if self._hooks_done else trainer._hooks[trainer._hooks.index(save) + 1 :]:
                hook.after_step()

    def _training_order(self) -> TrainingOrder | None:
        """None where the trainer has a data loader of another kind."""
        order = getattr(self._trainer.data_loader, "batch_sampler", None)
        return order if isinstance(order, TrainingOrder) else None

    def _hooks(self, kind: type) -> list[Any]:
        return [hook for hook in self._trainer._hooks if isinstance(hook, kind)]


def random_states() -> dict[str, Any]:
    """States of the generators of random, numpy, torch, and torch on the current GPU if it is used; plain values."""
    version, numbers, next_gauss = random.getstate()
    _, keys, position, has_gauss, gauss = np.random.get_state()  # noqa: NPY002  # the one that libraries draw from
    states = {
        "python": [version, torch.tensor(numbers), next_gauss],
        "numpy": [torch.from_numpy(np.asarray(keys).astype(np.int64)), position, has_gauss, gauss],
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def restore_random_states(states: Mapping[str, Any]) -> None:
    """Sets the generators to what `random_states` gave; a GPU's state is left out where there is no GPU."""
    version, numbers, next_gauss = states["python"]
    random.setstate((version, tuple(numbers.tolist()), next_gauss))
    keys, position, has_gauss, gauss = states["numpy"]
    np.random.set_state(("MT19937", keys.numpy().astype(np.uint32), position, has_gauss, gauss))  # noqa: NPY002
    torch.set_rng_state(states["torch"])
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])


@contextlib.contextmanager
def untouched_random_states() -> Iterator[None]:
    """Whatever is drawn within the context, the generators go on afterwards as if it had not been."""
    states = random_states()
    try:
        yield
    finally:
        restore_random_states(states)
