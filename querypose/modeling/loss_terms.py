"""Losses beside those of a model's paper."""

from __future__ import annotations

from typing import Any, cast

from torch import Tensor, nn

from querypose.modeling.pose_model import Batch


class LossTerm(nn.Module):
    """A loss that a model adds to its own, named in its key LOSS.EXTRA_TERMS.

    The constructor gets `skeleton`, and what the class' `from_config` gives. `forward` gives the weighted loss of a
    batch, a scalar: a sum, divided by one of the keyword `normalizers`. The model's registry says which other keywords
    there are; `forward` names those that it needs and leaves the rest to `**_`.
    """

    def normalizers(self, batch: Batch) -> dict[str, Tensor]:
        """As `PoseModel.loss_normalizers`: what this loss is divided by and no other is; a name has one meaning."""
        return {}


class LossTerms(nn.ModuleDict):
    """The further losses of a model, by name."""

    def normalizers(self, batch: Batch) -> dict[str, Tensor]:
        """Those of all terms."""
        of_terms = [cast(LossTerm, term).normalizers(batch) for term in self.values()]
        return {name: value for normalizers in of_terms for name, value in normalizers.items()}

    def losses(self, **outputs: Any) -> dict[str, Tensor]:
        """`loss_{name}` of every term."""
        return {f"loss_{name}": term(**outputs) for name, term in self.items()}
