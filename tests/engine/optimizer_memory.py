"""Measures what AdamW's state takes of two processes' memory, whole and sharded.

    python -m tests.engine.optimizer_memory configs/querypose/querypose_swin_l_fpn_2x_full.yaml

Every gradient is 1, so that nothing but the optimizer computes.
"""

from __future__ import annotations

import resource
import sys
from pathlib import Path

import torch
from torch.distributed.optim import ZeroRedundancyOptimizer

from querypose.config import load_config
from querypose.d2 import build_model, comm, launch
from querypose.engine.optimizer import build_optimizer

PROCESSES = 2


def resident() -> int:
    """Bytes of memory that this process holds now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def measure(config_file: str, shard: bool) -> None:
    """In each process: prints the bytes of the state, and how much the process grew by a step."""
    torch.set_num_threads(1)
    model = build_model(load_config(config_file, ["MODEL.DEVICE", "cpu", "MODEL.BACKBONE.PRETRAINED", "False"]))
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter) if parameter.requires_grad else None
    optimizer = build_optimizer(
        model, base_lr=1e-4, weight_decay=1e-4, weight_decay_norm=1e-4, weight_decay_bias=1e-4, shard=shard
    )
    before = resident()
    optimizer.step()
    grown = resident() - before
    own = optimizer.optim if isinstance(optimizer, ZeroRedundancyOptimizer) else optimizer
    state = sum(value.numel() * value.element_size() for moments in own.state.values() for value in moments.values())
    weights = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    for rank, numbers in enumerate(comm.all_gather((state, grown, resident()))):
        if comm.is_main_process():
            mebibytes = ", ".join(f"{number / 2**20:.0f}" for number in numbers)
            print(
                f"{weights / 1e6:.1f}M trained, sharded {shard}, process {rank}: {mebibytes} MiB of state, grown, RSS"
            )


if __name__ == "__main__":
    for shard in (False, True):
        launch(measure, PROCESSES, dist_url="auto", args=(sys.argv[1], shard))
