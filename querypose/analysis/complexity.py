"""Parameters and floating-point operations of a model, in all and by part; for any meta-architecture.

Counted is inference of one image. A multiplication and an addition are two operations, so 2 GFLOPs are 1 GMAC; papers
often print GMACs and call them GFLOPs. Counted are convolutions, matrix products and attention; not counted are
element-wise operations, normalization, resizing and RoIAlign, which hold little arithmetic.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from querypose.analysis.part_meter import PartMeter, part_name
from querypose.d2 import META_ARCH_REGISTRY, CfgNode
from querypose.data import build_pipeline
from querypose.modeling import PoseModel

PHOTO_SIZE = (480, 640)
CONVENTION = "1 GMAC = 2 GFLOPs; convolutions, matrix products and attention count, RoIAlign and element-wise do not"


@dataclass(frozen=True)
class Complexity:
    """What a model holds and what one image costs it.

    Attributes:
        parameters: trainable and frozen ones by part, each once.
        flops: floating-point operations of inference by part.
        image_size: height and width of the image that the model was given, in pixels.
    """

    parameters: Mapping[str, int]
    flops: Mapping[str, int]
    image_size: tuple[int, int]

    @property
    def parts(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys([*self.parameters, *self.flops]))

    @property
    def num_parameters(self) -> int:
        return sum(self.parameters.values())

    @property
    def gflops(self) -> float:
        """Of the whole model, in 1e9 operations."""
        return sum(self.flops.values()) / 1e9


def measure_complexity(cfg: CfgNode, *, image_size: tuple[int, int] | None = None, depth: int = 2) -> Complexity:
    """Builds the model of a config on the CPU, without pretrained weights, and counts.

    Args:
        cfg: the config; its datasets are registered.
        image_size: height and width of the image in pixels; by default those of a 480x640 photo, resized as the
            config does it for testing. A model of crops has a size of its own.
        depth: how many names of a module's path tell parts apart.
    """
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.BACKBONE.PRETRAINED = False
    model: PoseModel = META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE)(cfg)
    height, width = model.example_batch(image_size or image_size_for_testing(cfg))[0]["image"].shape[1:]
    return Complexity(
        parameters=count_parameters(model, depth),
        flops=count_flops(model, (height, width), depth),
        image_size=(height, width),
    )


def parse_image_size(text: str) -> tuple[int, int]:
    """Height and width of `HxW`, for a command line.

    Raises:
        ArgumentTypeError: it is none.
    """
    height, _, width = text.partition("x")
    if not (height.isdecimal() and width.isdecimal() and int(height) > 0 and int(width) > 0):
        raise argparse.ArgumentTypeError(f"{text!r} is no size in pixels, such as 480x640: height x width")
    return int(height), int(width)


def image_size_for_testing(cfg: CfgNode, photo_size: tuple[int, int] = PHOTO_SIZE) -> tuple[int, int]:
    """Height and width of what the config makes of a photo for testing."""
    pipeline = build_pipeline(cfg, is_train=False)
    record = pipeline.records_of_image(photo_size)[0]
    sample = pipeline.sample(record, np.random.default_rng(0), np.zeros((*photo_size, 3), np.uint8))
    height, width = sample["image"].shape[1:]
    return height, width


def count_parameters(model: nn.Module, depth: int) -> dict[str, int]:
    """Parameters by part; a shared one counts where it occurs first."""
    counts: Counter[str] = Counter()
    for name, parameter in model.named_parameters():
        counts[part_name(name.rpartition(".")[0], depth)] += parameter.numel()
    return dict(counts)


def count_flops(model: PoseModel, image_size: tuple[int, int], depth: int) -> dict[str, int]:
    """Operations of inference on one image, by part.

    The products are not carried out: their results are zeros. So it takes seconds for the largest models, and does not
    depend on their weights.

    Args:
        model: of any meta-architecture; in inference mode afterwards, and without gradients.
        image_size: height and width in pixels.
        depth: how many names of a module's path tell parts apart.
    """
    batch = model.example_batch(image_size)
    model.eval().requires_grad_(False)
    counter = FlopCounterMode(display=False)
    with (
        torch.no_grad(), ZeroProducts(), counter, PartMeter(model, depth, counter.get_total_flops) as meter,
        sdpa_kernel(SDPBackend.MATH),  # as matrix products: not every torch counts the fused attention of a CPU
    ):  # fmt: skip
        model(batch)
    flops: Counter[str] = Counter()
    for span in meter.spans:
        flops[span.part] += span.end - span.start
    return {part: count for part, count in flops.items() if count}


class ZeroProducts(TorchDispatchMode):
    """Every operation that the counter of FLOPs knows gives zeros of the right shape, without computing."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Runs `func`, or finds out its shapes alone."""
        kwargs = kwargs or {}
        if func.overloadpacket not in flop_registry:
            return func(*args, **kwargs)
        device = next(leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)).device
        meta_args, meta_kwargs = tree_map_only(Tensor, lambda tensor: tensor.to("meta"), (args, kwargs))
        shapes = func(*meta_args, **meta_kwargs)
        return tree_map_only(Tensor, lambda shape: torch.zeros(shape.shape, dtype=shape.dtype, device=device), shapes)
