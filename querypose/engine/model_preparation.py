"""How a model computes, not what: memory layout, compiled components, components recomputed in the backward pass."""

from __future__ import annotations

from collections.abc import Sequence
from functools import wraps
from typing import Any

import torch
from torch import Tensor, nn

from querypose.config import ConfigError
from querypose.layers import recompute_in_backward, repeated_blocks
from querypose.modeling import Component, PoseModel


def prepare_model(
    model: nn.Module, *, channels_last: bool = False, compiled: Sequence[str] = (), recomputed: Sequence[str] = ()
) -> nn.Module:
    """Sets in place how `model` computes; its results, its parameters and their names stay.

    Args:
        model: of any meta-architecture.
        channels_last: keep the convolutions' weights, and with them their features, with channels side by side.
        compiled: components that torch.compile translates at their first call.
        recomputed: components whose activations are computed again in the backward pass; a network that consists of
            blocks block by block.

    Raises:
        ConfigError: the model has no such component, or a block of a compiled one would have to be recomputed.
    """
    if channels_last:
        model.to(memory_format=torch.channels_last)
    for component in _components(model, "MODEL.COMPILE", compiled).values():
        for module in component.modules:
            compile_in_place(module, component.varying_dims)
    for name, component in _components(model, "MODEL.RECOMPUTE", recomputed).items():
        for module in component.modules:
            blocks = repeated_blocks(module)
            if blocks and name in compiled:
                raise ConfigError(
                    f"MODEL.COMPILE and MODEL.RECOMPUTE both have {name!r}. It would be compiled as a whole, but "
                    "recomputed block by block. Remove it from one of them."
                )
            for block in blocks or [module]:
                recompute_in_backward(block)
    return model


def compile_in_place(module: nn.Module, varying_dims: Sequence[int] = (), backend: str = "inductor") -> None:
    """Has torch.compile translate `module.forward`; names in the state dict stay, unlike those of a compiled module.

    Args:
        module: whose arguments are tensors or None.
        varying_dims: dimensions of every argument whose size may change from call to call without another
            translation. Where such a size is 0 or 1, for which torch would translate anew, the call is not compiled.
        backend: of torch.compile.
    """
    forward = module.forward
    translated = torch.compile(forward, backend=backend)

    @wraps(forward)
    def compiled(*args: Tensor | None) -> Any:
        tensors = [arg for arg in args if arg is not None]
        if any(tensor.shape[dim] < 2 for tensor in tensors for dim in varying_dims):
            return forward(*args)
        for tensor in tensors:
            for dim in varying_dims:
                torch._dynamo.mark_dynamic(tensor, dim)
        return translated(*args)

    module.forward = compiled


def _components(model: nn.Module, key: str, names: Sequence[str]) -> dict[str, Component]:
    components = model.components if isinstance(model, PoseModel) else {}
    if unknown := [name for name in names if name not in components]:
        raise ConfigError(f"{key} has {unknown}; allowed for {type(model).__name__}: {sorted(components)}.")
    return {name: components[name] for name in names}
