"""Base of the networks below a feature pyramid: features at strides 4 to 32, and stages that can be frozen."""

from __future__ import annotations

from collections.abc import Sequence

from querypose.d2 import Backbone, ShapeSpec
from querypose.errors import UserError
from querypose.modeling.backbone.frozen_batch_norm import freeze_batch_norms

STRIDES = (4, 8, 16, 32)
"""Strides of the features C2..C5 and of the pyramid's levels P2..P5."""

LEVELS = (2, 3, 4, 5)
"""Numbers of these features and levels."""


class BackboneError(UserError, ValueError):
    """A backbone that cannot be built: names the YAML key, its value and the remedy."""


class BottomUp(Backbone):
    """Base of the networks that give {"c2", "c3", "c4", "c5"}, features at strides 4, 8, 16 and 32.

    Args:
        channels: channels of c2..c5.
        size_divisibility: height and width of the input must be multiples of this.
        strides: of c2..c5.
        levels: which of them it returns, in increasing order.
    """

    def __init__(
        self,
        channels: Sequence[int],
        size_divisibility: int = STRIDES[-1],
        strides: Sequence[int] = STRIDES,
        levels: Sequence[int] = LEVELS,
    ) -> None:
        super().__init__()
        self.channels = tuple(channels)
        self.strides = tuple(strides)
        self.levels = tuple(levels)
        self._size_divisibility = size_divisibility
        self._frozen_modules: tuple[str, ...] = ()

    @property
    def size_divisibility(self) -> int:
        """What height and width of the input must be multiples of."""
        return self._size_divisibility

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Channels and stride of c2..c5, of those that it gives."""
        shapes = dict(zip(LEVELS, zip(self.channels, self.strides, strict=True), strict=True))
        return {f"c{level}": ShapeSpec(channels=shapes[level][0], stride=shapes[level][1]) for level in self.levels}

    def freeze(self, stage_starts: Sequence[str | None], freeze_at: int) -> None:
        """Freezes the first `freeze_at` stages, counted as detectron2 does: 1 the stem, 2 also the first stage, …

        Their parameters get no gradient, their BatchNorms become `FrozenBatchNorm2d`, and they stay in eval mode
        (no dropout, no stochastic depth). A stage has all modules from its first one to that of the next stage, in the
        order of registration.

        Args:
            stage_starts: names of the first modules of the four stages whose outputs are C2, C3, C4 and C5; None if
                nothing follows the stage before.
            freeze_at: 0 (nothing) to 5 (everything).
        """
        if freeze_at == 0:
            return
        start = stage_starts[freeze_at - 1] if freeze_at <= len(stage_starts) else None
        names = [name for name, _ in self.named_modules()]
        names = names if start is None else names[: names.index(start)]
        frozen = []
        for name in names:
            module = self.get_submodule(name)
            for parameter in module.parameters(recurse=False):
                parameter.requires_grad_(False)
            if start is None or not f"{start}.".startswith(f"{name}." if name else ""):
                frozen.append(name)
        for name in frozen:
            if name and not any(name.startswith(f"{other}.") for other in frozen):
                parent, _, child = name.rpartition(".")
                setattr(self.get_submodule(parent), child, freeze_batch_norms(self.get_submodule(name)))
        self._frozen_modules = tuple(frozen)
        self.train(self.training)

    def train(self, mode: bool = True) -> BottomUp:
        """Sets the mode of everything but the frozen stages, which stay in eval mode."""
        super().train(mode and "" not in self._frozen_modules)
        for name in filter(None, self._frozen_modules):
            self.get_submodule(name).eval()
        return self
