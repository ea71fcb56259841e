"""The precisions of a forward pass, and helpers that keep geometry, flow and losses in float32 in all of them."""

from __future__ import annotations

import torch
from torch import Tensor

PRECISIONS: dict[str, torch.dtype | None] = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}
"""Name in a config -> what autocast computes in; None is without autocast."""


def at_least_float32(tensor: Tensor) -> Tensor:
    """`tensor` in float32; float32 and float64 stay as they are."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def full_precision(tensor: Tensor) -> torch.autocast:
    """A context that switches autocast off on the device of `tensor`."""
    return torch.autocast(tensor.device.type, enabled=False)
