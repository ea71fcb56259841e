"""What a run does unless told otherwise: its arguments, its setup, its writers, and models in several processes."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from querypose.d2.builtin import comm
from querypose.d2.builtin.config import CfgNode
from querypose.d2.builtin.env import collect_env_info, seed_all_rng
from querypose.d2.builtin.file_io import PathManager, atomic_write
from querypose.d2.builtin.logger import setup_logger
from querypose.d2.builtin.writers import CommonMetricPrinter, EventWriter, JSONWriter, TensorboardXWriter
from querypose.d2.processes import ddp_arguments

_EXAMPLES = """
Examples:

On one machine:
    $ {program} --num-gpus 8 --config-file cfg.yaml

With other values of some keys:
    $ {program} --config-file cfg.yaml MODEL.WEIGHTS /path/to/weights.pth SOLVER.BASE_LR 0.001

On two machines:
    (machine 0)$ {program} --machine-rank 0 --num-machines 2 --dist-url <URL> [other arguments]
    (machine 1)$ {program} --machine-rank 1 --num-machines 2 --dist-url <URL> [other arguments]
"""


def default_argument_parser(epilog: str | None = None) -> argparse.ArgumentParser:
    """The command line of training programs.

    Args:
        epilog: ends the help text, in place of the examples.
    """
    parser = argparse.ArgumentParser(
        epilog=epilog or _EXAMPLES.format(program=sys.argv[0]), formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", default="", metavar="FILE", help="path to the config file")
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint in OUTPUT_DIR, if any")
    parser.add_argument("--eval-only", action="store_true", help="evaluate MODEL.WEIGHTS, without training")
    parser.add_argument("--num-gpus", type=int, default=1, help="GPUs *per machine* (processes, if there is no GPU)")
    parser.add_argument("--num-machines", type=int, default=1, help="machines in all")
    parser.add_argument("--machine-rank", type=int, default=0, help="the number of this machine, from 0")
    # Deviates: detectron2 takes a port fixed by the user id, so that two runs of one user collide.
    parser.add_argument(
        "--dist-url", default="auto", help="where the processes meet: 'auto' on one machine, else tcp://HOST:PORT"
    )
    parser.add_argument(
        "opts", nargs=argparse.REMAINDER, default=None, help="KEY VALUE pairs that replace values of the config file"
    )
    return parser


def default_setup(cfg: CfgNode, args: argparse.Namespace) -> None:
    """Begins a run: logging to log.txt, a description of the environment, config.yaml, seeds.

    Args:
        cfg: OUTPUT_DIR, SEED (each process adds its rank; negative: drawn) and CUDNN_BENCHMARK are read.
        args: logged; `config_file` and `eval_only` are read if there.
    """
    rank = comm.get_rank()
    output_dir = cfg.OUTPUT_DIR
    if output_dir:
        PathManager.mkdirs(output_dir)
    setup_logger(output_dir or None, distributed_rank=rank, name="fvcore")
    logger = setup_logger(output_dir or None, distributed_rank=rank)
    logger.info("Rank of current process: %d. World size: %d", rank, comm.get_world_size())
    logger.info("Environment info:\n%s", collect_env_info())
    logger.info("Command line arguments: %s", args)
    config_file = getattr(args, "config_file", "")
    if config_file:
        with PathManager.open(config_file, "r") as stream:
            logger.info("Contents of args.config_file=%s:\n%s", config_file, stream.read())
    if comm.is_main_process() and output_dir:
        logger.info("Running with full config:\n%s", cfg.dump())
        path = os.path.join(output_dir, "config.yaml")
        with atomic_write(path, "w") as stream:
            stream.write(cfg.dump())
        logger.info("Full config saved to %s", path)
    seed_all_rng(None if cfg.SEED < 0 else cfg.SEED + rank)
    if not getattr(args, "eval_only", False):
        torch.backends.cudnn.benchmark = cfg.CUDNN_BENCHMARK


def default_writers(output_dir: str, max_iter: int | None = None) -> list[EventWriter]:
    """A progress line, metrics.json and TensorBoard events in `output_dir`."""
    PathManager.mkdirs(output_dir)
    return [
        CommonMetricPrinter(max_iter),
        JSONWriter(os.path.join(output_dir, "metrics.json")),
        TensorboardXWriter(output_dir),
    ]


def create_ddp_model(model: nn.Module, *, fp16_compression: bool = False, **kwargs: Any) -> nn.Module:
    """Wraps a model for training in several processes; in one process it stays as it is.

    Args:
        model: on the device of this process, GPU or CPU.
        fp16_compression: send gradients in half precision.
        kwargs: further arguments of `DistributedDataParallel`.
    """
    if comm.get_world_size() == 1:
        return model
    logging.getLogger(__name__).info("Training in %d processes.", comm.get_world_size())
    wrapped = DistributedDataParallel(model, **ddp_arguments(model, comm.get_local_rank(), kwargs))
    if fp16_compression:
        from torch.distributed.algorithms.ddp_comm_hooks import default_hooks

        wrapped.register_comm_hook(state=None, hook=default_hooks.fp16_compress_hook)
    return wrapped
