"""Names of the losses of every stage of a decoder."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor


def name_stage_losses(losses_S: Mapping[str, Tensor], weights: Mapping[str, float]) -> dict[str, Tensor]:
    """The weighted losses of every stage, named.

    Args:
        losses_S: by name, one number a stage.
        weights: by name.

    Returns:
        scalars: those of the last stage by their name, those of an earlier one with suffix `_{stage}`.
    """
    named = {}
    for name, loss_S in losses_S.items():
        *earlier, last = (weights[name] * loss_S).unbind()
        named[name] = last
        named.update({f"{name}_{stage}": loss for stage, loss in enumerate(earlier)})
    return named
