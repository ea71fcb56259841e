"""What a run is besides weights, optimiser and schedule: random states, data position, figures on their way."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from querypose.d2 import comm
from querypose.data.training_order import TrainingOrder
from querypose.engine.recovery.hooks import KeepBest, SaveCheckpoints
from querypose.engine.recovery.random_states import random_states, restore_random_states

_logger = logging.getLogger(__name__)


class RunState:
    """Takes this state of a `PoseTrainer` and gives it back. All processes must call each method together."""

    def __init__(self, trainer: Any) -> None:
        """Takes nothing yet.

        Args:
            trainer: or a weak reference to it.
        """
        self._trainer = trainer
        self._of_process: dict[str, Any] | None = None
        self._is_resumed = False

    def entries(self) -> dict[str, Any]:
        """The entry "run" of a checkpoint; of the main process alone it is complete."""
        trainer = self._trainer
        trainer.step.settle()
        of_process = {"random": random_states(), "figures": trainer.step.figures.state_dict()}
        state: dict[str, Any] = {"processes": comm.gather(of_process)}
        if (order := self._training_order()) is not None:
            state["data"] = order.state_dict()
        return {"run": state}

    def resume(self, checkpoint: Mapping[str, Any]) -> None:
        """Takes up a run: the data position now, the rest when training begins. Says what it took up, and what not.

        Args:
            checkpoint: what is left of it after weights, optimiser, schedule and the like were loaded.
        """
        trainer = self._trainer
        state = checkpoint.get("run", {})
        self._is_resumed = bool(state)
        problems = self._resume_data(state.get("data"))
        if not state:
            problems.append("the checkpoint has no random states")
        elif len(state["processes"]) != comm.get_world_size():
            problems.append(
                f"the run had {len(state['processes'])} processes and has {comm.get_world_size()}, so that random "
                "states are not taken up, and sums over processes round otherwise"
            )
        else:
            self._of_process = state["processes"][comm.get_rank()]
        restored = ["weights", "optimiser", "schedule"]
        restored += [f"averaged weights ({trainer.ema.num_updates} updates)"] if trainer.ema is not None else []
        restored += ["gradient scaler"] if trainer.step.grad_scaler.is_enabled() else []
        restored += [f"random states of {comm.get_world_size()} processes"] if self._of_process else []
        if "data" in state:
            restored.append(f"data position (image {trainer.start_iter * state['data']['batch_size']})")
        restored += [
            f"best {hook.best['metric']} {hook.best['value']:.2f}" for hook in self._hooks(KeepBest) if hook.best
        ]
        _logger.info(f"Resumed at iteration {trainer.start_iter} of {trainer.max_iter}: {', '.join(restored)}")
        if problems:
            _logger.warning(f"This run is not bit-identical to one that never stopped: {'; '.join(problems)}.")

    def finish_iteration(self) -> None:
        """Restores random states and figures, and runs what was left of the hooks of the iteration that was saved."""
        trainer = self._trainer
        if self._of_process is not None:
            restore_random_states(self._of_process["random"])
            trainer.step.figures.load_state_dict(self._of_process["figures"])
        if self._is_resumed:
            trainer.iter = trainer.storage.iter = trainer.start_iter - 1
            [save] = self._hooks(SaveCheckpoints)
            for hook in trainer._hooks[trainer._hooks.index(save) + 1 :]:
                hook.after_step()

    def _resume_data(self, state: Mapping[str, int] | None) -> list[str]:
        """Gives what keeps the data from being those of a run that never stopped."""
        order = self._training_order()
        if order is None:
            return ["the trainer's own data loader begins anew"]
        if state is None:
            return ["the checkpoint has no data position, so that the data begin anew"]
        return order.resume(state, self._trainer.start_iter)

    def _training_order(self) -> TrainingOrder | None:
        """None where the trainer has a data loader of another kind."""
        order = getattr(self._trainer.data_loader, "batch_sampler", None)
        return order if isinstance(order, TrainingOrder) else None

    def _hooks(self, kind: type) -> list[Any]:
        return [hook for hook in self._trainer._hooks if isinstance(hook, kind)]
