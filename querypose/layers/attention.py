"""Attention of a set of queries: to each other, and to the tokens of an image."""

from __future__ import annotations

from torch import Tensor, nn


class _Attention(nn.Module):
    """Multi-head attention with residual and post-normalization.

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

    def _attend(
        self,
        residual_BQC: Tensor,
        query_BQC: Tensor,
        key_BTC: Tensor,
        value_BTC: Tensor,
        is_padding_BT: Tensor | None,
    ) -> Tensor:
        attended_BQC, _ = self.attention(
            query_BQC, key_BTC, value_BTC, key_padding_mask=is_padding_BT, need_weights=False
        )
        return self.norm(residual_BQC + self.dropout(attended_BQC))


class SelfAttention(_Attention):
    """Attention of queries to each other, with residual and post-normalization."""

    def forward(
        self, query_BQC: Tensor, position_BQC: Tensor | None = None, is_padding_BQ: Tensor | None = None
    ) -> Tensor:
        """Lets the Q queries of each of B sets attend to each other; (B, Q, C) in and out.

        Args:
            query_BQC: the queries.
            position_BQC: added to queries and keys, not to values.
            is_padding_BQ: True where a query is no key.
        """
        # The same tensor for query and key: torch then projects both in one matrix product.
        positioned_BQC = _at(query_BQC, position_BQC)
        return self._attend(query_BQC, positioned_BQC, positioned_BQC, query_BQC, is_padding_BQ)


class CrossAttention(_Attention):
    """Attention of queries to tokens, with residual and post-normalization."""

    def forward(
        self,
        query_BQC: Tensor,
        token_BTC: Tensor,
        query_position_BQC: Tensor | None = None,
        token_position_BTC: Tensor | None = None,
        is_padding_BT: Tensor | None = None,
    ) -> Tensor:
        """Lets the Q queries attend to the T tokens; (B, Q, C).

        Args:
            query_BQC: the queries.
            token_BTC: keys and values.
            query_position_BQC: added to the queries.
            token_position_BTC: added to the keys, not to the values.
            is_padding_BT: True where a token is no key.
        """
        positioned_BQC, key_BTC = _at(query_BQC, query_position_BQC), _at(token_BTC, token_position_BTC)
        return self._attend(query_BQC, positioned_BQC, key_BTC, token_BTC, is_padding_BT)

    def weights(
        self,
        query_BQC: Tensor,
        token_BTC: Tensor,
        query_position_BQC: Tensor | None = None,
        token_position_BTC: Tensor | None = None,
        is_padding_BT: Tensor | None = None,
    ) -> Tensor:
        """How much each query looks at each token (B, Q, T), the mean of the heads, to be shown; see `forward`."""
        positioned_BQC, key_BTC = _at(query_BQC, query_position_BQC), _at(token_BTC, token_position_BTC)
        _, weights_BQT = self.attention(positioned_BQC, key_BTC, token_BTC, key_padding_mask=is_padding_BT)
        return weights_BQT


def _at(token_BTC: Tensor, position_BTC: Tensor | None) -> Tensor:
    return token_BTC if position_BTC is None else token_BTC + position_BTC
