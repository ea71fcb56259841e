"""How a run begins: its command line, log, config.yaml, environment and seeds."""

from __future__ import annotations

import argparse
import importlib.metadata
import logging
import os
import platform
import random
import sys

import numpy as np
import torch

from querypose.d2.builtin import comm
from querypose.d2.builtin.config import CfgNode
from querypose.d2.builtin.file_io import PathManager
from querypose.d2.builtin.logger import setup_logger
from querypose.d2.files import atomic_write

_PACKAGES = ("torchvision", "timm", "fvcore", "iopath", "numpy", "pillow", "scipy", "faster-coco-eval")


def default_argument_parser(epilog: str | None = None) -> argparse.ArgumentParser:
    """The command line of training programs; `epilog` ends the help text.

    Deviates: detectron2's --dist-url is a port fixed by the user id, so that two runs of one user collide.
    """
    parser = argparse.ArgumentParser(epilog=epilog, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", default="", metavar="FILE", help="path to the config file")
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint in OUTPUT_DIR, if any")
    parser.add_argument("--eval-only", action="store_true", help="evaluate MODEL.WEIGHTS, without training")
    parser.add_argument("--num-gpus", type=int, default=1, help="GPUs *per machine* (processes, if there is no GPU)")
    parser.add_argument("--num-machines", type=int, default=1, help="machines in all")
    parser.add_argument("--machine-rank", type=int, default=0, help="the number of this machine, from 0")
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
    PathManager.mkdirs(cfg.OUTPUT_DIR)
    setup_logger(cfg.OUTPUT_DIR, distributed_rank=rank, name="fvcore")
    logger = setup_logger(cfg.OUTPUT_DIR, distributed_rank=rank)
    logger.info("Rank of current process: %d. World size: %d", rank, comm.get_world_size())
    logger.info("Environment info:\n%s", collect_env_info())
    logger.info("Command line arguments: %s", args)
    config_file = getattr(args, "config_file", "")
    if config_file:
        with PathManager.open(config_file, "r") as stream:
            logger.info("Contents of args.config_file=%s:\n%s", config_file, stream.read())
    if comm.is_main_process():
        logger.info("Running with full config:\n%s", cfg.dump())
        path = os.path.join(cfg.OUTPUT_DIR, "config.yaml")
        with atomic_write(path, "w") as stream:
            stream.write(cfg.dump())
        logger.info("Full config saved to %s", path)
    seed_all_rng(None if cfg.SEED < 0 else cfg.SEED + rank)
    if not getattr(args, "eval_only", False):
        torch.backends.cudnn.benchmark = cfg.CUDNN_BENCHMARK


def seed_all_rng(seed: int | None = None) -> None:
    """Seeds the generators of random, numpy and torch; None draws a seed and logs it."""
    if seed is None:
        seed = int.from_bytes(os.urandom(4), "little")
        logging.getLogger(__name__).info("Using a generated random seed %d", seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002  # the global generator is what libraries draw from
    torch.manual_seed(seed)
    random.seed(seed)


def collect_env_info() -> str:
    """Versions and hardware, one per line."""
    lines = {
        "platform": platform.platform(),
        "Python": sys.version.replace("\n", " "),
        "PyTorch": torch.__version__,
        "CPU threads": str(torch.get_num_threads()),
    }
    for package in _PACKAGES:
        try:
            lines[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            lines[package] = "not installed"
    if torch.cuda.is_available():
        lines["CUDA"] = str(torch.version.cuda)
        for index in range(torch.cuda.device_count()):
            lines[f"GPU {index}"] = torch.cuda.get_device_name(index)
    else:
        lines["GPU"] = "none"
    width = max(map(len, lines))
    return "\n".join(f"{name:<{width}}  {value}" for name, value in lines.items())
