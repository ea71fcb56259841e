"""What keeps float32 under any autocast: geometry, flow and losses."""

from __future__ import annotations

import torch
from torch import Tensor


def at_least_float32(tensor: Tensor) -> Tensor:
    """`tensor` in float32, or in float64 where it is that already; a no-op for both."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def full_precision(tensor: Tensor) -> torch.autocast:
    """A context that switches autocast off on the device of `tensor`."""
    return torch.autocast(tensor.device.type, enabled=False)
