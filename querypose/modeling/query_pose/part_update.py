"""How a stage's part embeddings update the part queries of the stage before: SIM and what Table 2a sets beside it."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn


class NoUpdate(nn.Module):
    """The embedding of this stage replaces the part query; nothing is carried from stage to stage.

    Args:
        dim: width of a part query.
    """

    carries_queries = False

    def __init__(self, dim: int) -> None:
        super().__init__()

    def forward(self, embedding_RPC: Tensor, query_RPC: Tensor) -> Tensor:
        """The embedding (R, P, C)."""
        return embedding_RPC


class SummationUpdate(nn.Module):
    """The embedding of this stage is added to the part query.

    Args:
        dim: width of a part query.
    """

    carries_queries = True

    def __init__(self, dim: int) -> None:
        super().__init__()

    def forward(self, embedding_RPC: Tensor, query_RPC: Tensor) -> Tensor:
        """The sum (R, P, C)."""
        return embedding_RPC + query_RPC


class ConcatenationUpdate(nn.Module):
    """A linear map of embedding and part query side by side.

    Args:
        dim: width of a part query.
    """

    carries_queries = True

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.project = nn.Linear(2 * dim, dim)

    def forward(self, embedding_RPC: Tensor, query_RPC: Tensor) -> Tensor:
        """The projection (R, P, C)."""
        return self.project(torch.cat([embedding_RPC, query_RPC], dim=-1))


class SelectiveUpdate(nn.Module):
    """SIM: two gates, read from the sum, weigh embedding and part query (Sec. 3.3, eq. 3).

    Args:
        dim: width of a part query; the gates' hidden layer has a quarter of it.
    """

    carries_queries = True

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.squeeze = nn.Linear(dim, dim // 4, bias=False)
        self.norm = nn.LayerNorm(dim // 4)
        self.gates = nn.Linear(dim // 4, 2 * dim)

    def forward(self, embedding_RPC: Tensor, query_RPC: Tensor) -> Tensor:
        """The gated sum (R, P, C)."""
        hidden = self.norm(self.squeeze(embedding_RPC + query_RPC)).relu()
        embedding_gate_RPC, query_gate_RPC = self.gates(hidden).sigmoid().chunk(2, dim=-1)
        return embedding_RPC * embedding_gate_RPC + query_RPC * query_gate_RPC


PART_UPDATES: Mapping[str, type[nn.Module]] = {
    "none": NoUpdate,
    "summation": SummationUpdate,
    "concatenation": ConcatenationUpdate,
    "selective": SelectiveUpdate,
}
