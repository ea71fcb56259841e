"""What both engines need of torch to train in several processes."""

from __future__ import annotations

import gc
import multiprocessing
from collections.abc import Callable
from typing import Any

import torch.distributed as dist


class RunStopped(SystemExit):
    """Ends a run that all its processes have agreed to stop, after its state was saved; carries the exit code."""


def leave_process_group() -> None:
    """Ends a training in several processes in order; all of them must call this, after the last use of the group.

    What still holds the group (a wrapped model, in reference cycles) goes first. Else the group's threads outlive it
    into the interpreter's shutdown, where one that asks for the interpreter's lock aborts the process.
    """
    gc.collect()
    dist.barrier()
    dist.destroy_process_group()
    gc.collect()


def run_and_leave(main: Callable[..., Any], *args: Any) -> None:
    """`main(*args)` in one of several processes, which then leave their group in order.

    Processes that it starts, such as those of data loaders, are started as the system does by default.

    Raises:
        SystemExit: the run was stopped, in all processes alike.
    """
    # A spawned process would spawn its own too, and each loader process of each evaluation import everything anew.
    multiprocessing.set_start_method(None, force=True)
    exit_code = None
    try:
        main(*args)
    except RunStopped as stop:
        exit_code = stop.code
    # After any other error not: the others wait in a collective, and this would wait for them. And not within the
    # `except`: the traceback holds the trainer, and with it the group.
    leave_process_group()
    if exit_code is not None:
        raise SystemExit(exit_code)
