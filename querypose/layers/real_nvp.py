"""RealNVP: an invertible map between a two-dimensional residual and a standard normal variable."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class RealNVP(nn.Module):
    """A stack of affine couplings over `num_dims` dimensions, as residual log-likelihood estimation uses it.

    An even coupling scales and shifts the even dimensions by networks of the odd ones; an odd coupling the other way
    round.

    Args:
        num_couplings: how many couplings follow one another.
        dim_hidden: hidden width of the two three-layer networks of a coupling.
        num_dims: of the variable; 2 for a keypoint in the image plane.
    """

    keep: Tensor

    def __init__(self, num_couplings: int = 6, dim_hidden: int = 64, num_dims: int = 2) -> None:
        super().__init__()
        parity_D = torch.arange(num_dims) % 2
        keep = torch.stack([(parity_D + coupling) % 2 for coupling in range(num_couplings)]).float()
        self.register_buffer("keep", keep, persistent=False)
        self.scale_nets = nn.ModuleList(
            nn.Sequential(*_network(num_dims, dim_hidden), nn.Tanh()) for _ in range(num_couplings)
        )
        self.shift_nets = nn.ModuleList(nn.Sequential(*_network(num_dims, dim_hidden)) for _ in range(num_couplings))

    def log_prob(self, x_ND: Tensor) -> Tensor:
        """Log-density (N) of points (N, D) under the flow-deformed standard normal distribution."""
        z_ND, log_det_N = self.inverse(x_ND)
        log_normal_N = -0.5 * (z_ND.square() + math.log(2 * math.pi)).sum(-1)
        return log_normal_N + log_det_N

    def inverse(self, x_ND: Tensor) -> tuple[Tensor, Tensor]:
        """Data to latent: z (N, D), and log|det ∂z/∂x| (N)."""
        z_ND, log_det_N = x_ND, x_ND.new_zeros(x_ND.shape[0])
        for coupling in reversed(range(len(self.keep))):
            keep_D = self.keep[coupling].to(z_ND.dtype)
            kept_ND = z_ND * keep_D
            scale_ND = self.scale_nets[coupling](kept_ND) * (1 - keep_D)
            shift_ND = self.shift_nets[coupling](kept_ND) * (1 - keep_D)
            z_ND = (1 - keep_D) * (z_ND - shift_ND) * torch.exp(-scale_ND) + kept_ND
            log_det_N = log_det_N - scale_ND.sum(-1)
        return z_ND, log_det_N

    def forward(self, z_ND: Tensor) -> Tensor:
        """Latent to data: the inverse of `inverse`; (N, D) in and out."""
        x_ND = z_ND
        for coupling in range(len(self.keep)):
            keep_D = self.keep[coupling].to(x_ND.dtype)
            kept_ND = x_ND * keep_D
            scale_ND = self.scale_nets[coupling](kept_ND) * (1 - keep_D)
            shift_ND = self.shift_nets[coupling](kept_ND) * (1 - keep_D)
            x_ND = kept_ND + (1 - keep_D) * (x_ND * torch.exp(scale_ND) + shift_ND)
        return x_ND


def _network(num_dims: int, dim_hidden: int) -> list[nn.Module]:
    return [
        nn.Linear(num_dims, dim_hidden),
        nn.LeakyReLU(0.01),
        nn.Linear(dim_hidden, dim_hidden),
        nn.LeakyReLU(0.01),
        nn.Linear(dim_hidden, num_dims),
    ]
