"""What a meta-architecture is made of, for those who measure or speed up its components one by one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import nn


@dataclass(frozen=True)
class Component:
    """A component of a model.

    Attributes:
        modules: that it consists of, each called with tensors (or None) alone; the stages of a decoder, say.
        varying_dims: dimensions of every such tensor whose size changes from batch to batch.
    """

    modules: Sequence[nn.Module]
    varying_dims: Sequence[int] = ()


@runtime_checkable
class HasComponents(Protocol):
    """A model that names its components, which makes MODEL.COMPILE and MODEL.RECOMPUTE work with it."""

    @property
    def components(self) -> Mapping[str, Component]:
        """The components, by the names that YAML keys use."""
