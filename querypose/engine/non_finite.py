"""Iterations whose loss or gradient is infinite or NaN: they change no weights, are reported, and skipped or fatal.

The host never waits for the device. The update and the running statistics are masked on the device. The host learns of
it before it starts the next update (on a GPU; on the CPU before this one), when the weights still are those that the
iteration started from, and so can be dumped. A loss that is not finite makes its whole gradient NaN, which the exchange
of gradients brings to every process: all decide alike.
"""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from querypose.engine.dumps import DumpWriter, random_state
from querypose.engine.errors import NonFiniteError
from querypose.modeling.pose_model import Batch, PoseModel

GRAD_NORM = "grad_norm"
NON_FINITE = "non_finite"
"""A scalar: 1 where a loss of any process, or without loss scaling the gradient, is not finite; else 0."""

# So many halvings leave no scale that could overflow: the gradient itself is infinite.
_MAX_OVERFLOWS = 50


def gradient_norms(parameters: Sequence[nn.Parameter], norm_type: float) -> Tensor:
    with torch.no_grad():
        gradients = [parameter.new_zeros(1) if parameter.grad is None else parameter.grad for parameter in parameters]
        return torch.stack(torch._foreach_norm(gradients, norm_type))


def nan_unless_finite(loss: Tensor) -> Tensor:
    """`loss`, whose gradient becomes NaN as a whole where it is not finite; else it is unchanged."""
    return loss * torch.where(loss.detach().isfinite(), 1.0, math.nan)


class RunningStatistics:
    """The running statistics of a model's batch normalization, which a forward pass changes before its loss is known.

    Args:
        model: frozen normalization layers have none that change.
    """

    def __init__(self, model: nn.Module) -> None:
        layers = [layer for layer in model.modules() if isinstance(layer, nn.modules.batchnorm._NormBase)]
        statistics = [tensor for layer in layers for tensor in (layer.running_mean, layer.running_var)]
        self._tensors = [tensor for tensor in statistics if tensor is not None]

    @torch.no_grad()
    def copy(self) -> Tensor | None:
        """All of them in one vector; None if there are none."""
        return torch.cat([tensor.flatten() for tensor in self._tensors]) if self._tensors else None

    @torch.no_grad()
    def write(self, values: Tensor | None) -> None:
        if values is not None:
            parts = values.split([tensor.numel() for tensor in self._tensors])
            torch._foreach_copy_(
                self._tensors, [part.view_as(tensor) for part, tensor in zip(parts, self._tensors, strict=True)]
            )

    def restore_unless(self, is_finite: Tensor, before: Tensor | None) -> None:
        """Writes `before` where `is_finite`, on the device, is False."""
        if before is not None:
            now = self.copy()
            assert now is not None
            self.write(torch.where(is_finite, now, before))


@dataclass
class _Attempt:
    """An iteration whose scalars have not arrived yet, and what it started from besides the weights."""

    batch: Batch
    random_state: dict[str, Tensor]
    statistics: Tensor | None
    progress: float
    gradient_norms: Tensor | None = None


class NonFiniteGuard:
    """Checks every iteration by its scalars; the top of the module says what it does to one that is not finite.

    Args:
        model: not wrapped; its running statistics are watched.
        parameters: those that are trained, in the order of `gradient_norms`.
        grad_scaler: scales the loss, if it is enabled.
        skip: skip such an iteration instead of ending the run.
        max_consecutive: how many may be skipped in a row.
        dumps: writes what is needed to replay such an iteration.
    """

    def __init__(
        self,
        model: PoseModel,
        parameters: Sequence[nn.Parameter],
        grad_scaler: torch.amp.GradScaler,
        *,
        skip: bool = False,
        max_consecutive: int = 10,
        dumps: DumpWriter | None = None,
    ) -> None:
        self._model = model
        self._grad_scaler = grad_scaler
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        self._parameter_names = [names[id(parameter)] for parameter in parameters]
        self._statistics = RunningStatistics(model)
        self._skip = skip
        self._max_consecutive = max_consecutive
        self._dumps = dumps
        self._attempts: deque[_Attempt] = deque()
        self._consecutive = 0
        self._overflows = 0

    def begin(self, batch: Batch) -> None:
        """Before the forward pass: notes what the iteration starts from."""
        device = next(self._model.parameters()).device
        self._attempts.append(_Attempt(batch, random_state(device), self._statistics.copy(), self._model.progress))

    def end(self, norms: Tensor, is_finite: Tensor) -> None:
        """After the backward pass: notes the norms, and takes the running statistics back if it went wrong."""
        attempt = self._attempts[-1]
        attempt.gradient_norms = norms
        self._statistics.restore_unless(is_finite, attempt.statistics)

    def check(self, iteration: int, scalars: Mapping[str, float]) -> bool:
        """Decides about the oldest iteration that was begun and not yet checked, once its scalars are here.

        Args:
            iteration: its number.
            scalars: its losses, GRAD_NORM and NON_FINITE.

        Returns:
            whether it counts.

        Raises:
            NonFiniteError: it does not, and the run is to end.
        """
        attempt = self._attempts.popleft()
        # With a scaled loss an infinite gradient is nothing unusual: the scaler skips the update and lowers the scale.
        self._overflows = 0 if math.isfinite(scalars[GRAD_NORM]) else self._overflows + 1
        if not scalars[NON_FINITE] and self._overflows <= _MAX_OVERFLOWS:
            self._consecutive = 0
            return True
        self._consecutive += 1
        message = self._describe(iteration, scalars, attempt)
        if not self._skip:
            raise NonFiniteError(message)
        if self._consecutive > self._max_consecutive:
            raise NonFiniteError(
                f"{message} {self._consecutive} iterations in a row were skipped for this reason, more than "
                f"SOLVER.NON_FINITE.MAX_CONSECUTIVE ({self._max_consecutive}) allows."
            )
        logging.getLogger(__name__).warning(f"{message} Iteration {iteration} is skipped.")
        return False

    def _describe(self, iteration: int, scalars: Mapping[str, float], attempt: _Attempt) -> str:
        """The message about an iteration, which is dumped first."""
        losses = {name: value for name, value in scalars.items() if name not in (GRAD_NORM, NON_FINITE)}
        is_loss = not all(map(math.isfinite, losses.values()))
        message = (
            f"The {'loss' if is_loss else 'gradient'} became infinite or NaN at iteration {iteration} (losses of this "
            f"process: {losses}). The weights are unchanged. A lower SOLVER.BASE_LR, a longer SOLVER.WARMUP_ITERS or "
            "SOLVER.CLIP_GRADIENTS may help; SOLVER.NON_FINITE.ACTION skip leaves such iterations out."
        )
        if self._dumps is None:
            return message
        assert attempt.gradient_norms is not None
        content: dict[str, Any] = {
            "iteration": iteration,
            "progress": attempt.progress,
            "losses": losses,
            "gradient_norms": dict(zip(self._parameter_names, attempt.gradient_norms.tolist(), strict=True)),
            "random_state": attempt.random_state,
            "loss_scale": self._grad_scaler.get_scale(),
        }
        # The next iteration may have begun: its forward pass has changed the statistics, which are part of the weights.
        now = self._statistics.copy()
        self._statistics.write(attempt.statistics)
        dump = self._dumps.write(content, attempt.batch, self._model.state_dict())
        self._statistics.write(now)
        return f"{message} To inspect it: python tools/replay.py {dump} ." if dump is not None else message
