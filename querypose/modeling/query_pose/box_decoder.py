"""One stage of the box decoder (Sparse R-CNN; QueryPose eq. 1)."""

from __future__ import annotations

from torch import Tensor, nn

from querypose.layers import (
    DynamicInteraction,
    FeedForward,
    SelfAttention,
    apply_box_deltas,
    at_least_float32,
    box_xyxy_to_cxcywh,
    full_precision,
)
from querypose.modeling.query_pose.initialization import prior_bias, xavier_uniform_matrices

IDENTITY_STD = 1e-3
"""Of the weights of the box deltas at the start: not zero, so that the layers before them learn from the first step."""


class BoxEmbedding(nn.Module):
    """A box as a vector, which tells queries where they are when they attend to each other.

    Args:
        dim: width C of a query.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, dim), nn.ReLU(), nn.Linear(dim, dim))

    def forward(self, boxes_BQ4: Tensor, image_size_B4: Tensor) -> Tensor:
        """The embeddings (B, Q, C) of corners in pixels; no gradient reaches the boxes."""
        return self.layers(box_xyxy_to_cxcywh(boxes_BQ4.detach() / image_size_B4[:, None]))


class BoxStage(nn.Module):
    """Self-attention over the queries, dynamic interaction with the region features, class and box.

    Args:
        dim: width C of queries and region features.
        num_heads: heads of the self-attention.
        dim_feedforward: hidden width of the feed-forward network.
        dim_dynamic: inner width of the dynamic interaction.
        num_tokens: cells of a region.
        num_cls_layers: linear layers before the class logit.
        num_reg_layers: linear layers before the box deltas.
        prior_prob: class score at initialization.
        identity_start: whether a stage begins by leaving boxes (nearly) and class logits as they come, instead of
            moving them at random, which costs a short training its first minutes.
    """

    def __init__(
        self,
        *,
        dim: int,
        num_heads: int,
        dim_feedforward: int,
        dim_dynamic: int,
        num_tokens: int,
        num_cls_layers: int,
        num_reg_layers: int,
        prior_prob: float,
        identity_start: bool = False,
    ) -> None:
        super().__init__()
        self.self_attention = SelfAttention(dim, num_heads)
        self.interaction = DynamicInteraction(dim, dim_dynamic, num_tokens)
        self.norm = nn.LayerNorm(dim)
        self.feed_forward = FeedForward(dim, dim_feedforward)
        self.cls_layers = nn.Sequential(*(layer for _ in range(num_cls_layers) for layer in _linear_norm_relu(dim)))
        self.cls_logit = nn.Linear(dim, 1)
        self.reg_layers = nn.Sequential(*(layer for _ in range(num_reg_layers) for layer in _linear_norm_relu(dim)))
        self.box_deltas = nn.Linear(dim, 4)
        xavier_uniform_matrices(self)
        nn.init.constant_(self.cls_logit.bias, prior_bias(prior_prob))
        if identity_start:
            nn.init.zeros_(self.cls_logit.weight)
            nn.init.normal_(self.box_deltas.weight, std=IDENTITY_STD)
            nn.init.zeros_(self.box_deltas.bias)

    def forward(
        self,
        query_BQC: Tensor,
        region_RCHW: Tensor,
        boxes_BQ4: Tensor,
        position_BQC: Tensor | None = None,
        prior_BQ: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Refines every query and its box.

        Args:
            query_BQC: instance queries.
            region_RCHW: region features of the boxes, R = B·Q in the order of the queries.
            boxes_BQ4: proposal boxes, corners in pixels.
            position_BQC: added to queries and keys of the attention.
            prior_BQ: added to the class logits.

        Returns:
            class logits (B, Q), refined boxes (B, Q, 4) in the same frame and not clipped, queries (B, Q, C).
        """
        query_BQC = self.self_attention(query_BQC, position_BQC)
        query_RC, region_RTC = query_BQC.flatten(0, 1), region_RCHW.flatten(2).transpose(1, 2)
        query_RC = self.norm(query_RC + self.interaction(query_RC, region_RTC))
        query_BQC = self.feed_forward(query_RC).view_as(query_BQC)

        cls_BQC, reg_BQC = self.cls_layers(query_BQC), self.reg_layers(query_BQC)
        with full_precision(boxes_BQ4):
            # Scores that are rounded to bfloat16 tie, and boxes move.
            logits_BQ = self.cls_logit(at_least_float32(cls_BQC)).squeeze(-1)
            if prior_BQ is not None:
                logits_BQ = logits_BQ + prior_BQ
            deltas_BQ4 = self.box_deltas(at_least_float32(reg_BQC))
            boxes_BQ4 = apply_box_deltas(deltas_BQ4, at_least_float32(boxes_BQ4))
        return logits_BQ, boxes_BQ4, query_BQC


def _linear_norm_relu(dim: int) -> tuple[nn.Module, ...]:
    return nn.Linear(dim, dim, bias=False), nn.LayerNorm(dim), nn.ReLU()
