"""Axis-aligned boxes in absolute coordinates."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from enum import IntEnum
from typing import Any

import numpy as np
import torch
from torch import Tensor


class BoxMode(IntEnum):
    """How four numbers state a box, in absolute coordinates: two corners, or corner and size.

    Deviates: detectron2 also has modes for relative coordinates and rotated boxes.
    """

    XYXY_ABS = 0
    XYWH_ABS = 1

    @staticmethod
    def convert(box: Any, from_mode: BoxMode, to_mode: BoxMode) -> Any:
        """Converts one box (list or tuple of 4) or N boxes (array or tensor, N x 4); the result has the input's type.

        Raises:
            ValueError: the input does not hold boxes of four numbers.
        """
        from_mode, to_mode = BoxMode(from_mode), BoxMode(to_mode)
        if from_mode == to_mode:
            return box
        if isinstance(box, list | tuple):
            if len(box) != 4:
                raise ValueError(f"A box has four numbers, not {len(box)}: {box}.")
            # In float32, as detectron2 does it: a run that goes on with the other engine trains on the same boxes.
            converted = BoxMode.convert(torch.tensor(box), from_mode, to_mode).tolist()
            return tuple(converted) if isinstance(box, tuple) else converted
        if box.shape[-1] != 4:
            raise ValueError(f"Boxes are N x 4, not {tuple(box.shape)}.")
        copy = box.copy() if isinstance(box, np.ndarray) else box.clone()
        copy[..., 2:] += copy[..., :2] if from_mode == BoxMode.XYWH_ABS else -copy[..., :2]
        return copy


class Boxes:
    """N boxes as an N x 4 float32 tensor of (x1, y1, x2, y2); indexes and moves between devices like a tensor.

    Deviates: detectron2's can be scripted by torch.jit.

    Attributes:
        tensor: N x 4.
    """

    def __init__(self, tensor: Any) -> None:
        tensor = torch.as_tensor(tensor).to(torch.float32)
        if tensor.numel() == 0:
            tensor = tensor.reshape(-1, 4)
        if tensor.dim() != 2 or tensor.shape[-1] != 4:
            raise AssertionError(f"Boxes are N x 4, not {tuple(tensor.shape)}.")
        self.tensor: Tensor = tensor

    def clone(self) -> Boxes:
        return Boxes(self.tensor.clone())

    def to(self, device: torch.device | str) -> Boxes:
        return Boxes(self.tensor.to(device=device))

    @property
    def device(self) -> torch.device:
        return self.tensor.device

    def area(self) -> Tensor:
        size = self.tensor[:, 2:] - self.tensor[:, :2]
        return size[:, 0] * size[:, 1]

    def clip(self, box_size: tuple[int, int]) -> None:
        """Clips in place to an image of (height, width).

        Raises:
            AssertionError: a coordinate is not finite.
        """
        if not torch.isfinite(self.tensor).all():
            raise AssertionError("A box has a coordinate that is infinite or NaN.")
        height, width = box_size
        x = self.tensor[:, 0::2].clamp(min=0, max=width)
        y = self.tensor[:, 1::2].clamp(min=0, max=height)
        self.tensor = torch.stack((x[:, 0], y[:, 0], x[:, 1], y[:, 1]), dim=1)

    def nonempty(self, threshold: float = 0.0) -> Tensor:
        """True, N, where both sides exceed `threshold`."""
        return ((self.tensor[:, 2:] - self.tensor[:, :2]) > threshold).all(dim=1)

    def inside_box(self, box_size: tuple[int, int], boundary_threshold: int = 0) -> Tensor:
        """True, N, where a box lies in an image of (height, width), or out of it by less than the threshold."""
        height, width = box_size
        upper = self.tensor.new_tensor([width, height]) + boundary_threshold
        begins = (self.tensor[:, :2] >= -boundary_threshold).all(dim=1)
        return begins & (self.tensor[:, 2:] < upper).all(dim=1)

    def get_centers(self) -> Tensor:
        """Centers (x, y), N x 2."""
        return (self.tensor[:, :2] + self.tensor[:, 2:]) / 2

    def scale(self, scale_x: float, scale_y: float) -> None:
        self.tensor *= self.tensor.new_tensor([scale_x, scale_y, scale_x, scale_y])

    @classmethod
    def cat(cls, boxes_list: Sequence[Boxes]) -> Boxes:
        if not boxes_list:
            return cls(torch.empty(0))
        return cls(torch.cat([boxes.tensor for boxes in boxes_list]))

    def __getitem__(self, item: Any) -> Boxes:
        selected = self.tensor[item]
        if isinstance(item, int):
            return Boxes(selected[None])
        if selected.dim() != 2:
            raise AssertionError(f"Boxes cannot be indexed by {item!r}.")
        return Boxes(selected)

    def __len__(self) -> int:
        return self.tensor.shape[0]

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self.tensor)

    def __repr__(self) -> str:
        return f"Boxes({self.tensor})"
