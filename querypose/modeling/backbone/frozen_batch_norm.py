"""BatchNorm whose statistics and affine are constants, and the conversion of a network to it."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


class FrozenBatchNorm2d(nn.Module):
    """y = weight * (x - running_mean) / sqrt(running_var + eps) + bias, all four of them buffers.

    Equals an `nn.BatchNorm2d` in eval mode and keeps its names, so that either loads the other's weights. In training
    it is the same: it has no statistics of the batch and no gradient, and optimizer and SyncBatchNorm ignore it.

    Args:
        num_features: channels C.
        eps: added to the variance.
    """

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, num_features: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.num_features = num_features
        self.eps = eps
        self.register_buffer("weight", torch.ones(num_features))
        self.register_buffer("bias", torch.zeros(num_features))
        self.register_buffer("running_mean", torch.zeros(num_features))
        self.register_buffer("running_var", torch.ones(num_features))
        # timm's BatchNorm may hold the drop block and the activation that follow it (`BatchNormAct2d`).
        self.drop: nn.Module = nn.Identity()
        self.act: nn.Module = nn.Identity()

    @classmethod
    def from_batch_norm(cls, norm: _BatchNorm) -> FrozenBatchNorm2d:
        """The frozen counterpart of `norm`, with its values, on its device and, if it has one, with its activation."""
        if norm.running_mean is None or norm.running_var is None:
            raise ValueError("A BatchNorm without running statistics cannot be frozen.")
        frozen = cls(norm.num_features, norm.eps)
        frozen.running_mean = norm.running_mean.detach().clone()
        frozen.running_var = norm.running_var.detach().clone()
        for name in ("weight", "bias"):
            value = getattr(norm, name)
            default = getattr(frozen, name).to(frozen.running_mean)
            setattr(frozen, name, default if value is None else value.detach().clone())
        for name in ("drop", "act"):
            setattr(frozen, name, getattr(norm, name, None) or nn.Identity())
        return frozen.train(norm.training)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """The normalized features (B, C, H, W), of the dtype of the input."""
        if torch.is_grad_enabled() and x_BCHW.requires_grad:
            # For the backward pass this form keeps C numbers; F.batch_norm would keep the whole input.
            scale = self.weight * (self.running_var + self.eps).rsqrt()
            shift = self.bias - self.running_mean * scale
            y_BCHW = x_BCHW * scale.to(x_BCHW)[:, None, None] + shift.to(x_BCHW)[:, None, None]
        else:
            y_BCHW = F.batch_norm(
                x_BCHW, self.running_mean, self.running_var, self.weight, self.bias, training=False, eps=self.eps
            )
        return self.act(self.drop(y_BCHW))

    def extra_repr(self) -> str:
        """What `print` shows in the brackets."""
        return f"{self.num_features}, eps={self.eps}"

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        state_dict.pop(f"{prefix}num_batches_tracked", None)  # the counter of a trained BatchNorm is not used here
        super()._load_from_state_dict(state_dict, prefix, *args)


def freeze_batch_norms(module: nn.Module) -> nn.Module:
    """Replaces every BatchNorm in `module` (and `module` itself, if it is one) by its frozen counterpart.

    Returns:
        `module`, changed in place, or its replacement.
    """
    if isinstance(module, _BatchNorm):
        return FrozenBatchNorm2d.from_batch_norm(module)
    for name, child in module.named_children():
        replacement = freeze_batch_norms(child)
        if replacement is not child:
            setattr(module, name, replacement)
    return module


def reset_batch_norms(module: nn.Module) -> None:
    """Sets every BatchNorm in `module` to the identity: weight 1, bias 0, mean 0, variance 1.

    Needed for a network that is frozen untrained: some initializations give the last BatchNorm of a residual branch
    the weight 0, and frozen the branch would be zero for ever.
    """
    for child in module.modules():
        if isinstance(child, _BatchNorm):
            child.reset_parameters()
