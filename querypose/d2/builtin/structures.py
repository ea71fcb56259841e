"""What a model takes and gives: images of unlike sizes in one tensor, instances with their fields, keypoints."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


class Keypoints:
    """Keypoints of N instances as an N x K x 3 float32 tensor of (x, y, visibility).

    Visibility is COCO's: 0 not labeled (then x = y = 0), 1 labeled but hidden, 2 visible.

    Attributes:
        tensor: N x K x 3.
    """

    def __init__(self, keypoints: Any) -> None:
        tensor = torch.as_tensor(keypoints, dtype=torch.float32)
        if tensor.dim() != 3 or tensor.shape[2] != 3:
            raise AssertionError(f"Keypoints are N x K x 3, not {tuple(tensor.shape)}.")
        self.tensor: Tensor = tensor

    def to(self, *args: Any, **kwargs: Any) -> Keypoints:
        return type(self)(self.tensor.to(*args, **kwargs))

    @property
    def device(self) -> torch.device:
        return self.tensor.device

    @staticmethod
    def cat(keypoints_list: Sequence[Keypoints]) -> Keypoints:
        """All instances of a list that is not empty, in order."""
        if not keypoints_list:
            raise AssertionError("There is nothing to concatenate: the list of Keypoints is empty.")
        return type(keypoints_list[0])(torch.cat([keypoints.tensor for keypoints in keypoints_list]))

    def __getitem__(self, item: Any) -> Keypoints:
        selected = self.tensor[item]
        return Keypoints(selected[None] if isinstance(item, int) else selected)

    def __len__(self) -> int:
        return self.tensor.shape[0]

    def __repr__(self) -> str:
        return f"Keypoints(num_instances={len(self)})"


class Instances:
    """The instances of one image: any number of fields, all of one length.

    A field is an attribute (`instances.gt_boxes = boxes`). Indexing, `to` and `cat` act on every field.

    Deviates: a field that is a list can be indexed as a tensor can, and torch.jit cannot script the class.

    Attributes:
        image_size: (height, width) of the image that the fields refer to.
    """

    _image_size: tuple[int, int]
    _fields: dict[str, Any]

    def __init__(self, image_size: tuple[int, int], **kwargs: Any) -> None:
        self._image_size = image_size
        self._fields = {}
        for name, value in kwargs.items():
            self.set(name, value)

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) of the image that the fields refer to."""
        return self._image_size

    def __setattr__(self, name: str, value: Any) -> None:
        if name.startswith("_"):
            super().__setattr__(name, value)
        else:
            self.set(name, value)

    def __getattr__(self, name: str) -> Any:
        # `_fields` itself is absent while a copy or an unpickled object is being made.
        if name == "_fields" or name not in self._fields:
            raise AttributeError(
                f"Instances have no field {name!r}; they have {sorted(self.__dict__.get('_fields', ()))}."
            )
        return self._fields[name]

    def set(self, name: str, value: Any) -> None:
        """Adds or replaces a field.

        Raises:
            AssertionError: its length is not that of the other fields.
        """
        if self._fields and len(value) != len(self):
            raise AssertionError(f"Field {name!r} has {len(value)} entries, but there are {len(self)} instances.")
        self._fields[name] = value

    def has(self, name: str) -> bool:
        return name in self._fields

    def remove(self, name: str) -> None:
        del self._fields[name]

    def get(self, name: str) -> Any:
        """A field.

        Raises:
            KeyError: there is none of that name.
        """
        return self._fields[name]

    def get_fields(self) -> dict[str, Any]:
        """The fields themselves, by name: not a copy."""
        return self._fields

    def to(self, *args: Any, **kwargs: Any) -> Instances:
        """New instances with `to` applied to every field that has it."""
        return self._map(lambda value: value.to(*args, **kwargs) if hasattr(value, "to") else value)

    def __getitem__(self, item: Any) -> Instances:
        """By integer (one instance), slice, mask or index tensor.

        Raises:
            IndexError: the integer is out of range.
        """
        if isinstance(item, int):
            if not -len(self) <= item < len(self):
                raise IndexError(f"Instances index {item} is out of range: there are {len(self)}.")
            item %= len(self)
            item = slice(item, item + 1)
        return self._map(lambda value: _select(value, item))

    def __len__(self) -> int:
        for value in self._fields.values():
            return len(value)
        raise NotImplementedError("Instances without a field have no length.")

    def __iter__(self) -> Iterator[Any]:
        # Without this, Python would iterate by __getitem__, which is never what was meant.
        raise NotImplementedError("Instances cannot be iterated over; iterate over a field, or over indices.")

    @staticmethod
    def cat(instance_lists: Sequence[Instances]) -> Instances:
        """All instances of a list that is not empty, in order.

        Raises:
            AssertionError: the list is empty, or its image sizes differ.
            KeyError: an entry lacks a field of the first.
            ValueError: a field can be neither concatenated nor joined.
        """
        if not instance_lists:
            raise AssertionError("There is nothing to concatenate: the list of Instances is empty.")
        first = instance_lists[0]
        for other in instance_lists[1:]:
            if other.image_size != first.image_size:
                raise AssertionError(f"Image sizes {first.image_size} and {other.image_size} differ.")
        if len(instance_lists) == 1:
            return first
        joined = Instances(first.image_size)
        for name in first.get_fields():
            joined.set(name, _join(name, [instances.get(name) for instances in instance_lists]))
        return joined

    def _map(self, function: Any) -> Instances:
        mapped = Instances(self._image_size)
        for name, value in self._fields.items():
            mapped.set(name, function(value))
        return mapped

    def __repr__(self) -> str:
        count = len(self) if self._fields else 0
        height, width = self._image_size
        fields = ", ".join(f"{name}: {value}" for name, value in self._fields.items())
        return f"Instances(num_instances={count}, image_height={height}, image_width={width}, fields=[{fields}])"


