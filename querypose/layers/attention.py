"""Attention of a set of queries: to each other, and to the tokens of an image."""

from __future__ import annotations

from torch import Tensor, nn


class SelfAttention(nn.Module):
    """Multi-head self-attention with residual and post-normalisation.

    Args:
        dim: width C of the queries; a multiple of `num_heads`.
        num_heads: attention heads.
        dropout: of the attention weights and of what is added.
    """

    def __init__(self, dim: int, num_heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(dim, num_heads, dropout=dropout, batch_first=True)
        self.dropout = nn.Dropout(dropout)
        self.norm = nn.LayerNorm(dim)

    def forward(
        self, query_BQC: Tensor, position_BQC: Tensor | None = None, is_padding_BQ: Tensor | None = None
    ) -> Tensor:
        """Lets the Q queries of each of B sets look at each other; (B, Q, C) in and out.

        Args:
            query_BQC: the queries.
            position_BQC: added where queries look and are looked at, not to what they see.
            is_padding_BQ: True where a query is not looked at.
        """
        looking_BQC = _at(query_BQC, position_BQC)
        attended_BQC, _ = self.attention(
            looking_BQC, looking_BQC, query_BQC, key_padding_mask=is_padding_BQ, need_weights=False
        )
        return self.norm(query_BQC + self.dropout(attended_BQC))


class CrossAttention(nn.Module):
    """Multi-head attention of queries to tokens, with residual and post-normalisation.

    Args:
        dim: width C of queries and tokens; a multiple of `num_heads`.
        num_heads: attention heads.
        dropout: of the attention weights and of what is added.
    """

    def __init__(self, dim: int, num_heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(dim, num_heads, dropout=dropout, batch_first=True)
        self.dropout = nn.Dropout(dropout)
        self.norm = nn.LayerNorm(dim)

    def forward(
        self,
        query_BQC: Tensor,
        token_BTC: Tensor,
        query_position_BQC: Tensor | None = None,
        token_position_BTC: Tensor | None = None,
        is_padding_BT: Tensor | None = None,
    ) -> Tensor:
        """Lets the Q queries look at the T tokens; (B, Q, C).

        Args:
            query_BQC: the queries.
            token_BTC: what they look at.
            query_position_BQC: added to the queries where they look.
            token_position_BTC: added to the tokens where they are looked at, not to what is seen.
            is_padding_BT: True where a token is not looked at.
        """
        attended_BQC, _ = self.attention(
            _at(query_BQC, query_position_BQC),
            _at(token_BTC, token_position_BTC),
            token_BTC,
            key_padding_mask=is_padding_BT,
            need_weights=False,
        )
        return self.norm(query_BQC + self.dropout(attended_BQC))


def _at(content_BTC: Tensor, position_BTC: Tensor | None) -> Tensor:
    return content_BTC if position_BTC is None else content_BTC + position_BTC
