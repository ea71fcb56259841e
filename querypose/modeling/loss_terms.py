"""Losses beside those of a model's paper."""

from __future__ import annotations

from typing import Any, cast

from torch import Tensor, nn

from querypose.modeling.pose_model import Batch


class LossTerm(nn.Module):
    """A loss that a model adds to its own, named in its key LOSS.EXTRA_TERMS.

    The constructor gets `skeleton` and the arguments that the class's `from_config` returns. `forward` returns the
    weighted loss of a batch, a scalar: a sum, divided by one of the keyword `normalizers`. The docstring of the model's
    registry lists the other keywords; `forward` names those that it needs and leaves the rest to `**_`.
    """

    def normalizers(self, batch: Batch) -> dict[str, Tensor]:
        """As `PoseModel.loss_normalizers`: those of this loss that the model does not have already, by unique names."""
        return {}


class LossTerms(nn.ModuleDict):
    """The further losses of a model, by name."""

    def normalizers(self, batch: Batch) -> dict[str, Tensor]:
        of_terms = [cast(LossTerm, term).normalizers(batch) for term in self.values()]
        return {name: value for normalizers in of_terms for name, value in normalizers.items()}

    def losses(self, **outputs: Any) -> dict[str, Tensor]:
        """`loss_{name}` of every term."""
        return {f"loss_{name}": term(**outputs) for name, term in self.items()}
