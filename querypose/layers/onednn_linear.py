"""A linear layer that oneDNN computes in training on a CPU."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class OneDNNLinear(nn.Linear):
    """`nn.Linear`; in training on a CPU in float32 by oneDNN, in place of the MKL that torch takes.

    MKL uses half of what an AMD processor with AVX-512 can do. What comes in and out is copied, so that wide layers
    alone gain.
    """

    def forward(self, input: Tensor) -> Tensor:
        """(…, in) to (…, out)."""
        if (
            not torch.compiler.is_compiling()  # first: a compiler does not know what the rest asks for
            and self.training
            and input.is_cpu
            and input.dtype == self.weight.dtype == torch.float32
            and input.numel() > 0
            and not torch.is_autocast_enabled("cpu")
            and torch.backends.mkldnn.is_available()
        ):
            return F.linear(input.to_mkldnn(), self.weight, self.bias).to_dense()
        return super().forward(input)
