"""One training iteration: micro-batches, mixed precision, clipping, the update, and the scalars it reports."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.nn.parallel import DistributedDataParallel

from querypose.config import ConfigError
from querypose.d2 import comm, get_event_storage
from querypose.engine.non_finite import GRAD_NORM, NON_FINITE, NonFiniteGuard, gradient_norms, nan_unless_finite
from querypose.engine.resuming import load_optimizer_state, optimized_names
from querypose.engine.scalars import ScalarQueue
from querypose.modeling.pose_model import Batch, PoseModel


def cut_batch(batch: Batch, num_micro_batches: int) -> list[Batch]:
    """Cuts a batch into `num_micro_batches` runs of consecutive items whose lengths differ by one at most.

    Raises:
        ValueError: the batch has fewer items than that.
    """
    if len(batch) < num_micro_batches:
        raise ValueError(f"A batch of {len(batch)} samples cannot be cut into {num_micro_batches} micro-batches.")
    bounds = [len(batch) * index // num_micro_batches for index in range(num_micro_batches + 1)]
    return [batch[low:high] for low, high in itertools.pairwise(bounds)]


class TrainStep:
    """The inner trainer: `run_step` is one update of the weights from one batch of the loader.

    Losses and the gradient's norm are reported to the event storage every `log_period` iterations, as means over those
    iterations and over the processes; between reports no iteration waits for the device. An iteration whose scalars are
    not finite changes nothing: `guard` ends the run or skips it (`querypose.engine.non_finite`).

    Args:
        model: a `PoseModel`; may be wrapped in DistributedDataParallel.
        data_loader: endless batches, lists of dicts.
        optimizer: updates the model's parameters.
        precision: bfloat16 or float16 runs the forward pass under autocast, float16 with a scaled loss; None is
            float32.
        num_micro_batches: parts into which a batch is cut; their gradients add up to that of the whole batch.
        clip_norm: the greatest norm of the whole model's gradient; None does not clip.
        clip_norm_type: p of that norm.
        log_period: iterations between two reports.
        guard: keywords of `NonFiniteGuard`.

    Attributes:
        pose_model: the model itself.
        scalars: those that have not been reported yet.
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
        guard: Mapping[str, Any] | None = None,
    ) -> None:
        self.model = model.train()
        self.data_loader = data_loader
        self.optimizer = optimizer
        self.iter = 0
        self._batches: Iterator[Batch] | None = None
        self.precision = precision
        self.num_micro_batches = num_micro_batches
        self.clip_norm = clip_norm
        self.clip_norm_type = clip_norm_type
        self.log_period = log_period
        self._parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        self._device = self._parameters[0].device
        self.grad_scaler = torch.amp.GradScaler(self._device.type, enabled=precision == torch.float16)
        pose_model = model.module if isinstance(model, DistributedDataParallel) else model
        if not isinstance(pose_model, PoseModel):
            raise TypeError(
                f"{type(pose_model).__name__} cannot be trained, because it is not a PoseModel: the trainer needs to "
                "know what its losses are divided by. Derive the class from querypose.modeling.PoseModel."
            )
        self.pose_model = pose_model
        self._guard = NonFiniteGuard(pose_model, self._parameters, self.grad_scaler, **(guard or {}))
        # On a GPU an iteration is checked once the next one is under way, which waits for nothing.
        self.scalars = ScalarQueue(self._guard.check, lag=1 if self._device.type == "cuda" else 0)
        self._data_seconds: list[float] = []

    def run_step(self, after_backward: Callable[[], None] = lambda: None) -> None:
        """Loads a batch and updates the weights once.

        Args:
            after_backward: called when the gradient of the whole batch is there, unscaled and not yet clipped.

        Raises:
            NonFiniteError: a loss, or without loss scaling the gradient, of this iteration (on a GPU: of the one
                before) is not finite, in any process.
        """
        if not self.model.training:
            raise RuntimeError("The model is in evaluation mode; call model.train() before training goes on.")
        start = time.perf_counter()
        if self._batches is None:  # loader processes start with the first iteration
            self._batches = iter(self.data_loader)
        batch = next(self._batches)
        self._data_seconds.append(time.perf_counter() - start)

        self._guard.begin(batch)
        self.optimizer.zero_grad(set_to_none=True)
        names, values = self.accumulate_gradients(batch)
        self.grad_scaler.unscale_(self.optimizer)
        after_backward()
        norms = gradient_norms(self._parameters, self.clip_norm_type)
        norm = torch.linalg.vector_norm(norms, self.clip_norm_type)
        self._guard.end(norms, norm.isfinite())
        if self.clip_norm is not None:
            gradients = [parameter.grad for parameter in self._parameters if parameter.grad is not None]
            # torch's clip_grad_norm_ would compute the norms of all parameters a second time.
            torch._foreach_mul_(gradients, (self.clip_norm / (norm + 1e-6)).clamp(max=1.0))
        extra = torch.stack((norm.to(values), self._is_non_finite(values, norm).to(values)))
        self.scalars.put(self.iter, (*names, GRAD_NORM, NON_FINITE), torch.cat((values, extra)))
        self._update(norm)
        if (self.iter + 1) % self.log_period == 0:
            self.write_scalars()

    def stop_loading(self) -> None:
        """Ends the processes of the data loader, whatever they wait for."""
        if isinstance(self._batches, Generator):
            self._batches.close()
        self._batches = None

    def accumulate_gradients(
        self, batch: Batch, normalizers: Mapping[str, Tensor] | None = None
    ) -> tuple[tuple[str, ...], Tensor]:
        """Adds the gradient of the whole batch's loss to the parameters' `.grad`, one micro-batch at a time.

        Every loss is a sum, divided by normalizers of the whole batch; those of the micro-batches therefore add up to
        it, also where one has no person, and where DistributedDataParallel averages over the processes. Statistics of
        BatchNorm in training remain those of the micro-batch.

        Args:
            batch: of this process.
            normalizers: what losses are divided by; by default those of `batch` and of the batches of other processes.

        Returns:
            the names of the losses, and their values over the whole batch: one float tensor.

        Raises:
            ConfigError: there are several processes, and a parameter takes no part in the losses.
        """
        micro_batches = cut_batch(batch, self.num_micro_batches)
        if normalizers is None:
            normalizers = self.pose_model.global_normalizers(*micro_batches)
        names: tuple[str, ...] = ()
        totals: list[Tensor] = []
        for index, micro_batch in enumerate(micro_batches):
            exchange: Any = contextlib.nullcontext()
            if isinstance(self.model, DistributedDataParallel) and index < len(micro_batches) - 1:
                exchange = self.model.no_sync()  # the processes exchange the sum, at the last micro-batch
            with exchange:
                with torch.autocast(self._device.type, self.precision, enabled=self.precision is not None):
                    losses = self.model(micro_batch, normalizers)
                names = tuple(losses)
                values = torch.stack([loss.float() if loss.dtype.itemsize < 4 else loss for loss in losses.values()])
                self.grad_scaler.scale(nan_unless_finite(values.sum())).backward()
            totals.append(values.detach())
        self._require_all_gradients()
        return names, torch.stack(totals).sum(dim=0)

    def _require_all_gradients(self) -> None:
        if not isinstance(self.model, DistributedDataParallel):
            return
        named = self.pose_model.named_parameters()
        if missing := [name for name, parameter in named if parameter.requires_grad and parameter.grad is None]:
            raise ConfigError(
                f"{', '.join(missing[:4])}{', …' if len(missing) > 4 else ''} of {type(self.pose_model).__name__} take "
                "no part in the losses, but several processes exchange the gradients of all parameters. Leave these "
                "layers out (feature maps: MODEL.BACKBONE.OUT_FEATURES), or add 0 times their sum to a loss."
            )

    def _is_non_finite(self, losses: Tensor, norm: Tensor) -> Tensor:
        """Whether the iteration went wrong in any process, on the device; an overflow of a scaled loss does not."""
        if not self.grad_scaler.is_enabled():
            return ~norm.isfinite()
        is_non_finite = (~losses.isfinite().all()).float()
        if comm.get_world_size() > 1:
            dist.all_reduce(is_non_finite, dist.ReduceOp.MAX)
        return is_non_finite

    def _update(self, norm: Tensor) -> None:
        """Updates the weights, unless the gradient is not finite; nothing waits for the device to say so."""
        if self.grad_scaler.is_enabled():  # it checks the gradient itself
            self.grad_scaler.step(self.optimizer)
            self.grad_scaler.update()
        elif getattr(fused := self._own_optimizer, "_step_supports_amp_scaling", False):
            # How the scaler tells a fused optimizer, which then does nothing on the device.
            fused.grad_scale, fused.found_inf = None, (~norm.isfinite()).float()
            self.optimizer.step()
            del fused.grad_scale, fused.found_inf
        elif norm.isfinite():
            self.optimizer.step()

    @property
    def _own_optimizer(self) -> Any:
        """What updates this process' share of the parameters, which is all of them where nothing is sharded."""
        return self.optimizer.optim if isinstance(self.optimizer, ZeroRedundancyOptimizer) else self.optimizer

    def gather_state(self) -> None:
        """Brings what other processes hold of the state to the main one; all call it together, before it is saved."""
        self.flush()
        if isinstance(self.optimizer, ZeroRedundancyOptimizer):
            self.optimizer.consolidate_state_dict(to=0)

    def flush(self) -> None:
        """Waits until all iterations so far are checked; every process must call it together, before any saves.

        Raises:
            NonFiniteError: one is not finite.
        """
        self.scalars.wait()

    def write_scalars(self) -> None:
        """Puts the means since the last report into the event storage; every process must call it together.

        Raises:
            NonFiniteError: a scalar is not finite.
        """
        means = self.scalars.means()
        if not means:
            return
        del means[NON_FINITE]
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
        """After `gather_state`; that of a sharded optimizer is in the main process alone.

        Raises:
            NonFiniteError: a recent scalar is not finite; such a state is never saved.
        """
        self.flush()
        is_elsewhere = isinstance(self.optimizer, ZeroRedundancyOptimizer) and not comm.is_main_process()
        return {
            "iteration": self.iter,
            "optimizer": {} if is_elsewhere else self.optimizer.state_dict(),
            "parameters": optimized_names(self.pose_model, self.optimizer),
            "grad_scaler": self.grad_scaler.state_dict(),
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restores what `state_dict` gave; a scaler's state is used where this run scales its loss too.

        Rates, decays and their groups stay those of this run's config.
        """
        self.iter = state_dict["iteration"]
        load_optimizer_state(self.optimizer, optimized_names(self.pose_model, self.optimizer), state_dict)
        if self.grad_scaler.is_enabled() and state_dict.get("grad_scaler"):
            self.grad_scaler.load_state_dict(state_dict["grad_scaler"])
