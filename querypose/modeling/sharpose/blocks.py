"""The blocks of a plain vision transformer, which can tell what their tokens attended to."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import StochasticDepth

from querypose.layers import at_least_float32


class MLP(nn.Sequential):
    """Linear, GELU, Linear.

    Args:
        dim: width C in and out.
        dim_hidden: width between the two.
    """

    def __init__(self, dim: int, dim_hidden: int) -> None:
        super().__init__(nn.Linear(dim, dim_hidden), nn.GELU(), nn.Linear(dim_hidden, dim))


class TransformerBlock(nn.Module):
    """Self-attention and MLP, each normalized before and added to what it read.

    Args:
        dim: width C of the tokens; a multiple of `num_heads`.
        num_heads: heads of the attention.
        mlp_ratio: hidden width of the MLP over `dim`.
        drop_path: probability that a sample skips the attention, and that it skips the MLP, in training.
        attention_decay: what the running average of attention keeps at each block (beta of eq. 6).
    """

    def __init__(
        self, dim: int, num_heads: int, *, mlp_ratio: int = 4, drop_path: float = 0.0, attention_decay: float = 0.99
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.attention_decay = attention_decay
        self.norm1 = nn.LayerNorm(dim)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.projection = nn.Linear(dim, dim)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = MLP(dim, mlp_ratio * dim)
        self.drop_path = StochasticDepth(drop_path, mode="row")

    def forward(self, token_BTC: Tensor, attention_BTT: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """The tokens after the block, and the average of attention with that of this block in it.

        Args:
            token_BTC: the tokens.
            attention_BTT: running average, over blocks and heads, of how much each token (row) attends to each. None
                where nobody needs it: the attention is then a fused one, which never holds its weights.
        """
        query, key, value = (
            self.qkv(self.norm1(token_BTC)).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        )
        if attention_BTT is None:
            attended = F.scaled_dot_product_attention(query, key, value)
        else:
            weights = (query * query.shape[-1] ** -0.5 @ key.transpose(-1, -2)).softmax(dim=-1)
            attended = weights.to(value.dtype) @ value
            mean_BTT = at_least_float32(weights.detach()).mean(dim=1)
            attention_BTT = torch.lerp(mean_BTT, attention_BTT, self.attention_decay)
        token_BTC = token_BTC + self.drop_path(self.projection(attended.transpose(1, 2).flatten(2)))
        return token_BTC + self.drop_path(self.mlp(self.norm2(token_BTC))), attention_BTT
