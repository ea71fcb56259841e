"""Updates of the part queries by the part embeddings of a stage: SIM (Sec. 3.3) and Table 2a's others.

An update is a class in PART_UPDATE_REGISTRY, under the name in MODEL.QUERYPOSE.KEYPOINT.ITERATION.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from querypose.registry import PartRegistry

PART_UPDATE_REGISTRY = PartRegistry("PART_UPDATE")
PART_UPDATE_REGISTRY.__doc__ = "`PartUpdate`s; built with `dim`, the width of a part query."


class PartUpdate(nn.Module):
    """From this stage's part embeddings and the part queries of the stage before, (R, P, C), to those of this stage.

    Args:
        dim: width of a part query.

    Attributes:
        carries_queries: whether it reads the part queries.
    """

    carries_queries = True

    def __init__(self, dim: int) -> None:
        super().__init__()

    def forward(self, embedding_RPC: Tensor, query_RPC: Tensor) -> Tensor:
        """The part queries of this stage. A subclass must define it."""
        raise NotImplementedError(f"{type(self).__name__} must define forward.")

    def weights(self, embedding_RPC: Tensor, query_RPC: Tensor) -> tuple[Tensor, Tensor] | None:
        """What embedding and part query are weighed by, (R, P, C) in [0, 1] each; None where they are not weighed."""
        return None


@PART_UPDATE_REGISTRY.register(name="none")
class NoUpdate(PartUpdate):
    """The embedding of this stage replaces the part query; nothing is carried from stage to stage."""

    carries_queries = False

    def forward(self, embedding_RPC: Tensor, query_RPC: Tensor) -> Tensor:
        return embedding_RPC


@PART_UPDATE_REGISTRY.register(name="summation")
class SummationUpdate(PartUpdate):
    """The embedding of this stage is added to the part query."""

    def forward(self, embedding_RPC: Tensor, query_RPC: Tensor) -> Tensor:
        return embedding_RPC + query_RPC


@PART_UPDATE_REGISTRY.register(name="concatenation")
class ConcatenationUpdate(PartUpdate):
    """A linear map of embedding and part query side by side."""

    def __init__(self, dim: int) -> None:
        super().__init__(dim)
        self.project = nn.Linear(2 * dim, dim)

    def forward(self, embedding_RPC: Tensor, query_RPC: Tensor) -> Tensor:
        return self.project(torch.cat([embedding_RPC, query_RPC], dim=-1))


@PART_UPDATE_REGISTRY.register(name="selective")
class SelectiveUpdate(PartUpdate):
    """SIM: two gates, read from the sum, weigh embedding and part query (Sec. 3.3, eq. 3).

    The gates' hidden layer has a quarter of a part query's width.
    """

    def __init__(self, dim: int) -> None:
        super().__init__(dim)
        self.squeeze = nn.Linear(dim, dim // 4, bias=False)
        self.norm = nn.LayerNorm(dim // 4)
        self.gates = nn.Linear(dim // 4, 2 * dim)

    def weights(self, embedding_RPC: Tensor, query_RPC: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self.norm(self.squeeze(embedding_RPC + query_RPC)).relu()
        return self.gates(hidden).sigmoid().chunk(2, dim=-1)

    def forward(self, embedding_RPC: Tensor, query_RPC: Tensor) -> Tensor:
        embedding_gate_RPC, query_gate_RPC = self.weights(embedding_RPC, query_RPC)
        return embedding_RPC * embedding_gate_RPC + query_RPC * query_gate_RPC
