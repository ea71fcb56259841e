"""SIGTERM (a cluster takes its machine back) and SIGINT (Ctrl-C) as a wish to stop, on which all processes agree."""

from __future__ import annotations

import contextlib
import math
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist

from querypose.d2 import comm

STOPPED_EXIT_CODE = 75  # EX_TEMPFAIL of sysexits.h: "try again later"
_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopSignal:
    """Notes SIGTERM and SIGINT instead of dying from them; a second SIGINT ends the process at once.

    The processes tell each other in every iteration, by a message whose answer is read in the next one: nothing waits.
    """

    # Seconds after a signal in which a batch may still come; a cluster gives at least 30 until it kills.
    PATIENCE = 10.0

    def __init__(self) -> None:
        self.is_requested = False
        self._requested_at = math.inf
        self._interrupts = 0
        self._former_handlers: dict[int, Any] = {}
        self._group: Any = None
        self._anyone = torch.zeros(1, dtype=torch.uint8)
        self._exchange: Any = None

    def install(self) -> None:
        """Takes the signals, where that is possible: in the main thread. All processes must call it together."""
        if threading.current_thread() is threading.main_thread():
            self._former_handlers = {number: signal.signal(number, self._note) for number in _SIGNALS}
        if comm.get_world_size() > 1:
            # On the CPU, also where gradients travel between GPUs: reading the answer must not wait for the GPU. And a
            # group of its own: in one group a message that is not answered in time would break those after it.
            self._group = dist.new_group(backend="gloo")

    def release(self, wait: bool) -> None:
        """Gives the signals back.

        Args:
            wait: read the last answer, which is on its way if all processes still live.
        """
        for number, handler in self._former_handlers.items():
            signal.signal(number, handler)
        self._former_handlers = {}
        if wait and self._exchange is not None:
            self._exchange.wait()
        self._exchange = self._group = None

    def is_agreed(self) -> bool:
        """Whether all processes stop in this iteration; every process must ask in every iteration."""
        if self._group is None:
            return self.is_requested
        if self._exchange is not None:
            self._exchange.wait()
            self._exchange = None
            if self._anyone.item():
                return True
        self._anyone.fill_(self.is_requested)
        self._exchange = dist.all_reduce(self._anyone, op=dist.ReduceOp.MAX, group=self._group, async_op=True)
        return False

    def is_overdue(self) -> bool:
        """Whether this process got a signal so long ago that it should not wait for the data loader any more."""
        return time.monotonic() - self._requested_at > self.PATIENCE

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._interrupts += number == signal.SIGINT
        if self._interrupts > 1:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGINT)
        if not self.is_requested:
            self.is_requested = True
            self._requested_at = time.monotonic()
            # Not by a logger: the signal may have come in the midst of writing a log line.
            name = signal.Signals(number).name
            message = (
                "saving and stopping after this iteration. A second SIGINT (Ctrl-C) stops at once, without saving."
            )
            os.write(2, f"{name}: {message}\n".encode())


@contextlib.contextmanager
def signals_to_children() -> Iterator[None]:
    """Within the context SIGTERM and SIGINT go on to the processes that this one has started, and it waits for them.

    They get SIGTERM, which may come twice: at Ctrl-C the terminal has signalled them already. A second SIGINT kills.
    """
    interrupts = 0

    def hand_on(number: int, frame: FrameType | None) -> None:
        nonlocal interrupts
        interrupts += number == signal.SIGINT
        for child in multiprocessing.active_children():
            child.kill() if interrupts > 1 else child.terminate()

    former = {number: signal.signal(number, hand_on) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
