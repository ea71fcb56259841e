"""Losses beside those of LQR's paper."""

from __future__ import annotations

from querypose.registry import PartRegistry

LQR_LOSS_REGISTRY = PartRegistry("LQR_LOSS")
LQR_LOSS_REGISTRY.__doc__ = """`LossTerm`s for MODEL.LQR.LOSS.EXTRA_TERMS.

Called with `keypoints` (`KeypointQueries`) and `scores` (`PoseScores`) of every cell, `regions` (`Regions`: the persons
and their cells) and `normalizers`, which has `cells` and `coordinates` beside those of the terms.
"""
