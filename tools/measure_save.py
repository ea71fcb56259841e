#!/usr/bin/env python
"""Measures how long a checkpoint stops training: weights and AdamW's state in float32, N million parameters.

    python tools/measure_save.py --parameters 300 --saves 4 --output /somewhere/with/space

A loop of small steps stands for training; the stall of a save is the time that `save` takes, the slowest step while the
file is written shows what the writing thread takes from the loop.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
import time

import torch
from torch import nn

from querypose.engine.recovery import RunCheckpointer

_WIDTH = 1000  # a layer has a million weights


def main() -> None:
    """Prints one line a save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parameters", type=int, default=300, help="in millions")
    parser.add_argument("--saves", type=int, default=4, help="how many")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="of the model")
    parser.add_argument("--output", help="folder on the disk to write to; a temporary one by default")
    args = parser.parse_args()
    model = nn.Sequential(*(nn.Linear(_WIDTH, _WIDTH, device=args.device) for _ in range(args.parameters)))
    optimizer = torch.optim.AdamW(model.parameters(), foreach=False)
    folder = tempfile.mkdtemp(dir=args.output)
    try:
        measure(model, optimizer, RunCheckpointer(model, folder, optimizer=optimizer), args.saves)
    finally:
        shutil.rmtree(folder)


def measure(model: nn.Sequential, optimizer: torch.optim.Optimizer, checkpointer: RunCheckpointer, saves: int) -> None:
    """Saves `saves` times between steps, and prints what each save took."""
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()  # fills the optimiser's state
    optimizer.zero_grad(set_to_none=True)
    checkpointer.prepare()
    checkpointer.wait()
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    print(f"{num_parameters / 1e6:.0f}M parameters, {12 * num_parameters / 1e9:.1f} GB of state")
    undisturbed = statistics.median(_step(model) for _ in range(50))
    for index in range(saves):
        start = time.perf_counter()
        checkpointer.save(f"model_{index:07d}", keep=1, iteration=index)
        stall = time.perf_counter() - start
        steps = [_step(model)]
        while checkpointer.is_writing():
            steps.append(_step(model))
        print(
            f"save {index}: training stopped for {stall:.2f} s; written after {time.perf_counter() - start:.1f} s; a "
            f"step took {undisturbed * 1e3:.1f} ms before, {statistics.median(steps) * 1e3:.1f} ms (slowest "
            f"{max(steps) * 1e3:.0f} ms) while it was written"
        )
    checkpointer.wait()


def _step(model: nn.Sequential) -> float:
    start = time.perf_counter()
    layer = model[0]
    value = torch.ones(64, _WIDTH, device=next(model.parameters()).device)
    for _ in range(10):
        value = layer(value).tanh()
    value.sum().item()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
