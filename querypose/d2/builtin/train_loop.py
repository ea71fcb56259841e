"""The training loop and its hooks' base class."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Mapping, Sequence
from typing import Any

from querypose.d2.builtin.events import EventStorage


class HookBase:
    """Something that a trainer calls at fixed moments. Every method does nothing unless it is overridden.

    Attributes:
        trainer: set when the hook is registered; a weak reference, so that the two do not keep each other alive.
    """

    trainer: Any = None

    def before_train(self) -> None:
        """Before the first iteration."""

    def after_train(self) -> None:
        """After the last iteration, also when training failed."""

    def before_step(self) -> None:
        """Before each iteration."""

    def after_backward(self) -> None:
        """After the backward pass, before the optimizer's step."""

    def after_step(self) -> None:
        """After each iteration."""

    def state_dict(self) -> dict[str, Any]:
        """What to keep in checkpoints; if not empty, there must be a `load_state_dict`."""
        return {}


class TrainerBase:
    """Iterates, and calls hooks. A subclass defines `run_step`.

    Attributes:
        iter: the current iteration.
        start_iter: the first iteration.
        max_iter: the iteration before which training ends.
        storage: the event storage, open while training.
    """

    def __init__(self) -> None:
        self._hooks: list[HookBase] = []
        self.iter = 0
        self.start_iter = 0
        self.max_iter: int
        self.storage: EventStorage

    def register_hooks(self, hooks: Sequence[HookBase | None]) -> None:
        """Adds hooks; they are called in this order. None is left out."""
        for hook in hooks:
            if hook is None:
                continue
            if not isinstance(hook, HookBase):
                raise AssertionError(f"A hook is a HookBase, not a {type(hook).__name__}.")
            hook.trainer = weakref.proxy(self)
            self._hooks.append(hook)

    def train(self, start_iter: int, max_iter: int) -> None:
        logger = logging.getLogger(__name__)
        logger.info("Starting training from iteration %d", start_iter)
        self.iter = self.start_iter = start_iter
        self.max_iter = max_iter
        with EventStorage(start_iter) as self.storage:
            try:
                self.before_train()
                for self.iter in range(start_iter, max_iter):
                    self.before_step()
                    self.run_step()
                    self.after_step()
                self.iter = max(start_iter, max_iter)  # tells after_train that training came to its end
            except Exception:
                logger.exception("Exception during training:")
                raise
            finally:
                self.after_train()

    def before_train(self) -> None:
        for hook in self._hooks:
            hook.before_train()

    def after_train(self) -> None:
        self.storage.iter = self.iter
        for hook in self._hooks:
            hook.after_train()

    def before_step(self) -> None:
        self.storage.iter = self.iter
        for hook in self._hooks:
            hook.before_step()

    def after_backward(self) -> None:
        for hook in self._hooks:
            hook.after_backward()

    def after_step(self) -> None:
        for hook in self._hooks:
            hook.after_step()

    def run_step(self) -> None:
        """One iteration. A subclass must define it."""
        raise NotImplementedError(f"{type(self).__name__} must define run_step.")

    def state_dict(self) -> dict[str, Any]:
        """Iteration, and the states of the hooks that have one, by the names of their classes."""
        hooks: dict[str, Any] = {}
        for hook in self._hooks:
            state = hook.state_dict()
            if state:
                hooks.setdefault(type(hook).__qualname__, state)
        return {"iteration": self.iter, **({"hooks": hooks} if hooks else {})}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Takes up a state; a hook that is not there any more is named in the log."""
        self.iter = state_dict["iteration"]
        for name, state in state_dict.get("hooks", {}).items():
            hook = next((hook for hook in self._hooks if type(hook).__qualname__ == name), None)
            if hook is None:
                logging.getLogger(__name__).warning(
                    "There is no hook %r; its state in the checkpoint is ignored.", name
                )
            else:
                hook.load_state_dict(state)  # type: ignore[attr-defined]  # every hook with a state has it
