"""AdamW in a few parameter groups: learning rate by name, weight decay by kind of parameter (QueryPose Sec. 4.1)."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import nn

from querypose.modeling import PoseModel

NORM_LAYERS: tuple[type[nn.Module], ...] = (
    nn.modules.batchnorm._NormBase,  # batch and instance norm of every dimension, synchronized ones included
    nn.GroupNorm,
    nn.LayerNorm,
    *((nn.RMSNorm,) if hasattr(nn, "RMSNorm") else ()),
)

LrFactors = Sequence[tuple[str, float]]


def build_optimizer(
    model: nn.Module,
    *,
    base_lr: float,
    lr_factors: LrFactors = (),
    weight_decay: float,
    weight_decay_norm: float,
    weight_decay_bias: float,
    betas: tuple[float, float] = (0.9, 0.999),
) -> torch.optim.AdamW:
    """AdamW on the trainable parameters of `model`, fused into one kernel per group where the device has one.

    The update equals that of one group per tensor; few groups spare the hundreds of small kernels of the authors' code.

    Args:
        model: frozen parameters (`requires_grad=False`) are left out; a shared one counts once.
        base_lr: learning rate of a parameter that no factor fits.
        lr_factors: (part of a parameter's name, factor) pairs; the first whose part occurs in the name counts.
        weight_decay: decoupled decay of every parameter that is neither of a normalization layer nor a bias.
        weight_decay_norm: that of normalization layers.
        weight_decay_bias: that of biases, those of normalization layers included (as in detectron2).
        betas: decay rates of AdamW's two moments.

    Raises:
        ValueError: the model has no trainable parameter.
    """
    groups = parameter_groups(
        model,
        base_lr=base_lr,
        lr_factors=lr_factors,
        weight_decay=weight_decay,
        weight_decay_norm=weight_decay_norm,
        weight_decay_bias=weight_decay_bias,
    )
    if not groups:
        raise ValueError(f"{type(model).__name__} has no trainable parameter; nothing to optimize.")
    parameters = [parameter for group in groups for parameter in group["params"]]
    return torch.optim.AdamW(groups, lr=base_lr, betas=betas, fused=_can_be_fused(parameters))


def parameter_groups(
    model: nn.Module,
    *,
    base_lr: float,
    lr_factors: LrFactors,
    weight_decay: float,
    weight_decay_norm: float,
    weight_decay_bias: float,
) -> list[dict[str, Any]]:
    """The trainable parameters, one group for each pair of learning rate and weight decay that occurs.

    A `PoseModel` may lower the rate of a parameter by a factor of its own, and keep one from decaying.

    Groups stand in the order in which their first parameter occurs in the model, so that a checkpoint fits again.
    Warns of every entry of `lr_factors` that fits no parameter: it is either misspelt or meant for another model.

    Args: see `build_optimizer`.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    unused = [part for part, _ in lr_factors]
    for name, parameter, layer in _named_parameters(model):
        factor = model.lr_factor(name) if isinstance(model, PoseModel) else 1.0
        for part, candidate in lr_factors:
            if part in name:
                factor *= candidate
                unused = [other for other in unused if other != part]
                break
        if not parameter.requires_grad:
            continue
        if isinstance(model, PoseModel) and name in model.undecayed:
            decay = 0.0
        elif is_bias(name):
            decay = weight_decay_bias
        elif isinstance(layer, NORM_LAYERS):
            decay = weight_decay_norm
        else:
            decay = weight_decay
        groups.setdefault((base_lr * factor, decay), []).append(parameter)
    for part in unused:
        logging.getLogger(__name__).warning(
            f"SOLVER.LR_FACTORS: no parameter of {type(model).__name__} has {part!r} in its name; the entry is without "
            "effect."
        )
    return [{"params": params, "lr": lr, "weight_decay": decay} for (lr, decay), params in groups.items()]


def is_bias(name: str) -> bool:
    """Whether a parameter of this dotted name is a bias: `….bias`, and `in_proj_bias` of attention layers."""
    leaf = name.rpartition(".")[2]
    return leaf == "bias" or leaf.endswith("_bias")


def _named_parameters(model: nn.Module) -> Iterator[tuple[str, nn.Parameter, nn.Module]]:
    """(dotted name, parameter, the layer it belongs to), every parameter once, in the order of the model."""
    seen: set[nn.Parameter] = set()
    for prefix, layer in model.named_modules():
        for leaf, parameter in layer.named_parameters(recurse=False):
            if parameter not in seen:
                seen.add(parameter)
                yield (f"{prefix}.{leaf}" if prefix else leaf), parameter, layer


def _can_be_fused(parameters: Iterable[nn.Parameter]) -> bool:
    return all(parameter.is_floating_point() and parameter.device.type in ("cpu", "cuda") for parameter in parameters)
