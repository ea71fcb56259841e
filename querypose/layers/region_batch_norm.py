"""Batch normalization over regions, of which there may be none."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F


class RegionBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm2d that takes a batch of no region as it is, and leaves its running statistics alone then.

    A training batch without any person has no region to normalize; torch's layer would turn the running statistics
    into NaN. Parameters still get a (zero) gradient, so that distributed training does not wait for it.
    """

    def forward(self, input: Tensor) -> Tensor:
        """(R, C, H, W) in and out; R may be 0."""
        if len(input) or not self.training:
            return super().forward(input)
        return F.batch_norm(input, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)
