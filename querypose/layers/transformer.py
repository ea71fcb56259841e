"""The encoder-decoder transformer of DETR: positions are added to queries and keys in every layer, never to values."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from querypose.layers.attention import CrossAttention, SelfAttention
from querypose.layers.feed_forward import FeedForward


class TransformerEncoderLayer(nn.Module):
    """Self-attention among tokens, then a feed-forward network; both with residual and post-normalization.

    Args:
        dim: width C of a token.
        num_heads: attention heads.
        dim_feedforward: hidden width of the feed-forward network.
        dropout: in both.
    """

    def __init__(self, dim: int, num_heads: int, dim_feedforward: int, dropout: float) -> None:
        super().__init__()
        self.self_attention = SelfAttention(dim, num_heads, dropout)
        self.feed_forward = FeedForward(dim, dim_feedforward, dropout)

    def forward(self, token_BTC: Tensor, position_BTC: Tensor, is_padding_BT: Tensor | None) -> Tensor:
        """The tokens (B, T, C) after attention to each other; those of padding are no keys."""
        return self.feed_forward(self.self_attention(token_BTC, position_BTC, is_padding_BT))


class TransformerDecoderLayer(nn.Module):
    """Self-attention among queries, cross-attention to tokens, a feed-forward network; all post-normalized residuals.

    Args:
        dim: width C of queries and tokens.
        num_heads: attention heads.
        dim_feedforward: hidden width of the feed-forward network.
        dropout: in all three.
    """

    def __init__(self, dim: int, num_heads: int, dim_feedforward: int, dropout: float) -> None:
        super().__init__()
        self.self_attention = SelfAttention(dim, num_heads, dropout)
        self.cross_attention = CrossAttention(dim, num_heads, dropout)
        self.feed_forward = FeedForward(dim, dim_feedforward, dropout)

    def forward(
        self,
        query_BQC: Tensor,
        query_position_BQC: Tensor,
        token_BTC: Tensor,
        token_position_BTC: Tensor,
        is_padding_BT: Tensor | None,
    ) -> Tensor:
        """The queries (B, Q, C) after attention to each other and to the tokens; those of padding are no keys."""
        query_BQC = self.self_attention(query_BQC, query_position_BQC)
        query_BQC = self.cross_attention(query_BQC, token_BTC, query_position_BQC, token_position_BTC, is_padding_BT)
        return self.feed_forward(query_BQC)


class Transformer(nn.Module):
    """Encodes the tokens of an image, and decodes a set of learned queries with them.

    The decoder starts from zeros; a learned query is the position that is added to them in every layer. One LayerNorm
    follows every layer of the decoder, none the encoder. Matrices start as Xavier's.

    Args:
        dim: width C of tokens and queries.
        num_queries: learned queries Q.
        num_encoder_layers: layers of the encoder.
        num_decoder_layers: layers S of the decoder.
        num_heads: heads of every attention.
        dim_feedforward: hidden width of every feed-forward network.
        dropout: of attention weights, hidden units and residuals.
    """

    def __init__(
        self,
        *,
        dim: int,
        num_queries: int,
        num_encoder_layers: int = 6,
        num_decoder_layers: int = 6,
        num_heads: int = 8,
        dim_feedforward: int = 2048,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        sizes = (dim, num_heads, dim_feedforward, dropout)
        self.encoder_layers = nn.ModuleList(TransformerEncoderLayer(*sizes) for _ in range(num_encoder_layers))
        self.decoder_layers = nn.ModuleList(TransformerDecoderLayer(*sizes) for _ in range(num_decoder_layers))
        self.decoder_norm = nn.LayerNorm(dim)
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)
        self.queries = nn.Parameter(torch.randn(num_queries, dim))

    def forward(self, token_BTC: Tensor, position_BTC: Tensor, is_padding_BT: Tensor | None) -> Tensor:
        """Encodes and decodes.

        Args:
            token_BTC: the cells of a feature map.
            position_BTC: where they are.
            is_padding_BT: True where a cell shows padding; None where none does.

        Returns:
            the queries (S, B, Q, C) after every layer of the decoder, normalized.
        """
        memory_BTC = self.encode(token_BTC, position_BTC, is_padding_BT)
        query_position_BQC = self.queries.expand(token_BTC.shape[0], -1, -1)
        query_BQC = torch.zeros_like(query_position_BQC)
        decoded = []
        for layer in self.decoder_layers:
            query_BQC = layer(query_BQC, query_position_BQC, memory_BTC, position_BTC, is_padding_BT)
            decoded.append(self.decoder_norm(query_BQC))
        return torch.stack(decoded)

    def encode(self, token_BTC: Tensor, position_BTC: Tensor, is_padding_BT: Tensor | None) -> Tensor:
        """The tokens (B, T, C) after the encoder; arguments as in `forward`."""
        for layer in self.encoder_layers:
            token_BTC = layer(token_BTC, position_BTC, is_padding_BT)
        return token_BTC
