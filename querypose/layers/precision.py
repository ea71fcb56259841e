"""The precisions of a forward pass, and what keeps float32 in all of them: geometry, flow and losses."""

from __future__ import annotations

import torch
from torch import Tensor

PRECISIONS: dict[str, torch.dtype | None] = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}
"""Name in a config -> what autocast computes in; None is without autocast."""


def at_least_float32(tensor: Tensor) -> Tensor:
    """`tensor` in float32, or in float64 where it is that already; a no-op for both."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def full_precision(tensor: Tensor) -> torch.autocast:
    """A context that switches autocast off on the device of `tensor`."""
    return torch.autocast(tensor.device.type, enabled=False)
