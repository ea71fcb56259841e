"""Starts the processes of a run: detectron2's --num-gpus, or the ones that torchrun has started."""

from __future__ import annotations

import argparse
import contextlib
import datetime
import os
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch.multiprocessing import ProcessExitedException

from querypose import d2
from querypose.config import ConfigError
from querypose.d2 import comm, run_and_leave
from querypose.engine.errors import LostProcessError
from querypose.engine.stop_signal import signals_to_children

_TORCHRUN_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
_RESTARTS = "TORCHELASTIC_RESTART_COUNT"
TIMEOUT = datetime.timedelta(minutes=30)
_MAX_MINUTES = 60 * 24 * 31
_MANY = 10**9
_UNSET = "torchrun sets it; to start without torchrun, unset RANK."


def add_timeout_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--timeout", type=_minutes, default=TIMEOUT.total_seconds() / 60, metavar="MINUTES",
        help="end the run if one of its processes does not answer for so many minutes (default: %(default)g)",
    )  # fmt: skip


def _minutes(text: str) -> float:
    minutes = float(text)
    if not 0 < minutes <= _MAX_MINUTES:
        raise argparse.ArgumentTypeError(f"{text} is not above 0 and at most {_MAX_MINUTES} (a month)")
    return minutes


def launch(
    main: Callable[[argparse.Namespace], Any], args: argparse.Namespace, timeout: datetime.timedelta = TIMEOUT
) -> None:
    """Runs `main(args)` in every process of the run.

    Under torchrun (which sets RANK, WORLD_SIZE, …) this process is one of them, and --num-gpus and the like do not
    matter; a run that torchrun restarts goes on from its last checkpoint. Otherwise --num-gpus processes are started on
    this machine: one per GPU, or without a GPU that many on the CPU, which then exchange their gradients by gloo.

    Args:
        main: picklable, as the processes import it.
        args: of `default_argument_parser`.
        timeout: how long a process waits for another, at the start and in an exchange. It must be longer than the
            first process needs to compute the metrics of an evaluation, for which the others wait.

    Raises:
        ConfigError: more processes are asked for than there are GPUs, the time is not above 0, or the variables of
            torchrun are not what it sets.
        LostProcessError: a process was killed; the others were ended.
        SystemExit: a process ended with that exit code; 75 says that a signal stopped the run, which is saved.
    """
    if timeout <= datetime.timedelta(0):
        raise ConfigError("--timeout must be above 0 minutes.")
    if args.num_gpus < 0 or args.num_machines < 1 or not 0 <= args.machine_rank < args.num_machines:
        raise ConfigError(
            f"--num-gpus is {args.num_gpus}, --num-machines {args.num_machines}, --machine-rank {args.machine_rank}; "
            "allowed: 0 or more, 1 or more, and a number from 0 below --num-machines."
        )
    if args.num_machines > 1 and not args.dist_url.startswith("tcp://"):
        raise ConfigError(f"--dist-url is {args.dist_url!r}; with --num-machines it is tcp://HOST:PORT of machine 0.")
    if started_by_torchrun():
        _join_torchrun(timeout)
        # After a failure torchrun starts the same command again, which then is to go on.
        args.resume = args.resume or num_restarts() > 0
        run_and_leave(main, args)
        return
    if torch.cuda.is_available() and args.num_gpus > torch.cuda.device_count():
        raise ConfigError(f"--num-gpus is {args.num_gpus}, but this machine has {torch.cuda.device_count()} GPUs.")
    has_children = args.num_gpus * args.num_machines > 1
    try:
        with signals_to_children() if has_children else contextlib.nullcontext():
            d2.launch(
                main,
                args.num_gpus,
                num_machines=args.num_machines,
                machine_rank=args.machine_rank,
                dist_url=args.dist_url,
                args=(args,),
                timeout=timeout,
            )
    except ProcessExitedException as error:
        if error.signal_name is not None:
            raise LostProcessError(
                f"Process {error.error_index} was killed by {error.signal_name}, so the other processes were ended. "
                "SIGKILL often means that the machine had no memory left (dmesg tells). Go on with --resume."
            ) from error
        raise SystemExit(error.exit_code) from error


def started_by_torchrun() -> bool:
    return all(variable in os.environ for variable in _TORCHRUN_VARIABLES)


def num_restarts() -> int:
    return int(os.environ.get(_RESTARTS, "0"))


def _check_torchrun_variables() -> None:
    """Refuses what torchrun does not set: a script or a scheduler may have set it, or only some of it.

    Raises:
        ConfigError: names the variable and what is allowed.
    """
    bounds = {"WORLD_SIZE": (1, _MANY), "LOCAL_WORLD_SIZE": (1, _MANY), "MASTER_PORT": (1, 65535)}
    bounds |= {"RANK": (0, _MANY), "LOCAL_RANK": (0, _MANY), _RESTARTS: (0, _MANY)}
    values = {}
    for name, (low, high) in bounds.items():
        text = os.environ.get(name, "0" if name == _RESTARTS else "")
        values[name] = int(text) if text.isascii() and text.isdigit() and len(text) < 10 else -1
        if not low <= values[name] <= high:
            allowed = f"integers from {low}" + (f" to {high}" if high < _MANY else "")
            raise ConfigError(f"The environment variable {name} is {text!r}; allowed: {allowed}. {_UNSET}")
    for rank, size in (("RANK", "WORLD_SIZE"), ("LOCAL_RANK", "LOCAL_WORLD_SIZE")):
        if values[rank] >= values[size]:
            raise ConfigError(
                f"The environment variable {rank} is {values[rank]}; allowed: integers below {size} ({values[size]}). "
                f"{_UNSET}"
            )
    if values["WORLD_SIZE"] % values["LOCAL_WORLD_SIZE"]:
        raise ConfigError(
            f"The environment variable LOCAL_WORLD_SIZE is {values['LOCAL_WORLD_SIZE']}; allowed: divisors of "
            f"WORLD_SIZE ({values['WORLD_SIZE']}). {_UNSET}"
        )
    if not os.environ.get("MASTER_ADDR"):
        raise ConfigError(f"The environment variable MASTER_ADDR is not set; allowed: the host of rank 0. {_UNSET}")
    num_gpus = torch.cuda.device_count()
    if num_gpus and values["LOCAL_RANK"] >= num_gpus:
        raise ConfigError(
            f"torchrun started process {values['LOCAL_RANK']} on this machine, which has {num_gpus} GPUs. Lower "
            "--nproc-per-node, or hide the GPUs (CUDA_VISIBLE_DEVICES='') to train on the CPU."
        )


def _join_torchrun(timeout: datetime.timedelta) -> None:
    _check_torchrun_variables()
    on_gpu = torch.cuda.is_available()
    if on_gpu:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    store, rank, world_size = next(dist.rendezvous("env://", timeout=timeout))
    # A restarted run may meet at the same store: there it must not find the addresses of processes that have died.
    store = dist.PrefixStore(f"restart_{num_restarts()}", store)
    backend = "nccl" if on_gpu else "gloo"
    dist.init_process_group(backend=backend, store=store, rank=rank, world_size=world_size, timeout=timeout)
    comm.create_local_process_group(int(os.environ["LOCAL_WORLD_SIZE"]))
    comm.synchronize()
