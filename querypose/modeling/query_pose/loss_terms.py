"""Losses beside those of QueryPose's Sec. 3.4."""

from __future__ import annotations

from querypose.registry import PartRegistry

QUERY_POSE_LOSS_REGISTRY = PartRegistry("QUERY_POSE_LOSS")
QUERY_POSE_LOSS_REGISTRY.__doc__ = """`LossTerm`s for MODEL.QUERYPOSE.LOSS.EXTRA_TERMS.

Called with `features` (B, C, H, W) a level of the pyramid, `stages` (`StagePrediction` of each), `targets`
(`PersonTargets`) and `normalizers`, which has `persons` beside those of the terms.
"""
