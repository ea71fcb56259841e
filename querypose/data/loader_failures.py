"""Batches of loader processes that may die, stop, or find no memory to pass their samples on: nobody waits for ever."""

from __future__ import annotations

import contextlib
import pickle
import queue
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.process import BaseProcess
from multiprocessing.reduction import ForkingPickler
from multiprocessing.util import Finalize
from typing import Any

from torch.utils.data import DataLoader, Dataset

from querypose.errors import UserError


class LoaderError(UserError, RuntimeError):
    """A process of a data loader died or cannot pass its samples on: names the cause if it is known, and the remedy."""

    met_by_all = False


class StoppedWaitingError(Exception):
    """The run is to stop, and the loader has given no batch meanwhile."""


_SHARED_MEMORY = (
    "the memory that processes share (/dev/shm) is full. Give it more (docker run --shm-size=8g), or lower "
    "DATALOADER.NUM_WORKERS"
)
_OPEN_FILES = "too many files are open. Raise the limit (ulimit -n 65536), or lower DATALOADER.NUM_WORKERS"
_KILLED = (
    "a process of the data loader was killed, as a rule because the machine was out of memory. Lower "
    "DATALOADER.NUM_WORKERS or SOLVER.IMS_PER_BATCH. If that does not help, set DATALOADER.NUM_WORKERS 0 to see "
    "the error itself"
)
# Pattern of torch's messages -> their meaning. The first that matches counts.
_FAILURES = (
    (r"DataLoader worker .*(Bus error|shared memory)", _SHARED_MEMORY),
    (r"unable to (write to|allocate|mmap|resize|open shared memory|create).*No space left", _SHARED_MEMORY),
    (r"received \d+ items of ancdata|Too many open files", _OPEN_FILES),
    (r"DataLoader worker .*(is killed by signal|exited unexpectedly)", _KILLED),
)
# Seconds between two looks at whether to wait on, and for the end of a process that is killed.
_POLL, _END = 0.5, 5.0

_reasons_to_stop: list[Callable[[], bool]] = []


@contextlib.contextmanager
def explain_loader_failures() -> Iterator[None]:
    """Within the context, a dead loader process becomes a `LoaderError`, wherever it is noticed.

    Raises:
        LoaderError: in place of torch's RuntimeError or OSError.
    """
    try:
        yield
    except (RuntimeError, OSError) as error:
        message = str(error)
        for pattern, meaning in _FAILURES:
            if re.search(pattern, message):
                lines = message.strip().splitlines()
                is_from_process = "Original Traceback" in message  # whose last line is the error
                raise _error(meaning, lines[-1 if is_from_process else 0]) from error
        raise


@contextlib.contextmanager
def waiting_stops_if(is_over: Callable[[], bool]) -> Iterator[None]:
    """Within the context, nobody waits on for a batch once `is_over` says so: StoppedWaitingError is raised instead."""
    _reasons_to_stop.append(is_over)
    try:
        yield
    finally:
        _reasons_to_stop.remove(is_over)


class WatchedLoader(DataLoader[Any]):
    """A DataLoader of lists of samples that says why its processes give no batch, instead of waiting for ever.

    * A sample is pickled where it was made, so that an error in this is raised here like one in making it. By default a
      thread pickles it, which prints the error and drops the sample.
    * A thread waits for the next batch; so the waiting ends whatever the thread hangs in.
    * Processes that do not end by themselves are killed.

    Args:
        dataset: of DataLoader.
        timeout: seconds without a batch that are an error; only with loader processes.
        num_workers: loader processes; 0 loads in this one.
        settings: keywords of DataLoader.
    """

    def __init__(self, dataset: Dataset[Any], *, timeout: float, num_workers: int, **settings: Any) -> None:
        collate: Callable[[list[Any]], Any] = _pack if num_workers else list
        super().__init__(dataset, num_workers=num_workers, collate_fn=collate, **settings)
        self.patience = timeout

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]  # one that may only be iterated
        batches: Any = super().__iter__()
        if self.num_workers == 0:
            yield from batches
            return
        workers: Sequence[BaseProcess] = batches._workers
        kill_the_rest = Finalize(None, _kill, args=(workers,), exitpriority=1)  # also where the program ends
        wanted: queue.SimpleQueue[bool] = queue.SimpleQueue()
        got: queue.SimpleQueue[Any] = queue.SimpleQueue()
        thread = threading.Thread(target=_serve, args=([batches], wanted, got), name="loader", daemon=True)
        del batches  # the thread's alone: at its end the processes are told to end
        thread.start()
        try:
            while True:
                wanted.put(True)
                batch, error = self._wait(got)
                if isinstance(error, StopIteration):
                    break
                if error is not None:
                    raise _explained(error, workers)
                yield batch
        except GeneratorExit:
            raise
        except BaseException:
            kill_the_rest()
            raise
        finally:
            wanted.put(False)
            if kill_the_rest.still_active():
                thread.join(_END)
                kill_the_rest()

    def _wait(self, got: queue.SimpleQueue[Any]) -> Any:
        end = time.monotonic() + self.patience
        while True:
            try:
                return got.get(timeout=min(_POLL, self.patience))
            except queue.Empty:
                if any(is_over() for is_over in _reasons_to_stop):
                    raise StoppedWaitingError("The data loader gives no batch.") from None
                if time.monotonic() > end:
                    raise LoaderError(
                        f"The data loader has given no batch for {self.patience:g} s (DATALOADER.TIMEOUT). Its "
                        "processes may be stopped, or wait for a disk that does not answer. If they are only slow, "
                        "raise DATALOADER.TIMEOUT; DATALOADER.NUM_WORKERS 0 shows what they do."
                    ) from None


def _pack(samples: list[Any]) -> bytes:
    """In the loader process; tensors go to shared memory."""
    return bytes(ForkingPickler.dumps(samples))


def _serve(holder: list[Any], wanted: queue.SimpleQueue[bool], got: queue.SimpleQueue[Any]) -> None:
    batches = holder.pop()
    while wanted.get():
        try:
            got.put((pickle.loads(next(batches)), None))
        except BaseException as error:
            got.put((None, error))


def _explained(error: BaseException, workers: Sequence[BaseProcess]) -> BaseException:
    """The error, or that a loader process was killed where this is what became of it."""
    if not isinstance(error, OSError | EOFError | pickle.UnpicklingError):
        return error
    end = time.monotonic() + _END / 5  # the connection may be gone before the process is
    while all(worker.is_alive() for worker in workers):
        if time.monotonic() > end:
            return error
        time.sleep(0.01)
    [dead, *_] = [worker for worker in workers if not worker.is_alive()]
    is_bus_error = dead.exitcode == -signal.SIGBUS
    result = _error(_SHARED_MEMORY if is_bus_error else _KILLED, f"Process {dead.pid} ended with code {dead.exitcode}")
    result.__cause__ = error
    return result


def _error(meaning: str, detail: str) -> LoaderError:
    return LoaderError(f"The data could not be loaded: {meaning}. ({detail.rstrip('. ')}.)")


def _kill(workers: Sequence[BaseProcess]) -> None:
    """Ends what is left of loader processes; a process that is stopped takes no other signal."""
    is_main = threading.current_thread() is threading.main_thread()
    # torch's handler would raise that they were killed.
    former = signal.signal(signal.SIGCHLD, signal.SIG_DFL) if is_main else None
    for worker in workers:
        worker.kill()
    for worker in workers:
        worker.join(_END)
    if is_main:
        signal.signal(signal.SIGCHLD, former)
