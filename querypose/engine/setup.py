"""What every tool does first: the config, the datasets it names, the log, the seeds, the threads."""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import logging
import os
import platform
import sys
from pathlib import Path

import torch

from querypose import d2
from querypose.config import ConfigError, load_config
from querypose.d2 import CfgNode, comm, default_setup, setup_logger
from querypose.data import register_custom_datasets
from querypose.engine.run_lock import own_output_dir
from querypose.lost_output import watch_loggers

# What a user sets to tell glibc how to allocate; parameters of its mallopt, from malloc.h.
_MALLOC_VARIABLES = ("MALLOC_MMAP_MAX_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES")
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4


def setup(args: argparse.Namespace) -> CfgNode:
    """Prepares a run from the command line.

    Registers the config's own datasets, takes the lock of OUTPUT_DIR, opens OUTPUT_DIR/log.txt, says which engine
    runs, writes OUTPUT_DIR/config.yaml, and seeds every random generator, each process differently.

    Args:
        args: of `default_argument_parser`.

    Returns:
        the validated config, frozen.

    Raises:
        ConfigError: the config file is missing, a key is unknown or has a value that is not allowed, or another run
            writes to OUTPUT_DIR.
        SkeletonError, DatasetError: DATASETS.SKELETONS or DATASETS.CUSTOM cannot be used.
    """
    try:
        cfg = load_config(
            args.config_file or None, args.opts, getattr(args, "imports", ()), row=getattr(args, "row", None)
        )
    except FileNotFoundError as error:
        raise ConfigError(f"--config-file: {error}") from error
    register_custom_datasets(cfg)
    cfg.freeze()
    own_output_dir(cfg.OUTPUT_DIR)
    logger = setup_logger(cfg.OUTPUT_DIR, distributed_rank=comm.get_rank(), name="querypose")
    watch_loggers([logger])
    logger.info(f"Engine: {d2.ENGINE} {d2.ENGINE_VERSION}; torch {torch.__version__}; Python {sys.version.split()[0]}")
    default_setup(cfg, args)
    watch_loggers(map(logging.getLogger, ("querypose", "fvcore", "detectron2")))
    if cfg.DETERMINISTIC:
        use_deterministic_algorithms()
    prepare_process(cfg)
    return cfg


def prepare_process(cfg: CfgNode) -> None:
    """Gives this process its share of the cores, and the precision of TF32; on a CPU also KEEP_FREED_MEMORY."""
    share_cores()
    torch.backends.cudnn.allow_tf32 = cfg.TF32 != "none"
    torch.set_float32_matmul_precision("high" if cfg.TF32 == "all" else "highest")
    if cfg.KEEP_FREED_MEMORY and torch.device(cfg.MODEL.DEVICE).type == "cpu":
        keep_freed_memory()


def use_deterministic_algorithms() -> None:
    """Makes torch give the same numbers in every run on a GPU; an operation that cannot raises RuntimeError."""
    # cuBLAS reads it when it is first used: one of the two sizes with which its sums have a fixed order.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False


def available_cores() -> int:
    """CPU cores that this process may use: of its affinity, or fewer where a container's quota allows less."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with contextlib.suppress(OSError, ValueError):
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        if quota != "max":
            cores = min(cores, -(-int(quota) // int(period)))
    return max(1, cores)


def share_cores() -> None:
    """Shares the cores among the processes of this machine, unless OMP_NUM_THREADS says otherwise."""
    if "OMP_NUM_THREADS" in os.environ:
        return
    threads = max(1, available_cores() // comm.get_local_size())
    if threads < torch.get_num_threads():
        torch.set_num_threads(threads)
        logging.getLogger(__name__).info(f"torch computes with {threads} threads per process")


def keep_freed_memory() -> bool:
    """Lets this process keep the memory that tensors on the CPU have freed, for the next ones.

    It takes a quarter off a training iteration on a CPU. By default glibc returns every freed block of 32 MB or more to
    the kernel, which zeroes each of its pages anew when the next tensor needs them. Does nothing with another C
    library, or where the environment already says how glibc shall allocate.

    Returns:
        whether memory is kept.
    """
    if platform.libc_ver()[0] != "glibc" or any(name in os.environ for name in _MALLOC_VARIABLES):
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(_M_MMAP_MAX, 0)) and bool(mallopt(_M_TRIM_THRESHOLD, -1))
