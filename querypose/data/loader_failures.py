"""Explains why a process of a data loader died, and what to do about it."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator

from querypose.errors import UserError


class LoaderError(UserError, RuntimeError):
    """A process of a data loader died or cannot pass its samples on: names the cause if it is known, and the remedy."""

    met_by_all = False


_SHARED_MEMORY = (
    "the memory that processes share (/dev/shm) is full. Give it more (docker run --shm-size=8g), or lower "
    "DATALOADER.NUM_WORKERS"
)
_OPEN_FILES = "too many files are open. Raise the limit (ulimit -n 65536), or lower DATALOADER.NUM_WORKERS"
# Pattern of torch's messages -> their meaning. The first that matches counts.
_FAILURES = (
    (r"DataLoader worker .*(Bus error|shared memory)", _SHARED_MEMORY),
    (r"unable to (write to|allocate|mmap|resize|open shared memory|create).*No space left", _SHARED_MEMORY),
    (r"received \d+ items of ancdata|Too many open files", _OPEN_FILES),
    (
        r"DataLoader worker .*(is killed by signal|exited unexpectedly)",
        "a process of the data loader was killed, as a rule because the machine was out of memory. Lower "
        "DATALOADER.NUM_WORKERS or SOLVER.IMS_PER_BATCH. If that does not help, set DATALOADER.NUM_WORKERS 0 to see "
        "the error itself",
    ),
)


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
                first_line = message.strip().partition("\n")[0].rstrip(". ")
                raise LoaderError(f"The data could not be loaded: {meaning}. ({first_line}.)") from error
        raise
