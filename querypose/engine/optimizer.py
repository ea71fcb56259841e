"""AdamW in a few parameter groups: learning rate by name, weight decay by kind of parameter (QueryPose Sec. 4.1)."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.distributed.optim import ZeroRedundancyOptimizer

from querypose.config import ConfigError
from querypose.d2 import comm
from querypose.modeling import PoseModel

NORM_LAYERS: tuple[type[nn.Module], ...] = (
    nn.modules.batchnorm._NormBase,  # batch and instance norm of every dimension, synchronized ones included
    nn.GroupNorm,
    nn.LayerNorm,
    *((nn.RMSNorm,) if hasattr(nn, "RMSNorm") else ()),
)


def build_optimizer(
    model: nn.Module,
    *,
    base_lr: float,
    lr_factors: Sequence[tuple[str, float]] = (),
    weight_decay: float,
    weight_decay_norm: float,
    weight_decay_bias: float,
    betas: tuple[float, float] = (0.9, 0.999),
    shard: bool = False,
) -> torch.optim.Optimizer:
    """AdamW on the trainable parameters, in one group for each pair of learning rate and weight decay that occurs.

    The update equals that of one group per tensor, as the authors' code has them, in far fewer kernels. A warning names
    every factor that fits no parameter: it is misspelled, or meant for another model. A `PoseModel` may lower the rate
    of a parameter by a factor of its own, and keep one from decaying.

    Args:
        model: frozen parameters (`requires_grad=False`) are left out; a shared one counts once.
        base_lr: learning rate of a parameter that no factor fits.
        lr_factors: (part of a parameter's name, factor) pairs; the first whose part occurs in the name counts.
        weight_decay: decoupled decay of every parameter that is neither of a normalization layer nor a bias.
        weight_decay_norm: that of normalization layers.
        weight_decay_bias: that of biases, those of normalization layers included (as in detectron2).
        betas: decay rates of AdamW's two moments.
        shard: each of several processes keeps the moments of some parameters alone (ZeRO stage 1); equal updates.

    Raises:
        ValueError: the model has no trainable parameter.
    """
    # In the order of the model, so that the optimizer's state in a checkpoint fits the same groups again.
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    seen: set[nn.Parameter] = set()
    used: set[str] = set()
    for layer_name, layer in model.named_modules():
        for leaf, parameter in layer.named_parameters(recurse=False):
            if parameter in seen:
                continue
            seen.add(parameter)
            name = f"{layer_name}.{leaf}".removeprefix(".")  # of a model that is one layer
            part, factor = next((entry for entry in lr_factors if entry[0] in name), ("", 1.0))
            used.add(part)
            if isinstance(model, PoseModel):
                factor *= model.lr_factor(name)
            if not parameter.requires_grad:
                continue
            if isinstance(model, PoseModel) and name in model.undecayed:
                decay = 0.0
            elif is_bias(leaf):
                decay = weight_decay_bias
            else:
                decay = weight_decay_norm if isinstance(layer, NORM_LAYERS) else weight_decay
            groups.setdefault((base_lr * factor, decay), []).append(parameter)
    for part in dict.fromkeys(part for part, _ in lr_factors if part not in used):
        logging.getLogger(__name__).warning(
            f"SOLVER.LR_FACTORS has {part!r}, but no parameter of {type(model).__name__} has this in its name. The "
            "entry has no effect. Correct or remove it."
        )
    if not groups:
        raise ConfigError(f"{type(model).__name__} has no trainable parameter; there is nothing to optimize.")
    trained = [parameter for parameters in groups.values() for parameter in parameters]
    settings: dict[str, Any] = {
        "params": [{"params": params, "lr": lr, "weight_decay": decay} for (lr, decay), params in groups.items()],
        "betas": betas,
        # The fused kernel alone can skip an update on the device (`TrainStep._update`); not every device has it.
        "fused": all(
            parameter.is_floating_point() and parameter.device.type in ("cpu", "cuda") for parameter in trained
        ),
    }
    if shard and comm.get_world_size() > 1:
        return ZeroRedundancyOptimizer(optimizer_class=torch.optim.AdamW, **settings)
    return torch.optim.AdamW(**settings)


def is_bias(leaf: str) -> bool:
    """Whether a layer's parameter of this name is a bias: also `in_proj_bias` of attention layers."""
    return leaf == "bias" or leaf.endswith("_bias")
