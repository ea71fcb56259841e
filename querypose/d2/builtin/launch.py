"""Starts the processes of a training on this machine."""

from __future__ import annotations

import socket
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from querypose.d2.builtin import comm
from querypose.d2.processes import run_and_leave
from querypose.errors import UserError

DEFAULT_TIMEOUT = timedelta(minutes=30)


class MeetingError(UserError, RuntimeError):
    """The processes of a run do not find each other."""

    met_by_all = False


def launch(
    main_func: Callable[..., Any],
    num_gpus_per_machine: int,
    num_machines: int = 1,
    machine_rank: int = 0,
    dist_url: str | None = None,
    args: tuple[Any, ...] = (),
    timeout: timedelta = DEFAULT_TIMEOUT,
) -> None:
    """Runs `main_func(*args)`: here if one process is enough, else in spawned processes that can reach each other.

    Call it on every machine that takes part. The processes talk NCCL where there are GPUs, else gloo.

    Args:
        main_func: a function that a new process can import.
        num_gpus_per_machine: processes on each machine; on a machine without GPUs simply processes.
        num_machines: machines in all.
        machine_rank: the number of this machine.
        dist_url: where the processes meet, such as "tcp://10.0.0.1:29500"; "auto" takes a free port of this machine.
        args: of `main_func`.
        timeout: how long a process waits for the others.

    Raises:
        AssertionError: "auto" with several machines, or no URL with several processes.
        ValueError: more processes than GPUs.
    """
    world_size = num_machines * num_gpus_per_machine
    if world_size <= 1:
        main_func(*args)
        return
    if dist_url == "auto":
        if num_machines > 1:
            raise AssertionError("dist_url 'auto' is for one machine; give --dist-url tcp://HOST:PORT of machine 0.")
        dist_url = f"tcp://127.0.0.1:{_free_port()}"
    if dist_url is None:
        raise AssertionError(f"{world_size} processes need a dist_url, such as 'auto' or 'tcp://HOST:PORT'.")
    if torch.cuda.is_available() and num_gpus_per_machine > torch.cuda.device_count():
        raise ValueError(
            f"--num-gpus is {num_gpus_per_machine}, but this machine has {torch.cuda.device_count()} GPUs. "
            "Lower --num-gpus, or hide the GPUs (CUDA_VISIBLE_DEVICES='') to train on the CPU."
        )
    mp.start_processes(
        _run_process,
        args=(main_func, world_size, num_gpus_per_machine, machine_rank, dist_url, args, timeout),
        nprocs=num_gpus_per_machine,
        daemon=False,
        start_method="spawn",
    )


def _run_process(
    local_rank: int,
    main_func: Callable[..., Any],
    world_size: int,
    num_gpus_per_machine: int,
    machine_rank: int,
    dist_url: str,
    args: tuple[Any, ...],
    timeout: timedelta,
) -> None:
    has_gpu = torch.cuda.is_available()
    if has_gpu:
        torch.cuda.set_device(local_rank)
    try:
        dist.init_process_group(
            backend="nccl" if has_gpu else "gloo",
            init_method=dist_url,
            world_size=world_size,
            rank=machine_rank * num_gpus_per_machine + local_rank,
            timeout=timeout,
        )
    except (RuntimeError, ValueError) as error:
        raise MeetingError(f"The processes could not meet at {dist_url} ({error}). Correct --dist-url.") from error
    comm.create_local_process_group(num_gpus_per_machine)
    comm.synchronize()
    run_and_leave(main_func, *args)


def _free_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
