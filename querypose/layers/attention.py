"""Self-attention over a set of queries."""

from __future__ import annotations

from torch import Tensor, nn


class SelfAttention(nn.Module):
    """Multi-head self-attention with residual and post-normalisation.

    Args:
        dim: width C of the queries; a multiple of `num_heads`.
        num_heads: attention heads.
    """

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(dim, num_heads, batch_first=True)
        self.norm = nn.LayerNorm(dim)

    def forward(self, query_BQC: Tensor) -> Tensor:
        """Lets the Q queries of each of B sets look at each other; (B, Q, C) in and out."""
        attended_BQC, _ = self.attention(query_BQC, query_BQC, query_BQC, need_weights=False)
        return self.norm(query_BQC + attended_BQC)