def _select(value: Any, item: Any) -> Any:
    """Entries of one field; a list takes a slice, a mask or a list of indices as a tensor does."""
    if not isinstance(value, list | tuple) or isinstance(item, slice):
        return value[item]
    index = torch.as_tensor(item)
    if index.dtype == torch.bool:
        index = index.nonzero().flatten()
    return type(value)(value[position] for position in index.tolist())


def _join(name: str, values: list[Any]) -> Any:
    first = values[0]
    if isinstance(first, Tensor):
        return torch.cat(values)
    if isinstance(first, list):
        return [entry for value in values for entry in value]
    if hasattr(type(first), "cat"):
        return type(first).cat(values)
    raise ValueError(f"Field {name!r} of type {type(first).__name__} cannot be concatenated.")


class ImageList:
    """Images of unlike sizes in one padded tensor.

    Deviates: detectron2's can be scripted and traced by torch.jit.

    Attributes:
        tensor: B x … x H x W, padded on the right and below.
        image_sizes: (height, width) of every image before the padding.
    """

    def __init__(self, tensor: Tensor, image_sizes: list[tuple[int, int]]) -> None:
        self.tensor = tensor
        self.image_sizes = image_sizes

    def __len__(self) -> int:
        return len(self.image_sizes)

    def __getitem__(self, index: int) -> Tensor:
        """One image, without its padding."""
        height, width = self.image_sizes[index]
        return self.tensor[index, ..., :height, :width]

    def to(self, *args: Any, **kwargs: Any) -> ImageList:
        return ImageList(self.tensor.to(*args, **kwargs), self.image_sizes)

    @property
    def device(self) -> torch.device:
        return self.tensor.device

    @staticmethod
    def from_tensors(
        tensors: Sequence[Tensor],
        size_divisibility: int = 0,
        pad_value: float = 0.0,
        padding_constraints: Mapping[str, int] | None = None,
    ) -> ImageList:
        """Pads images to a common size.

        Args:
            tensors: images, each … x H x W, alike in all but height and width.
            size_divisibility: if above 1, the common height and width become multiples of it.
            pad_value: what the padding holds.
            padding_constraints: `size_divisibility` replaces the argument; `square_size`, if above 0, is the common
                height and width.

        Raises:
            AssertionError: there is no image, or the leading dimensions differ.
        """
        if not tensors:
            raise AssertionError("ImageList.from_tensors needs one image or more.")
        leading = tensors[0].shape[:-2]
        if any(tensor.shape[:-2] != leading for tensor in tensors):
            raise AssertionError(f"Images differ in more than size: {[tuple(tensor.shape) for tensor in tensors]}.")
        constraints = dict(padding_constraints or {})
        divisor = max(constraints.get("size_divisibility", size_divisibility), 1)
        square = constraints.get("square_size", 0)
        image_sizes = [(tensor.shape[-2], tensor.shape[-1]) for tensor in tensors]
        height = square if square > 0 else max(size[0] for size in image_sizes)
        width = square if square > 0 else max(size[1] for size in image_sizes)
        height, width = -(-height // divisor) * divisor, -(-width // divisor) * divisor
        padded = [
            F.pad(tensor, (0, width - tensor.shape[-1], 0, height - tensor.shape[-2]), value=pad_value)
            for tensor in tensors
        ]
        return ImageList(torch.stack(padded).contiguous(), image_sizes)
