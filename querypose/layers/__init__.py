"""Layers that know no meta-architecture, one a file."""

from querypose.layers.attention import CrossAttention, SelfAttention
from querypose.layers.batch_norm_folding import fold_batch_norms
from querypose.layers.boxes import (
    apply_box_deltas,
    box_cxcywh_to_xyxy,
    box_xyxy_to_cxcywh,
    generalized_box_iou,
    scale_boxes,
)
from querypose.layers.dynamic_interaction import DynamicInteraction
from querypose.layers.feed_forward import FeedForward
from querypose.layers.position_encoding import SinePositionEncoding
from querypose.layers.precision import at_least_float32, full_precision
from querypose.layers.real_nvp import RealNVP
from querypose.layers.recomputation import recompute_in_backward, repeated_blocks
from querypose.layers.region_batch_norm import RegionBatchNorm2d
from querypose.layers.region_features import RegionPooler, pooling_layout
from querypose.layers.transformer import Transformer, TransformerDecoderLayer, TransformerEncoderLayer

__all__ = [
    "CrossAttention",
    "DynamicInteraction",
    "FeedForward",
    "RealNVP",
    "RegionBatchNorm2d",
    "RegionPooler",
    "SelfAttention",
    "SinePositionEncoding",
    "Transformer",
    "TransformerDecoderLayer",
    "TransformerEncoderLayer",
    "apply_box_deltas",
    "at_least_float32",
    "box_cxcywh_to_xyxy",
    "box_xyxy_to_cxcywh",
    "fold_batch_norms",
    "full_precision",
    "generalized_box_iou",
    "pooling_layout",
    "recompute_in_backward",
    "repeated_blocks",
    "scale_boxes",
]
