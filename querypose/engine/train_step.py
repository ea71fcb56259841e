"""One training iteration: micro-batches, mixed precision, clipping, the update, and the figures it reports."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from querypose.d2 import SimpleTrainer, comm, get_event_storage
from querypose.engine.micro_batches import Batch, cut_batch, micro_batch_weights
from querypose.engine.scalars import ScalarQueue

GRAD_NORM = "grad_norm"


class TrainStep(SimpleTrainer):
    """The inner trainer: `run_step` is one update of the weights from one batch of the loader.

    Losses and the gradient's norm are reported to the event storage every `log_period` iterations, as means over those
    iterations and over the processes; between reports no iteration waits for the device. A figure that is not finite
    ends the run, at the latest before the next checkpoint is written.

    Args:
        model: gives a dict of scalar losses for a batch; may be wrapped in DistributedDataParallel.
        data_loader: endless batches, lists of dicts.
        optimizer: updates the model's parameters.
        precision: bfloat16 or float16 runs the forward pass under autocast, float16 with a scaled loss; None is
            float32.
        num_micro_batches: parts into which a batch is cut; their gradients add up to that of the whole batch.
        clip_norm: the greatest norm of the whole model's gradient; None does not clip.
        clip_norm_type: p of that norm.
        log_period: iterations between two reports.

    Attributes:
        figures: those that have not been reported yet.
    """

    def __init__(
        self,
        model: nn.Module,
        data_loader: Iterable[Batch],
        optimizer: torch.optim.Optimizer,
        *,
        precision: torch.dtype | None = None,
        num_micro_batches: int = 1,
        clip_norm: float | None = None,
        clip_norm_type: float = 2.0,
        log_period: int = 1,
    ) -> None:
        super().__init__(model, data_loader, optimizer)
        self.precision = precision
        self.num_micro_batches = num_micro_batches
        self.clip_norm = clip_norm
        self.clip_norm_type = clip_norm_type
        self.log_period = log_period
        self._parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        self._device = self._parameters[0].device
        self.grad_scaler = torch.amp.GradScaler(self._device.type, enabled=precision == torch.float16)
        self.figures = ScalarQueue(self._check_finite)
        self._data_seconds: list[float] = []

    def run_step(self) -> None:
        """Loads a batch and updates the weights once.

        Raises:
            FloatingPointError: a loss, or without loss scaling a gradient, of this or a recent iteration is not finite.
        """
        if not self.model.training:
            raise RuntimeError("The model is in evaluation mode; call model.train() before training goes on.")
        start = time.perf_counter()
        batch = next(self._data_loader_iter)
        self._data_seconds.append(time.perf_counter() - start)

        self.optimizer.zero_grad(set_to_none=True)
        names, values = self.accumulate_gradients(batch)
        self.grad_scaler.unscale_(self.optimizer)
        if self.clip_norm is not None:
            norm = nn.utils.clip_grad_norm_(self._parameters, self.clip_norm, self.clip_norm_type)
            names, values = (*names, GRAD_NORM), torch.cat((values, norm.to(values)[None]))
        self.figures.put(self.iter, names, values)
        self.grad_scaler.step(self.optimizer)
        self.grad_scaler.update()
        if (self.iter + 1) % self.log_period == 0:
            self.write_figures()

    def accumulate_gradients(self, batch: Batch) -> tuple[tuple[str, ...], Tensor]:
        """Adds the gradient of the whole batch's loss to the parameters' `.grad`, one micro-batch at a time.

        Returns:
            the names of the losses, and their values over the whole batch: one float tensor.
        """
        micro_batches = cut_batch(batch, self.num_micro_batches)
        weights = micro_batch_weights(micro_batches, self._device)
        names: tuple[str, ...] = ()
        totals: list[Tensor] = []
        for index, (micro_batch, weight) in enumerate(zip(micro_batches, weights, strict=True)):
            is_last = index == len(micro_batches) - 1
            with self._without_gradient_exchange(unless=is_last):
                with self._autocast():
                    losses = self.model(micro_batch)
                names = tuple(losses)
                values = torch.stack([loss.float() if loss.dtype.itemsize < 4 else loss for loss in losses.values()])
                values = values * weight
                self.grad_scaler.scale(values.sum()).backward()
            totals.append(values.detach())
        return names, torch.stack(totals).sum(dim=0)

    def write_figures(self) -> None:
        """Puts the means since the last report into the event storage; every process must call it together.

        Raises:
            FloatingPointError: a figure is not finite.
        """
        means = self.figures.means()
        if not means:
            return
        means["data_time"] = sum(self._data_seconds) / len(self._data_seconds)
        self._data_seconds.clear()
        of_processes = comm.gather(means)
        if not comm.is_main_process():
            return
        storage = get_event_storage()
        # An iteration is as late as its slowest process.
        storage.put_scalar("data_time", max(other.pop("data_time") for other in of_processes), smoothing_hint=False)
        means = {name: sum(other[name] for other in of_processes) / len(of_processes) for name in of_processes[0]}
        losses = {name: value for name, value in means.items() if name != GRAD_NORM}
        for name, value in {"total_loss": sum(losses.values()), **means}.items():
            storage.put_scalar(name, value, smoothing_hint=False)

    def state_dict(self) -> dict[str, Any]:
        """State of the iteration, the optimiser and the gradient scaler.

        Raises:
            FloatingPointError: a recent figure is not finite, so that the weights are not worth keeping.
        """
        self.figures.wait()
        return {**super().state_dict(), "grad_scaler": self.grad_scaler.state_dict()}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restores what `state_dict` gave; a scaler's state is used where this run scales its loss too."""
        super().load_state_dict(state_dict)
        if self.grad_scaler.is_enabled() and state_dict.get("grad_scaler"):
            self.grad_scaler.load_state_dict(state_dict["grad_scaler"])

    def _autocast(self) -> contextlib.AbstractContextManager[Any]:
        if self.precision is None:
            return contextlib.nullcontext()
        return torch.autocast(self._device.type, dtype=self.precision)

    def _without_gradient_exchange(self, unless: bool) -> contextlib.AbstractContextManager[Any]:
        if unless or not isinstance(self.model, DistributedDataParallel):
            return contextlib.nullcontext()
        return self.model.no_sync()

    def _check_finite(self, iteration: int, figures: Mapping[str, float]) -> None:
        losses = {name: value for name, value in figures.items() if name != GRAD_NORM}
        if not all(map(math.isfinite, losses.values())):
            raise FloatingPointError(
                f"The loss became infinite or NaN at iteration {iteration}; loss_dict = {losses}. A lower "
                "SOLVER.BASE_LR, a longer SOLVER.WARMUP_ITERS or SOLVER.CLIP_GRADIENTS may help."
            )
        # With a scaled loss an infinite gradient is nothing unusual: the scaler skips the update and lowers the scale.
        if not self.grad_scaler.is_enabled() and not math.isfinite(figures.get(GRAD_NORM, 0.0)):
            raise FloatingPointError(
                f"The gradient became infinite or NaN at iteration {iteration}, the losses being {losses}."
            )
