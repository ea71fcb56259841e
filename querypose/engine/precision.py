"""The precisions in which a forward pass can run."""

from __future__ import annotations

import torch

PRECISIONS: dict[str, torch.dtype | None] = {
    "float32": None,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
"""Name in a config -> what autocast computes in; None is without autocast."""
