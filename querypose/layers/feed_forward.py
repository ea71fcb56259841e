"""The two-layer network that follows an attention."""

from __future__ import annotations

from torch import Tensor, nn


class FeedForward(nn.Module):
    """Linear, ReLU, Linear with residual and post-normalization.

    Args:
        dim: width C in and out.
        dim_hidden: width between the two linear layers.
        dropout: of the hidden units and of what is added.
    """

    def __init__(self, dim: int, dim_hidden: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.expand = nn.Linear(dim, dim_hidden)
        self.reduce = nn.Linear(dim_hidden, dim)
        self.dropout = nn.Dropout(dropout)
        self.norm = nn.LayerNorm(dim)

    def forward(self, query_QC: Tensor) -> Tensor:
        """(…, C) in and out."""
        hidden_QC = self.dropout(self.expand(query_QC).relu())
        return self.norm(query_QC + self.dropout(self.reduce(hidden_QC)))
