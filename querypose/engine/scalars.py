"""Brings the scalars of every iteration to the host without making the host wait for the device."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor


class _Arriving(NamedTuple):
    iteration: int
    names: tuple[str, ...]
    values: Tensor
    copied: torch.cuda.Event | None


class ScalarQueue:
    """The scalars of the iterations since the last call of `means`, copied to the host while training goes on.

    The scalars of an iteration are looked at a fixed number of iterations later, so that they have arrived by then and
    every process looks at the same moment.

    Args:
        check: called once with (iteration, scalars) of every iteration, in order; says whether they count in the
            means; may raise.
        lag: how many iterations later; 0 on the CPU, where nothing has to arrive.
    """

    def __init__(self, check: Callable[[int, Mapping[str, float]], bool], lag: int = 0) -> None:
        self._check = check
        self._lag = lag
        self._arriving: deque[_Arriving] = deque()
        self._sums: dict[str, float] = {}
        self._counts: dict[str, int] = {}

    def put(self, iteration: int, names: Sequence[str], values: Tensor) -> None:
        """Sends off the scalars of an iteration (as many `values` as `names`) and checks those that are due.

        Raises: what `check` raises.
        """
        copied = None
        if values.is_cuda:
            host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
            host.copy_(values, non_blocking=True)
            values, copied = host, torch.cuda.Event()
            copied.record()
        self._arriving.append(_Arriving(iteration, tuple(names), values, copied))
        self.wait(self._lag)

    def wait(self, num_left: int = 0) -> None:
        """Waits for the scalars of all iterations but the last `num_left`, and checks them.

        Raises: what `check` raises.
        """
        while len(self._arriving) > num_left:
            iteration, names, values, copied = self._arriving.popleft()
            if copied is not None:
                copied.synchronize()
            scalars = dict(zip(names, values.tolist(), strict=True))
            if not self._check(iteration, scalars):
                continue
            for name, value in scalars.items():
                if math.isfinite(value):
                    self._sums[name] = self._sums.get(name, 0.0) + value
                    self._counts[name] = self._counts.get(name, 0) + 1

    def means(self) -> dict[str, float]:
        """The mean of each scalar over the iterations since the last call where it was finite; waits for them.

        Raises: what `check` raises.
        """
        self.wait()
        means = {name: total / self._counts[name] for name, total in self._sums.items()}
        self._sums, self._counts = {}, {}
        return means

    def state_dict(self) -> dict[str, dict[str, Any]]:
        """What the next means are made of so far; raises what `check` raises."""
        self.wait()
        return {"sums": dict(self._sums), "counts": dict(self._counts)}

    def load_state_dict(self, state_dict: Mapping[str, Mapping[str, Any]]) -> None:
        self._sums, self._counts = dict(state_dict["sums"]), dict(state_dict["counts"])
