"""What the operations of a training step cost a CPU, beside what they would cost at its best rates.

Seconds are those of cores, added up over the threads: they hold on a busy machine too.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from math import prod
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, register_flop_formula

CONVOLUTIONS, PRODUCTS, OTHERS = "convolutions", "matrix products", "others"
KINDS = (CONVOLUTIONS, PRODUCTS, OTHERS)
COSTS = ("seconds", "flops", "bytes")


@register_flop_formula(torch.ops.aten.mkldnn_linear)
def _linear_flops(input: Sequence[int], weight: Sequence[int], *_: Any, **__: Any) -> int:
    return 2 * prod(input) * weight[0]


@register_flop_formula(torch.ops.aten.mkldnn_linear_backward)
def _linear_backward_flops(
    input: Sequence[int], grad: Sequence[int], weight: Sequence[int], mask: Sequence[bool], **_: Any
) -> int:
    return sum(mask[:2]) * _linear_flops(input, weight)


class Operation(NamedTuple):
    """One that has run: core seconds, floating-point operations, and bytes, each operand read or written once."""

    kind: str
    seconds: float
    flops: int
    bytes: int


class OperationMeter(TorchDispatchMode):
    """Notes every operation on the CPU within its `with` block, those of a backward pass too, in `operations`."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[Operation] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Runs `func`, and notes what it cost."""
        kwargs = kwargs or {}
        start = time.process_time()
        result = func(*args, **kwargs)
        seconds = time.process_time() - start
        kind, flops = OTHERS, 0
        if count := flop_registry.get(func.overloadpacket):
            kind = CONVOLUTIONS if "convolution" in func.name() else PRODUCTS
            flops = count(*args, **kwargs, out_val=result)
        moved = 0 if func.is_view else _bytes((args, kwargs)) + _bytes(result)
        if not func._schema.returns:  # it writes to its arguments
            moved *= 2
        self.operations.append(Operation(kind, seconds, flops, moved))
        return result


class BestRates(NamedTuple):
    """What a core was measured to do at best: floating-point operations and bytes a second."""

    flops: float
    bytes: float


def measure_best_rates(repetitions: int = 5, scale: int = 512) -> BestRates:
    """The faster of a large convolution and a large matrix product in float32, and a copy of a large tensor.

    Args:
        repetitions: of each, of which the fastest counts.
        scale: channels of the convolution; the other sizes follow.
    """
    region = torch.randn(8, scale, 14, 14).contiguous(memory_format=torch.channels_last)
    weight = torch.randn(scale, scale, 3, 3).contiguous(memory_format=torch.channels_last)
    factor = torch.randn(2 * scale, 2 * scale)
    source = torch.zeros(scale * scale * 64)
    target = torch.zeros_like(source)

    def rate(work: Callable[[], object], amount: float) -> float:
        seconds = []
        for _ in range(1 + repetitions):
            start = time.process_time()
            work()
            seconds.append(time.process_time() - start)
        return amount / max(min(seconds[1:]), 1e-9)

    return BestRates(
        flops=max(
            rate(lambda: F.conv2d(region, weight, padding=1), 2 * region.numel() * scale * 9),
            rate(lambda: factor @ factor, 2 * (2 * scale) ** 3),
        ),
        bytes=rate(lambda: target.copy_(source), 2 * source.nbytes),
    )


def _bytes(tree: Any) -> int:
    tensors = [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]
    # What is expanded has more elements than its memory; that of oneDNN's tensors cannot be asked for.
    return sum(
        tensor.nbytes if tensor.is_mkldnn else min(tensor.nbytes, tensor.untyped_storage().nbytes())
        for tensor in tensors
    )
