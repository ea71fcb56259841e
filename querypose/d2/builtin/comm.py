"""What the processes of one training tell each other. Every function also works in a single process.

Objects travel over gloo, on the CPU, also where gradients travel over NCCL.
"""

from __future__ import annotations

import functools
import os
from typing import Any

import numpy as np
import torch
import torch.distributed as dist


def _is_distributed() -> bool:
    return dist.is_available() and dist.is_initialized()


def get_world_size() -> int:
    return dist.get_world_size() if _is_distributed() else 1


def get_rank() -> int:
    return dist.get_rank() if _is_distributed() else 0


def create_local_process_group(num_workers_per_machine: int) -> None:
    """States how many processes a machine has, for `get_local_rank`. `launch` and torchrun have done so already.

    Raises:
        AssertionError: the number of processes is not a multiple of it.
    """
    if get_world_size() % num_workers_per_machine:
        raise AssertionError(f"{get_world_size()} processes cannot be {num_workers_per_machine} on each machine.")
    # The variables that torchrun sets: whoever starts the processes, the local rank is read from one place.
    os.environ["LOCAL_RANK"] = str(get_rank() % num_workers_per_machine)
    os.environ["LOCAL_WORLD_SIZE"] = str(num_workers_per_machine)


def get_local_rank() -> int:
    """Number of this process among those of its machine: also the number of its GPU."""
    return _from_environment("LOCAL_RANK") if _is_distributed() else 0


def get_local_size() -> int:
    return _from_environment("LOCAL_WORLD_SIZE") if _is_distributed() else 1


def _from_environment(variable: str) -> int:
    if variable not in os.environ:
        raise AssertionError(
            f"The environment has no {variable}: start with launch() or torchrun, or call "
            "comm.create_local_process_group(processes per machine) after init_process_group."
        )
    return int(os.environ[variable])


def is_main_process() -> bool:
    """Whether this is the process that writes files and results."""
    return get_rank() == 0


def synchronize() -> None:
    if get_world_size() == 1:
        return
    if dist.get_backend() == "nccl":
        dist.barrier(device_ids=[torch.cuda.current_device()])  # without it NCCL guesses the device, and warns
    else:
        dist.barrier()


def _object_group() -> Any:
    """A group of all processes that objects can travel in."""
    return _new_gloo_group(dist.group.WORLD) if dist.get_backend() == "nccl" else dist.group.WORLD


@functools.lru_cache(maxsize=1)
def _new_gloo_group(world: Any) -> Any:
    """Made once for each `world`, which is another one when the processes meet anew."""
    return dist.new_group(backend="gloo")


def all_gather(data: Any, group: Any = None) -> list[Any]:
    """What every process passed in, in order of rank. Any object that pickles."""
    if get_world_size() == 1:
        return [data]
    group = _object_group() if group is None else group
    gathered: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(gathered, data, group=group)
    return gathered


def gather(data: Any, dst: int = 0, group: Any = None) -> list[Any]:
    """As `all_gather`, on process `dst` alone; the others get an empty list."""
    if get_world_size() == 1:
        return [data]
    group = _object_group() if group is None else group
    is_receiver = dist.get_rank(group) == dst
    gathered: list[Any] | None = [None] * dist.get_world_size(group) if is_receiver else None
    dist.gather_object(data, gathered, dst=dst, group=group)
    return gathered or []


def shared_random_seed() -> int:
    """A random number, the same in all processes, all of which must call this."""
    # numpy's global generator, as in detectron2: default_setup seeds it, so that the number follows from SEED.
    return int(all_gather(int(np.random.randint(2**31)))[0])  # noqa: NPY002
