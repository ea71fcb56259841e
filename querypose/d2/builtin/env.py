"""The environment of a run: its seeds, and a description for the log."""

from __future__ import annotations

import importlib.metadata
import logging
import os
import platform
import random
import sys

import numpy as np
import torch

_PACKAGES = ("torchvision", "timm", "fvcore", "iopath", "numpy", "pillow", "scipy", "faster-coco-eval")


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
