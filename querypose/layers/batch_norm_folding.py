"""Folding of batch normalization into the convolution before it, for inference."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

CONVOLUTIONS = (nn.Conv2d, nn.ConvTranspose2d)


@torch.no_grad()
def fold_batch_norms(model: nn.Module, run: Callable[[], object]) -> list[str]:
    """Folds every batch normalization that directly follows a convolution into it, in place.

    A run of the model finds the pairs, so that any architecture works. It is assumed that only the normalization reads
    the convolution's result, as in all known networks. If the normalization includes an activation (timm's), the
    activation stays.

    Args:
        model: in evaluation mode; its weights are changed, and the normalizations replaced.
        run: runs the model once, on any input that reaches all its modules.

    Returns:
        the names of the folded normalizations.

    Raises:
        RuntimeError: the model is in training mode, where a normalization is not constant.
    """
    if model.training:
        raise RuntimeError("Batch normalization can be folded in evaluation mode only; call model.eval() first.")
    names = {module: name for name, module in model.named_modules()}
    folded = []
    for norm, conv in _pairs(model, run):
        _fold(norm, conv)
        # timm's holds a drop block and an activation.
        rest = nn.Sequential(*(part for part in (getattr(norm, "drop", None), getattr(norm, "act", None)) if part))
        parent, _, name = names[norm].rpartition(".")
        setattr(model.get_submodule(parent), name, rest)
        folded.append(names[norm])
    return folded


def _pairs(model: nn.Module, run: Callable[[], object]) -> list[tuple[nn.Module, nn.Module]]:
    """Normalizations and the convolution that each reads from, where neither has another partner."""
    results: list[tuple[Tensor, nn.Module]] = []
    partners: dict[nn.Module, set[nn.Module | None]] = defaultdict(set)
    readers: dict[nn.Module, set[nn.Module]] = defaultdict(set)

    def after_conv(conv: nn.Module, inputs: tuple[Any, ...], result: Tensor) -> None:
        results.append((result, conv))

    def before_norm(norm: nn.Module, inputs: tuple[Any, ...]) -> None:
        conv = next((conv for result, conv in reversed(results) if result is inputs[0]), None)
        partners[norm].add(conv)
        if conv is not None:
            readers[conv].add(norm)

    handles = []
    for module in model.modules():
        if type(module) in CONVOLUTIONS:
            handles.append(module.register_forward_hook(after_conv))
        elif _is_constant_norm(module):
            handles.append(module.register_forward_pre_hook(before_norm))
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    return [
        (norm, conv)
        for norm, convs in partners.items()
        for conv in convs
        if conv is not None and len(convs) == 1 and readers[conv] == {norm}
    ]


def _is_constant_norm(module: nn.Module) -> bool:
    """Whether it is a BatchNorm of any kind, frozen or not, by its tensors."""
    return all(isinstance(getattr(module, name, None), Tensor) for name in ("running_mean", "running_var", "weight"))


def _fold(norm: Any, conv: Any) -> None:
    """Float64, so that the folded weights are the nearest ones."""
    scale = norm.weight.double() * (norm.running_var.double() + norm.eps).rsqrt()
    bias = 0 if conv.bias is None else conv.bias.double()
    bias = norm.bias.double() + (bias - norm.running_mean.double()) * scale
    weight = conv.weight.double()
    if isinstance(conv, nn.ConvTranspose2d):  # (in, out / groups, height, width)
        weight = (weight.unflatten(0, (conv.groups, -1)) * scale.view(conv.groups, 1, -1, 1, 1)).flatten(0, 1)
    else:
        weight = weight * scale.view(-1, 1, 1, 1)
    conv.weight.data = weight.to(conv.weight)
    conv.bias = nn.Parameter(bias.to(conv.weight))
