"""What a data loader says when one of its processes dies, in terms of what to do about it."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator


class LoaderError(RuntimeError):
    """A process of a data loader died or cannot hand its samples over: says why as far as is known, and the remedy."""


_SHARED_MEMORY = (
    "the memory that processes share (/dev/shm) is full. Give it more (docker run --shm-size=8g), or lower "
    "DATALOADER.NUM_WORKERS"
)
_OPEN_FILES = "too many files are open. Raise the limit (ulimit -n 65536), or lower DATALOADER.NUM_WORKERS"
# What torch's messages hold -> what they mean. The first that fits counts.
_FAILURES = (
    (r"DataLoader worker .*(Bus error|shared memory)", _SHARED_MEMORY),
    (r"unable to (write to|allocate|mmap|resize|open shared memory|create).*No space left", _SHARED_MEMORY),
    (r"received \d+ items of ancdata|Too many open files", _OPEN_FILES),
    (
        r"DataLoader worker .*(is killed by signal|exited unexpectedly)",
        "a process of the data loader was killed, as a rule because the machine was out of memory. Lower "
        "DATALOADER.NUM_WORKERS or SOLVER.IMS_PER_BATCH; with DATALOADER.NUM_WORKERS 0 an error of the loading itself "
        "shows",
    ),
)


@contextlib.contextmanager
def explain_loader_failures() -> Iterator[None]:
    """Within the context a dead loader process ends in a `LoaderError`; it may be noticed anywhere, not just in a read.

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
                raise LoaderError(f"Loading of data failed: {meaning}. ({first_line}.)") from error
        raise
