"""Activation checkpointing: a module's activations are computed again in the backward pass instead of being kept."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import partial, wraps
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

SEQUENCES = (nn.Sequential, nn.ModuleList)


def recompute_in_backward(module: nn.Module) -> None:
    """Makes `module` keep only its inputs for the backward pass, which runs its `forward` once more.

    Outputs and gradients stay the same: both passes draw the same random numbers, and BatchNorm statistics are updated
    by the first only. Names in the state dict stay too.
    """
    forward = module.forward

    @wraps(forward)
    def checkpointed(*args: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*args)
        contexts = partial(_contexts, module)
        return checkpoint(forward, *args, use_reentrant=False, context_fn=contexts)

    module.forward = checkpointed


def repeated_blocks(module: nn.Module) -> list[nn.Module]:
    """The repeated blocks of a network: the children of its outermost sequences of composite modules of one class.

    The blocks of a ResNet are its bottlenecks; a network without such sequences has none.
    """
    children = list(module.children())
    if isinstance(module, SEQUENCES) and len({type(child) for child in children}) == 1:
        (first, *_) = children
        if any(first.children()) and not isinstance(first, SEQUENCES):
            return children
    return [block for child in children for block in repeated_blocks(child)]


def _contexts(
    module: nn.Module,
) -> tuple[contextlib.AbstractContextManager[None], contextlib.AbstractContextManager[None]]:
    return contextlib.nullcontext(), _unchanged_statistics(module)


@contextlib.contextmanager
def _unchanged_statistics(module: nn.Module) -> Iterator[None]:
    norms = [layer for layer in module.modules() if isinstance(layer, _BatchNorm) and layer.training]
    statistics = [buffer for norm in norms for buffer in norm.buffers(recurse=False)]
    before = [buffer.clone() for buffer in statistics]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, value in zip(statistics, before, strict=True):
                buffer.copy_(value)
