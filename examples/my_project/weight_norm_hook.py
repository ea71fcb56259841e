"""A hook: writes the norm of the weights of every component of the model."""

from __future__ import annotations

from typing import Any

import torch

from querypose.config import Key, add_keys, at_least
from querypose.d2 import CfgNode, HookBase, get_event_storage
from querypose.engine import HOOK_REGISTRY

add_keys([Key("WEIGHT_NORM_PERIOD", 20, "iterations between two reports of WeightNormHook", at_least(1))])


@HOOK_REGISTRY.register()
class WeightNormHook(HookBase):
    """Puts `weight_norm/COMPONENT` into metrics.json and TensorBoard every `period` iterations."""

    def __init__(self, period: int) -> None:
        self.period = period

    @classmethod
    def from_config(cls, cfg: CfgNode, trainer: Any) -> dict[str, Any]:
        """The argument that YAML states."""
        return {"period": cfg.WEIGHT_NORM_PERIOD}

    def after_step(self) -> None:
        """Called after every iteration; `self.trainer` is the trainer."""
        if (self.trainer.iter + 1) % self.period:
            return
        model = getattr(self.trainer.model, "module", self.trainer.model)  # within DistributedDataParallel
        for name, component in model.components.items():
            norms = [p.detach().norm() for module in component.modules for p in module.parameters()]
            get_event_storage().put_scalar(f"weight_norm/{name}", float(torch.stack(norms).norm()))
