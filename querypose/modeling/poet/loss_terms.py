"""Losses beside those of POET's paper."""

from __future__ import annotations

from querypose.registry import PartRegistry

POET_LOSS_REGISTRY = PartRegistry("POET_LOSS")
POET_LOSS_REGISTRY.__doc__ = """`LossTerm`s for MODEL.POET.LOSS.EXTRA_TERMS.

Called with `outputs` (`QueryOutputs` of all layers), `matches_S` (`Matches` of each layer), `targets` (`PoseTargets`),
`persons` (`PersonTargets`) and `normalizers`, which has `persons` and `class_weights` beside those of the terms.
"""
