"""Writing in the background: training waits for a copy of its state in memory, not for the disk."""

from __future__ import annotations

import threading
from collections.abc import Callable

import torch
from torch import Tensor


class SnapshotBuffers:
    """Copies of tensors in host memory, in buffers that are used again by the next copy.

    Memory that is used for the first time costs ten times what the copy costs; so `prepare` can do that beforehand.
    What lies on a GPU goes to page-locked memory, all of it at once.
    """

    def __init__(self) -> None:
        self._buffers: dict[str, Tensor] = {}

    def copy(self, name: str, tensor: Tensor) -> Tensor:
        """A copy, complete after `wait`, and valid until the next copy under that name."""
        buffer = self._buffer(name, tensor)
        return buffer.copy_(tensor, non_blocking=True)

    def prepare(self, name: str, tensor: Tensor) -> Tensor:
        """Gets the buffer ready; copies nothing."""
        return self._buffer(name, tensor)

    def wait(self) -> None:
        """Waits for the copies from a GPU."""
        if torch.cuda.is_available() and torch.cuda.is_initialized():
            torch.cuda.synchronize()

    def _buffer(self, name: str, tensor: Tensor) -> Tensor:
        buffer = self._buffers.get(name)
        if buffer is None or buffer.shape != tensor.shape or buffer.dtype != tensor.dtype:
            buffer = torch.empty_like(tensor, device="cpu", pin_memory=tensor.is_cuda).zero_()
            self._buffers[name] = buffer
        return buffer


class BackgroundWriter:
    """One job at a time in a thread. What it raises is raised where the training asks next."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def start(self, job: Callable[[], None]) -> None:
        """Starts a job once the one before is done.

        Raises: what the one before raised.
        """
        self.wait()
        self._thread = threading.Thread(target=self._run, args=(job,), name="checkpoint writer", daemon=True)
        self._thread.start()

    def wait(self) -> None:
        """Waits for the job.

        Raises: what the job raised.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self.check()

    def is_busy(self) -> bool:
        """Whether a job is running."""
        return self._thread is not None and self._thread.is_alive()

    def check(self) -> None:
        """Raises what the last job raised, if it has ended; waits for nothing."""
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def _run(self, job: Callable[[], None]) -> None:
        try:
            job()
        except BaseException as error:  # raised again by `check`, in the training
            self._error = error
