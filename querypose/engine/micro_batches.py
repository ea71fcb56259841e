"""Gradient accumulation: how a batch is cut, and how its micro-batches are weighted so that nothing changes.

The rule. The criterion divides the sum S of a batch's losses by N = max(persons of the batch over all processes /
processes, 1). A micro-batch m divides its own sum S_m by its own N_m, so that N_m / N times its loss is S_m / N. Added
up over the micro-batches this is the loss, and the gradient, of the whole batch: also where a micro-batch has no
person, and where DistributedDataParallel averages over the processes. (BatchNorm statistics in training remain those
of the micro-batch.) A batch without `instances`, of a model that averages over images, counts images in their place.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

Batch = Sequence[Mapping[str, Any]]


def cut_batch(batch: Batch, num_micro_batches: int) -> list[Batch]:
    """Cuts a batch into `num_micro_batches` runs of consecutive items whose lengths differ by one at most.

    Raises:
        ValueError: the batch has fewer items than that.
    """
    if len(batch) < num_micro_batches:
        raise ValueError(f"A batch of {len(batch)} images cannot be cut into {num_micro_batches} micro-batches.")
    bounds = [len(batch) * index // num_micro_batches for index in range(num_micro_batches + 1)]
    return [batch[low:high] for low, high in itertools.pairwise(bounds)]


def micro_batch_weights(micro_batches: Sequence[Batch], device: torch.device) -> Tensor:
    """Factor of each micro-batch's loss, N_m / N of the rule above, as float64 on `device`.

    Every process must call it with the same number of micro-batches: it adds the counts up over the processes. Nothing
    waits for the device.
    """
    if len(micro_batches) == 1:
        return torch.ones(1, dtype=torch.float64, device=device)
    counts = torch.tensor([num_units(batch) for batch in micro_batches], dtype=torch.float64, device=device)
    num_processes = 1
    if dist.is_available() and dist.is_initialized():
        num_processes = dist.get_world_size()
        dist.all_reduce(counts)
    normalizers = (counts / num_processes).clamp(min=1.0)
    return normalizers / (counts.sum() / num_processes).clamp(min=1.0)


def num_units(batch: Batch) -> int:
    """Persons of a batch, or its images where the loader gives no persons: what losses are averaged over."""
    return sum(len(item["instances"]) if "instances" in item else 1 for item in batch)
