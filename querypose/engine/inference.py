"""A model made ready for inference: the same results (to rounding), in less time."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from querypose.config import ConfigError
from querypose.d2 import CfgNode, configurable
from querypose.layers.batch_norm_folding import CONVOLUTIONS, fold_batch_norms
from querypose.layers.precision import PRECISIONS
from querypose.modeling import Layer, PoseModel


class InferenceModel(nn.Module):
    """A model for inference alone: a copy, so that the model itself goes on training unharmed, or the model taken over.

    In it batch normalization is folded into the convolutions, weights lie in memory as convolutions read them
    fastest (channels_last), and, where asked for, the forward pass runs in lower precision or compiled.
    """

    @configurable
    def __init__(
        self, model: PoseModel, *, precision: torch.dtype | None = None, compiled: bool = False, in_place: bool = False
    ) -> None:
        """Takes plain arguments; `InferenceModel(cfg, model)` those of TEST.

        Args:
            model: of any meta-architecture.
            precision: what the forward pass computes in, by autocast; None is float32.
            compiled: compile the model's components, for inputs of any size.
            in_place: change the model itself, where nobody else needs it; spares the memory of the copy.

        Raises:
            ConfigError: it is to be compiled and names no components.
        """
        super().__init__()
        self.training = False
        self.model = (model if in_place else copy.deepcopy(model)).eval()
        for module in self.model.modules():
            # Put over a module's own, as by a compilation for training, it would run the original's weights.
            module.__dict__.pop("forward", None)
        self.precision = precision
        fold_batch_norms(self.model, lambda: self.model(self.model.example_batch()))
        self.model.requires_grad_(False).to(memory_format=torch.channels_last)
        if precision is not None:
            # Once, not at every image; autocast converts what flows into them, and the weights of all other layers.
            for module in self._convolutions_under_autocast():
                module.to(precision)
        if compiled:
            if not self.model.components:
                raise ConfigError(
                    f"TEST.COMPILE is True, but {type(model).__name__} names no components to compile. Set it to False."
                )
            for component in self.model.components.values():
                for module in component.modules:
                    module.compile(dynamic=True)

    def _convolutions_under_autocast(self) -> set[nn.Module]:
        """Those that compute in `precision`; a model keeps others in float32."""
        found: set[nn.Module] = set()

        def note(module: nn.Module, _: Any, output: Tensor) -> None:
            if output.dtype == self.precision:
                found.add(module)

        convolutions = [module for module in self.model.modules() if isinstance(module, CONVOLUTIONS)]
        hooks = [module.register_forward_hook(note) for module in convolutions]
        with torch.no_grad():
            self(self.model.example_batch())
        for hook in hooks:
            hook.remove()
        return found

    @classmethod
    def from_config(cls, cfg: CfgNode, model: PoseModel, *, in_place: bool = False) -> dict[str, Any]:
        precision = PRECISIONS[cfg.TEST.PRECISION]
        return {"model": model, "precision": precision, "compiled": cfg.TEST.COMPILE, "in_place": in_place}

    def train(self, mode: bool = True) -> InferenceModel:
        """Stays in evaluation mode, for which the normalizations were folded."""
        return self

    def forward(self, batched_inputs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        with self._autocast():
            return self.model(batched_inputs)

    def explain(self, batched_inputs: Sequence[Mapping[str, Any]], num_poses: int = 3) -> list[list[Layer]]:
        """As `PoseModel.explain`, in the precision of the forward pass; what is no PoseModel has nothing to show."""
        if not isinstance(self.model, PoseModel):
            return [[] for _ in batched_inputs]
        with self._autocast():
            return self.model.explain(batched_inputs, num_poses)

    def _autocast(self) -> torch.autocast:
        device = next(self.model.parameters()).device
        return torch.autocast(device.type, self.precision, enabled=self.precision is not None)
