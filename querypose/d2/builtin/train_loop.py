"""The training loop and its hooks' base class; one step of ordinary and of mixed-precision training."""

from __future__ import annotations

import logging
import math
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from querypose.d2.builtin import comm
from querypose.d2.builtin.events import EventStorage, get_event_storage


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
        """Runs the iterations from `start_iter` up to, and without, `max_iter`."""
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
        """Calls the hooks."""
        for hook in self._hooks:
            hook.before_train()

    def after_train(self) -> None:
        """Calls the hooks."""
        self.storage.iter = self.iter
        for hook in self._hooks:
            hook.after_train()

    def before_step(self) -> None:
        """Calls the hooks."""
        self.storage.iter = self.iter
        for hook in self._hooks:
            hook.before_step()

    def after_backward(self) -> None:
        """Calls the hooks."""
        for hook in self._hooks:
            hook.after_backward()

    def after_step(self) -> None:
        """Calls the hooks."""
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


class SimpleTrainer(TrainerBase):
    """One model, one loader, one optimizer: loss, backward, step.

    The sum of the losses that the model returns (a dict of scalars, or one scalar) is minimised.
    """

    def __init__(
        self,
        model: nn.Module,
        data_loader: Iterable[Any],
        optimizer: torch.optim.Optimizer,
        gather_metric_period: int = 1,
        zero_grad_before_forward: bool = False,
    ) -> None:
        """Sets the model to training mode.

        Args:
            model: takes what the loader gives.
            data_loader: gives batches without end.
            optimizer: of the model's parameters.
            gather_metric_period: iterations between two gatherings of the losses of all processes.
            zero_grad_before_forward: else just before the backward pass.
        """
        super().__init__()
        model.train()
        self.model = model
        self.data_loader = data_loader
        self.optimizer = optimizer
        self.gather_metric_period = gather_metric_period
        self.zero_grad_before_forward = zero_grad_before_forward
        self._data_loader_iter_obj: Iterator[Any] | None = None

    def run_step(self) -> None:
        """One iteration.

        Raises:
            AssertionError: something set the model to evaluation mode.
            FloatingPointError: the loss is not finite; the optimizer has not stepped.
        """
        data, data_time = self._next_data()
        if self.zero_grad_before_forward:
            self.optimizer.zero_grad()
        loss, loss_dict = self._forward(data)
        if not self.zero_grad_before_forward:
            self.optimizer.zero_grad()
        loss.backward()
        self.after_backward()
        self._write_metrics(loss_dict, data_time)
        self.optimizer.step()

    def _next_data(self) -> tuple[Any, float]:
        """The next batch, and the seconds it took to come."""
        if not self.model.training:
            raise AssertionError("The model was set to evaluation mode during training.")
        start = time.perf_counter()
        data = next(self._data_loader_iter)
        return data, time.perf_counter() - start

    def _forward(self, data: Any) -> tuple[Tensor, dict[str, Tensor]]:
        losses = self.model(data)
        loss_dict = {"total_loss": losses} if isinstance(losses, Tensor) else losses
        return torch.stack(list(loss_dict.values())).sum(), loss_dict

    @property
    def _data_loader_iter(self) -> Iterator[Any]:
        if self._data_loader_iter_obj is None:  # loader processes start with the first iteration
            self._data_loader_iter_obj = iter(self.data_loader)
        return self._data_loader_iter_obj

    def reset_data_loader(self, data_loader_builder: Callable[[], Iterable[Any]]) -> None:
        """Puts the loader that the function gives in the place of the present one, which is let go before."""
        self._data_loader_iter_obj = None
        del self.data_loader
        self.data_loader = data_loader_builder()

    def _write_metrics(self, loss_dict: Mapping[str, Tensor], data_time: float, prefix: str = "") -> None:
        if (self.iter + 1) % self.gather_metric_period == 0:
            self.write_metrics(loss_dict, data_time, self.iter, prefix)

    @staticmethod
    def write_metrics(loss_dict: Mapping[str, Tensor], data_time: float, cur_iter: int, prefix: str = "") -> None:
        """Stores the losses, averaged over the processes, their sum as total_loss, and the longest wait for data.

        Raises:
            FloatingPointError: the sum is not finite. Raised in every process, so that none waits for the others.
        """
        values = torch.stack([loss.detach().float() for loss in loss_dict.values()]).tolist()
        storage = get_event_storage()
        storage.put_scalar("rank_data_time", data_time, cur_iter=cur_iter)
        gathered = comm.all_gather((values, data_time))
        averages = {
            name: sum(losses[index] for losses, _ in gathered) / len(gathered) for index, name in enumerate(loss_dict)
        }
        total = sum(averages.values())
        if not math.isfinite(total):
            raise FloatingPointError(f"Loss became infinite or NaN at iteration={cur_iter}!\nloss_dict = {averages}")
        if comm.is_main_process():
            storage.put_scalar("data_time", max(seconds for _, seconds in gathered), cur_iter=cur_iter)
            storage.put_scalar(f"{prefix}total_loss", total, cur_iter=cur_iter)
            if len(averages) > 1:
                storage.put_scalars(cur_iter=cur_iter, **averages)

    def state_dict(self) -> dict[str, Any]:
        """Also the optimizer's state."""
        return {**super().state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Also the optimizer's state."""
        super().load_state_dict(state_dict)
        self.optimizer.load_state_dict(state_dict["optimizer"])


class AMPTrainer(SimpleTrainer):
    """A `SimpleTrainer` whose forward pass runs in a lower precision; in float16 the loss is scaled."""

    def __init__(
        self,
        model: nn.Module,
        data_loader: Iterable[Any],
        optimizer: torch.optim.Optimizer,
        gather_metric_period: int = 1,
        zero_grad_before_forward: bool = False,
        grad_scaler: torch.amp.GradScaler | None = None,
        precision: torch.dtype = torch.float16,
    ) -> None:
        super().__init__(model, data_loader, optimizer, gather_metric_period, zero_grad_before_forward)
        self._device_type = next(model.parameters()).device.type
        self.precision = precision
        self.grad_scaler = grad_scaler or torch.amp.GradScaler(self._device_type, enabled=precision == torch.float16)

    def run_step(self) -> None:
        """One iteration; raises what `SimpleTrainer.run_step` raises."""
        data, data_time = self._next_data()
        if self.zero_grad_before_forward:
            self.optimizer.zero_grad()
        with torch.autocast(self._device_type, dtype=self.precision):
            loss, loss_dict = self._forward(data)
        if not self.zero_grad_before_forward:
            self.optimizer.zero_grad()
        self.grad_scaler.scale(loss).backward()
        self.after_backward()
        self._write_metrics(loss_dict, data_time)
        self.grad_scaler.step(self.optimizer)
        self.grad_scaler.update()

    def state_dict(self) -> dict[str, Any]:
        """Also the state of the loss scaling."""
        return {**super().state_dict(), "grad_scaler": self.grad_scaler.state_dict()}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Also the state of the loss scaling."""
        super().load_state_dict(state_dict)
        self.grad_scaler.load_state_dict(state_dict["grad_scaler"])
