"""Losses beside those of a model's paper."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from querypose.modeling.pose_model import Batch


class LossTerm(nn.Module):
    """A loss that a model adds to its own, named in its key LOSS.EXTRA_TERMS; in training it is `loss_{name}`.

    Its registry is that of the model, which says with which keywords `forward` is called; one takes what it needs and
    leaves the rest to `**_`. The constructor gets `skeleton`, and what the class' `from_config` gives.
    """

    def normalizers(self, batch: Batch) -> dict[str, Tensor]:
        """As `PoseModel.loss_normalizers`: what this loss is divided by and no other is; a name has one meaning."""
        return {}

    def forward(self, **outputs: Any) -> Tensor:
        """The weighted loss of a batch, a scalar: a sum, divided by one of the keyword `normalizers`."""
        raise NotImplementedError(f"{type(self).__name__} must define forward.")
